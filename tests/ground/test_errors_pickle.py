import pickle

from mg.errors import BadClip


def test_a_bad_clip_comes_back_from_a_worker_process():
    error = pickle.loads(pickle.dumps(BadClip("a.mp4", "no video stream")))
    assert type(error) is BadClip
    assert (error.path, error.reason, str(error)) == ("a.mp4", "no video stream", "a.mp4: no video stream")

import pickle

from mg.errors import BadClip


def test_a_bad_clip_comes_back_from_a_worker_process():
    error = pickle.loads(pickle.dumps(BadClip("a.mp4", "no video stream")))
    assert type(error) is BadClip
    assert (error.path, error.reason, str(error)) == ("a.mp4", "no video stream", "a.mp4: no video stream")


def test_a_bad_clip_whose_name_is_not_utf8_can_be_printed():
    error = BadClip("\udcff.mp4", "damaged")
    assert (error.path, str(error)) == ("\udcff.mp4", "\\udcff.mp4: damaged")

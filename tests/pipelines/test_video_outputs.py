"""Names and files of generated videos."""

import numpy as np
import pytest
from PIL import Image

from mg.dataset.video import probe, read_video
from mg.pipelines.video_outputs import Namer, slug, write_frames
from tests.generation_fakes import pipeline

SMALL = {"height": 16, "width": 32, "num_inference_steps": 3, "guidance_scale": 1.0, "progress": False}


def test_prompts_become_names():
    assert slug("A large, red circle! moving/right") == "A-large-red-circle-moving-right"
    assert slug("1 2 3 4 5 6 7 8 9 10 11 12") == "1-2-3-4-5-6-7-8-9-10"
    assert slug("Ein Bär läuft: 狗在跑") == "Ein-Bär-läuft-狗在跑"
    assert slug("../../etc/passwd") == "etc-passwd" and slug("?!") == slug("") == "empty-prompt"
    assert len(slug("狗" * 500).encode()) <= 180


def test_names_are_never_given_twice(tmp_path):
    namer = Namer(tmp_path, taken=["sheet"])
    names = [namer.stem(name).name for name in ("a", "A", "a", "a-2", "sheet")]
    assert names == ["a", "A-2", "a-3", "a-2-2", "sheet-2"]


def moving(t=10, h=16, w=32):
    """Flat colours, one per frame, that a codec keeps."""
    return np.stack([np.full((h, w, 3), 20 + 20 * i, np.uint8) for i in range(t)])


def test_a_video_file_has_the_frames_at_their_rate(tmp_path):
    (path,) = write_frames(tmp_path / "a.b", moving(), 24)
    assert path.name == "a.b.mp4" and probe(path).fps == 24
    assert np.abs(read_video(path).astype(int) - moving()).max() <= 3


def test_a_gif_lasts_as_long_as_the_video(tmp_path):
    (path,) = write_frames(tmp_path / "a", moving(), 24, "gif")
    with Image.open(path) as picture:
        assert picture.n_frames == 10 and picture.info["loop"] == 0
        total = 0
        for i in range(10):
            picture.seek(i)
            total += picture.info["duration"]
            assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - moving()[i]).max() <= 4
    assert total == 420  # 10 / 24 s, in hundredths


def test_pictures_of_frames_and_a_picture_alone(tmp_path):
    paths = write_frames(tmp_path / "a", moving(3), 16, "png")
    assert [path.name for path in paths] == ["a-0000.png", "a-0001.png", "a-0002.png"]
    for path, frame in zip(paths, moving(3), strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), frame)
    assert [path.name for path in write_frames(tmp_path / "b", moving(1), 16, "mp4")] == ["b.png"]


@pytest.mark.parametrize("kind", ["mp4", "gif", "png"])
def test_a_pipeline_writes_files(tmp_path, kind):
    paths = pipeline()(["a cat", "a cat"], **SMALL, output_type=kind, output_path=tmp_path)
    first, second = {"png": ("-0000.png",) * 2}.get(kind, (f".{kind}",) * 2)
    assert paths == [tmp_path / f"a-cat{first}", tmp_path / f"a-cat-2{second}"]
    assert all(path.is_file() for path in paths)

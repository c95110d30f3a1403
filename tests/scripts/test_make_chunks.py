"""tools/make_chunks.py: what it prints, refuses and verifies; the format itself is tested with the data."""

import numpy as np
import pytest

from mg.dataset.chunks import ChunkedClips
from mg.dataset.manifest import read_manifest
from mg.dataset.video import read_video
from mg.dataset.video_writer import write_video

TOOL = "../tools/make_chunks.py"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for n in range(3):
        write_video(folder / f"{n}.mp4", draw.integers(0, 255, (5 + n, 32, 48, 3), np.uint8), 24)
    (folder / "bad.mp4").write_text("no video")
    (folder / "list.csv").write_text("video\n2.mp4\nbad.mp4\n0.mp4\n")
    return folder


def test_a_list_is_written_verified_and_named_where_it_is_damaged(here, folder, tmp_path):
    args = (folder / "list.csv", "--output_path", tmp_path / "c", "--short_side", 16, "--verify")
    result = here(TOOL, *args)
    assert result.code == 0
    assert result.out.splitlines() == [
        "bad: bad.mp4: is not a video file, or is damaged from the start",
        f"{tmp_path / 'c'}: 2 clips, 12 frames in 1 files; 1 clips bad",
    ]
    reader = ChunkedClips(tmp_path / "c", 16)
    for item in read_manifest(folder / "list.csv", folder)[::2]:
        np.testing.assert_array_equal(reader.read(item, range(5)), read_video(item.path, range(5), short_side=16))
    shard = tmp_path / "c" / "shard-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-50] ^= 1
    shard.write_bytes(data)
    assert len(list(ChunkedClips(tmp_path / "c", 16).damaged())) == 1
    result = here(TOOL, *args)  # found and mended
    assert result.code == 0 and f"{shard} is made anew: the frames of 0.mp4 in it are damaged" in result.err
    assert not list(ChunkedClips(tmp_path / "c", 16).damaged())


def test_mistakes_are_one_line(here, error_line, folder, tmp_path):
    target = ("--output_path", tmp_path / "c")
    assert "--shard_mb 0 must be at least 1" in error_line(here(TOOL, folder, *target, "--shard_mb", 0))
    assert "--output_path" in error_line(here(TOOL, folder))
    assert "is not a file" in error_line(here(TOOL, tmp_path / "no.csv", *target))
    (tmp_path / "file").touch()
    assert "cannot write" in error_line(here(TOOL, folder, "--output_path", tmp_path / "file"))
    (folder / "list.csv").write_text("video\nbad.mp4\n")
    assert "none of the 1 clips can be decoded" in error_line(here(TOOL, folder / "list.csv", *target), 5)

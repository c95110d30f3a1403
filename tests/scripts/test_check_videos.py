"""tools/check_videos.py: names what cannot be used, compares lists, and says so by its exit code."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from mg.dataset.check import as_csv, check_items, file_hash, shared_files
from mg.dataset.headers import Limits
from mg.dataset.manifest import Item, read_manifest, scan_folder
from mg.dataset.ordered import in_order
from mg.dataset.video_writer import write_video
from mg.errors import UserError

TOOL = "../tools/check_videos.py"


@pytest.fixture
def folder(tmp_path):
    """Two good videos, one of them large and one with an odd size, two pictures, three bad files."""
    folder = tmp_path / "videos"
    folder.mkdir()
    draw = np.random.default_rng(0)
    write_video(folder / "a.mp4", draw.integers(0, 255, (20, 32, 48, 3), np.uint8), 10)
    write_video(folder / "\u00e4 b.mp4", draw.integers(0, 255, (1, 64, 64, 3), np.uint8), 24)
    Image.fromarray(draw.integers(0, 255, (40, 50, 3), np.uint8)).save(folder / "p.png")
    (folder / "cut.mp4").write_bytes((folder / "a.mp4").read_bytes()[:-600])
    (folder / "empty.mp4").touch()
    (folder / "text.png").write_text("no picture")
    return folder


GOOD = ["a.mp4", "p.png", "\u00e4 b.mp4"]
REASONS = {"cut.mp4": "damaged from the start", "empty.mp4": "not a video", "text.png": "no picture"}


@pytest.mark.parametrize("workers", [0, 3])
def test_findings_come_in_order_with_a_trainings_reasons(folder, workers):
    items = scan_folder(folder)
    found = list(check_items(items, workers=workers))
    assert [one.item for one in found] == items
    assert [one.item.name for one in found if one.reason is None] == GOOD
    assert all(REASONS[one.item.name] in one.reason for one in found if one.reason)


def test_bad_files_are_printed_and_written_and_the_good_ones_make_a_list(here, folder, tmp_path):
    bad, good = tmp_path / "out" / "bad.jsonl", tmp_path / "good.csv"
    result = here(TOOL, folder, "--bad", bad, "--good", good)
    assert result.code == 1
    lines = result.out.splitlines()
    assert lines[-1] == f"3 of 6 files are bad; the bad ones are in {bad}; the good ones are in {good}"
    assert sorted(line.split(": ")[1] for line in lines[:-1]) == sorted(str(folder / name) for name in REASONS)
    entries = [json.loads(line) for line in bad.read_text().splitlines()]
    assert {entry["name"] for entry in entries} == set(REASONS)
    assert all(REASONS[entry["name"]] in entry["reason"] for entry in entries)
    assert [item.name for item in read_manifest(good, folder)] == GOOD
    again = here(TOOL, good, "--video_folder", folder)
    assert again.code == 0 and again.out.splitlines() == ["0 of 3 files are bad"]


def test_captions_are_kept(tmp_path):
    (tmp_path / "list.csv").write_text('video,caption\na.mp4,"one, two"\nb.mp4,\n')
    items = read_manifest(tmp_path / "list.csv", tmp_path)
    (tmp_path / "again.csv").write_text(as_csv(items))
    assert read_manifest(tmp_path / "again.csv", tmp_path) == items


def test_limits_and_exit_codes(here, error_line, folder, tmp_path):
    (tmp_path / "one.csv").write_text("video\na.mp4\n\u00e4 b.mp4\nnone.mp4\n")
    args = (tmp_path / "one.csv", "--video_folder", folder)
    result = here(TOOL, *args, "--max_pixels", 2000, "--workers", 1)
    assert result.code == 1 and "64x64 pixels, above max_pixels" in result.out and "not found" in result.out
    result = here(TOOL, *args, "--max_pixels", 2000, "--max_seconds", 1.5)
    assert result.code == 5 and "lasts 2.0 s, above max_seconds" in result.out
    assert [one.reason for one in check_items(scan_folder(folder)[:1], Limits(max_seconds=2.1))] == [None]
    assert "--workers 0 must be above 0" in error_line(here(TOOL, folder, "--workers", 0))
    assert "name at least two" in error_line(here(TOOL, folder, "--disjoint"))
    assert "is not a file" in error_line(here(TOOL, tmp_path / "no.csv"))


def test_lists_are_compared_by_content(here, folder, tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    for source, copy in (("a.mp4", "train/x.mp4"), ("p.png", "train/p.png"), ("\u00e4 b.mp4", "test/b.mp4")):
        shutil.copy(folder / source, tmp_path / copy)
    lists = (tmp_path / "train", tmp_path / "test")
    result = here(TOOL, *lists, "--disjoint")
    assert result.code == 0 and result.out.splitlines()[-1].endswith("(1 files): disjoint")
    shutil.copy(folder / "a.mp4", tmp_path / "test/y.mp4")
    shutil.copy(folder / "a.mp4", tmp_path / "test/z.mp4")
    other = bytearray((folder / "p.png").read_bytes())
    other[-20] ^= 1
    (tmp_path / "test/p.png").write_bytes(other)  # the same name and size, and another picture
    result = here(TOOL, *lists, "--disjoint")
    assert result.code == 1
    assert result.out.splitlines()[:2] == [
        f"in two lists: x.mp4 of {lists[0]} is {name} of {lists[1]}" for name in ("y.mp4", "z.mp4")
    ]
    assert len(shared_files({"one": scan_folder(lists[1])})) == 0  # copies within a list are its own business
    assert file_hash(folder / "empty.mp4") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    with pytest.raises(UserError, match="gone.mp4: cannot be read"):
        shared_files({"one": [Item(tmp_path / "gone.mp4", "gone.mp4", None, 1)], "two": []})


def test_the_bundled_lists_are_disjoint(here, root):
    clips = root / "assets" / "clips"
    assert here(TOOL, clips / "train.csv", clips / "test.csv", "--disjoint").code == 0


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_work_ahead_is_in_order_bounded_and_fails_where_it_is_due(workers):
    taken = []

    def numbers():
        for number in range(50):
            taken.append(number)
            yield number

    results = in_order(lambda number: 10 // (30 - number) + number, numbers(), workers)
    assert [next(results) for _ in range(5)] == [10 // (30 - n) + n for n in range(5)]
    assert len(taken) <= 5 + 2 * workers + 1
    with pytest.raises(ZeroDivisionError):
        list(results)

"""Files exist completely or not at all, and a disk that refuses is explained in one line."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from mg import files
from mg.errors import UserError
from mg.files import atomic_path, writable_folder, write_bytes, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_nothing_under_the_final_name_until_it_is_complete(tmp_path):
    target = tmp_path / "new" / "folder" / "clip.mp4"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent and temporary.suffix == ".mp4"
        temporary.write_bytes(b"video")
        assert not target.exists()
    assert target.read_bytes() == b"video"
    assert names(target.parent) == ["clip.mp4"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_a_failure_keeps_the_old_file_and_leaves_no_temporary(tmp_path, error):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(UserError if error is OSError else error), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_the_bytes_reach_the_disk_before_the_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(handle):
        calls.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def note_replace(*paths):
        calls.append("replace")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_text(tmp_path / "a.txt", "x")
    assert calls == ["file", "replace", "folder"]


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "the disk is full; free space"),
        (errno.EACCES, "permission denied; choose a folder you may write to"),
        (errno.EROFS, "the file system is read-only"),
    ],
)
def test_a_disk_that_refuses_is_one_line_with_a_remedy(tmp_path, monkeypatch, code, remedy):
    def refuse(handle):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", refuse)
    with pytest.raises(UserError) as caught:
        write_bytes(tmp_path / "a.bin", b"x")
    assert str(caught.value).startswith(f"cannot write {tmp_path / 'a.bin'}: {remedy}")
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_a_folder_of_that_name_and_a_file_in_the_way(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match="there is a folder of that name"):
        write_text(tmp_path / "folder", "x")
    with pytest.raises(UserError, match="is a file"):
        write_text(tmp_path / "file" / "below" / "a.txt", "x")
    assert names(tmp_path) == ["file", "folder"] and (tmp_path / "file").read_text() == "kept"


def test_a_name_too_long_is_explained(tmp_path):
    with pytest.raises(UserError, match="the name is too long; choose a shorter one"):
        write_text(tmp_path / ("x" * 300), "x")
    write_text(tmp_path / ("y" * 250 + ".txt"), "x")  # the temporary name must not make a good one too long
    assert (tmp_path / ("y" * 250 + ".txt")).read_text() == "x"


def test_text_is_utf8_and_json_reads_back(tmp_path):
    write_text(tmp_path / "a.txt", "\u00e9\u4e2d")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\xe4\xb8\xad"
    value = {"caption": "\u4e2d", "psnr": 31.25, "none": None, "list": [1, 2]}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text("utf-8")
    assert json.loads(text) == value and "\u4e2d" in text and text.endswith("}\n")


def test_a_writable_folder_is_made_and_left_empty(tmp_path):
    folder = writable_folder(str(tmp_path / "a" / "b"), "--output_path")
    assert folder == tmp_path / "a" / "b" and names(folder) == []


def test_an_unwritable_folder_names_the_option(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"^--output_path: cannot write .*file.*; choose another path$"):
            writable_folder(path, "--output_path")

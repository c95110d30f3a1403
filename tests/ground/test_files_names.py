"""Names and moments that are easily forgotten: long and foreign names, threads, an error at each step of a write."""

import errno
import os
import threading

import pytest

from mg.errors import UserError
from mg.files import atomic_path, write_bytes, write_json, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "the disk is full; free space or choose another folder"),
        (errno.EIO, "Input/output error; choose another path"),
    ],
)
@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_refusal_at_any_moment_keeps_the_old_file(tmp_path, monkeypatch, code, remedy, moment):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    target = tmp_path / "a.txt"
    target.write_text("old")
    if moment != "write":
        monkeypatch.setattr(os, moment, refuse)
    with pytest.raises(UserError) as caught, atomic_path(target) as temporary:
        temporary.write_text("new")
        if moment == "write":
            refuse()
    assert str(caught.value) == f"cannot write {target}: {remedy}"
    assert names(tmp_path) == ["a.txt"] and target.read_text() == "old"


def test_a_users_error_inside_stays_as_it_is(tmp_path):
    with pytest.raises(UserError, match="^--fps: 0$"), atomic_path(tmp_path / "a.txt"):
        raise UserError("--fps: 0")


@pytest.mark.parametrize(
    ("path", "part"),
    [
        (f"{'x' * 300}/a.txt", "the name is too long"),
        (f"a.{'x' * 300}", "the name is too long"),
        ("file/a.txt", "there is a file where a folder is needed"),
        ("", "there is a folder of that name"),
    ],
    ids=["long folder", "long suffix", "file as folder", "empty"],
)
def test_impossible_paths_are_told(tmp_path, monkeypatch, path, part):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(UserError, match=part):
        write_text(path, "x")
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    "stem", ["x" * 251, "\u6620" * 83, "\U0001f98b" * 62, "a b'\"#%"], ids=["ascii", "chinese", "emoji", "signs"]
)
def test_every_name_the_disk_allows_can_be_written(tmp_path, stem):
    write_bytes(tmp_path / f"{stem}.mp4", b"x")
    assert names(tmp_path) == [f"{stem}.mp4"]


def test_long_names_with_one_beginning_do_not_meet(tmp_path):
    first, second = tmp_path / ("x" * 200 + "1.txt"), tmp_path / ("x" * 200 + "2.txt")
    with atomic_path(first) as one, atomic_path(second) as two:
        one.write_text("1")
        two.write_text("2")
    assert (first.read_text(), second.read_text()) == ("1", "2")


def test_threads_that_write_one_name_leave_one_whole_file(tmp_path):
    target = tmp_path / "a.bin"
    contents = [bytes([number]) * 200_000 for number in range(8)]
    threads = [threading.Thread(target=write_bytes, args=(target, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() in contents
    assert names(tmp_path) == ["a.bin"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {1, 2})
    assert (tmp_path / "a.json").read_text() == "1\n" and names(tmp_path) == ["a.json"]

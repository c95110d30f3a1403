import json
import shutil

import numpy as np
import pytest

from mg.errors import UserError
from mg.trainers import checkpoint

POINTS_BEFORE = ("folder", "model", "optimizer", "ema", "state", "manifest")
POINTS_AFTER = ("renamed", "latest")


class Crash(BaseException):
    """The process ends here: nobody catches this."""


def write(output, step, keep_last=2, crash_at=None):
    def hook(point):
        if point == crash_at:
            raise Crash

    tensors = {name: {"w": np.full((3, 2), step, np.float32)} for name in ("model", "optimizer", "ema")}
    folder = checkpoint.save(output, step, tensors, {"updates": step}, hook=hook)
    checkpoint.prune(output, lambda steps: steps[-keep_last:], hook=hook)
    return folder


def steps(output):
    return sorted(path.name for path in output.glob("step-*"))


def test_what_is_written_is_read(tmp_path):
    folder = write(tmp_path, 12)
    found = checkpoint.newest(tmp_path)
    assert (found.folder, found.step, found.state) == (folder, 12, {"step": 12, "updates": 12})
    np.testing.assert_array_equal(found.tensors("ema")["w"], np.full((3, 2), 12, np.float32))
    assert (tmp_path / "LATEST").read_text() == "step-00000012\n"
    entries = json.loads((folder / "manifest.json").read_text())["files"]
    assert {entry["name"]: entry["bytes"] for entry in entries} == {
        path.name: path.stat().st_size for path in folder.iterdir() if path.name != "manifest.json"
    }


def test_an_empty_or_missing_folder_has_no_checkpoint(tmp_path):
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "absent") is None


@pytest.mark.parametrize("point", POINTS_BEFORE)
def test_a_crash_before_the_rename_leaves_the_previous_checkpoint(tmp_path, point):
    write(tmp_path, 1)
    with pytest.raises(Crash):
        write(tmp_path, 2, crash_at=point)
    assert checkpoint.newest(tmp_path).step == 1
    assert (tmp_path / "step-00000002.tmp").is_dir()
    write(tmp_path, 2)  # what the crash left behind is in nobody's way
    assert checkpoint.newest(tmp_path).step == 2
    assert steps(tmp_path) == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("point", POINTS_AFTER)
def test_a_crash_after_the_rename_has_the_new_checkpoint(tmp_path, point):
    write(tmp_path, 1)
    with pytest.raises(Crash):
        write(tmp_path, 2, crash_at=point)
    assert checkpoint.newest(tmp_path).step == 2


def truncate(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("harm", [truncate, flip_a_bit, lambda path: path.unlink()], ids=["cut", "flip", "gone"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, name, harm):
    write(tmp_path, 1)
    harm(write(tmp_path, 2) / name)
    assert checkpoint.newest(tmp_path).step == 1


@pytest.mark.parametrize("harm", [truncate, lambda path: path.unlink()], ids=["cut", "gone"])
def test_a_folder_without_a_whole_manifest_is_passed_over(tmp_path, harm):
    write(tmp_path, 1)
    harm(write(tmp_path, 2) / "manifest.json")
    assert checkpoint.newest(tmp_path).step == 1


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path):
    truncate(write(tmp_path, 2) / "model.safetensors")
    write(tmp_path, 2)
    assert checkpoint.newest(tmp_path).step == 2


def test_only_the_newest_valid_ones_are_kept(tmp_path):
    for step in (1, 2, 3):
        write(tmp_path, step, keep_last=2)
    truncate(tmp_path / "step-00000003" / "model.safetensors")
    write(tmp_path, 10, keep_last=2)
    assert steps(tmp_path) == ["step-00000002", "step-00000003", "step-00000010"]  # 3 is damaged and does not count


def test_nothing_is_deleted_before_the_new_one_is_committed(tmp_path):
    for step in (1, 2):
        write(tmp_path, step, keep_last=1)
    with pytest.raises(Crash):
        write(tmp_path, 3, keep_last=1, crash_at="manifest")
    assert "step-00000002" in steps(tmp_path)


@pytest.mark.parametrize("point", ["prune", "pruned"])
def test_a_crash_while_deleting_leaves_the_newest_and_nothing_that_looks_whole(tmp_path, point):
    write(tmp_path, 1)
    write(tmp_path, 2)
    with pytest.raises(Crash):
        write(tmp_path, 3, crash_at=point)
    assert checkpoint.newest(tmp_path).step == 3
    left = {"prune": "step-00000001", "pruned": "step-00000001.tmp"}[point]
    assert steps(tmp_path) == [left, "step-00000002", "step-00000003"]
    write(tmp_path, 4)
    assert steps(tmp_path) == ["step-00000003", "step-00000004"]


def test_a_damaged_checkpoint_of_the_right_size_is_replaced_or_set_aside(tmp_path):
    write(tmp_path, 1)
    flip_a_bit(write(tmp_path, 2) / "model.safetensors")
    checkpoint.set_aside(tmp_path, beyond=1)
    assert steps(tmp_path) == ["step-00000001", "step-00000002.damaged"]
    flip_a_bit(write(tmp_path, 2) / "model.safetensors")
    write(tmp_path, 2)
    assert checkpoint.newest(tmp_path).step == 2
    assert steps(tmp_path) == ["step-00000001", "step-00000002", "step-00000002.damaged"]


def test_too_little_space_is_told_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    needed = 3 * 6 * 4 + (1 << 20)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    with pytest.raises(UserError, match=r"a checkpoint needs 1.0 MB, the disk has 1.0 MB left; free some space"):
        write(tmp_path, 1)
    assert steps(tmp_path) == []
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage._replace(free=needed))
    write(tmp_path, 1)


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    write(tmp_path, 1)

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "rename", full)
    with pytest.raises(UserError, match="step-00000002: cannot write the checkpoint .No space left") as caught:
        write(tmp_path, 2)
    assert "\n" not in str(caught.value)
    assert steps(tmp_path) == ["step-00000001"]


def test_differences_are_found_by_leaf():
    before = {"model": {"ch": 32, "layers": [1, 2]}, "seed": 0, "data": "a.csv"}
    same = {"model": {"ch": 32, "layers": (1, 2)}, "seed": 0, "data": "a.csv"}
    other = {"model": {"ch": 64, "layers": [1, 2]}, "data": "a.csv", "new": 1}
    assert checkpoint.differences(before, same) == []
    assert checkpoint.differences(before, other) == [("model.ch", 32, 64), ("new", None, 1), ("seed", 0, None)]

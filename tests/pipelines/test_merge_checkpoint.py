"""Checkpoints made whole and divided again: the bits that a run would have written."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from mg.errors import UserError
from mg.parallel.pieces import dims_of
from mg.pipelines.merge_checkpoint import merge_checkpoint
from mg.trainers import checkpoint
from mg.weights import LazyWeights

sys.path.insert(0, str(Path(__file__).parents[1] / "trainers"))
from sharded_toy import arrays, save  # noqa: E402

LAYOUTS = ["zero=4", "data=2,zero=3", "zero=2,tensor=3", "data=2,tensor=2", "data=1"]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_merging_gives_the_bits_of_one_process_and_dividing_those_of_many(tmp_path, layout):
    dims = dims_of(layout)
    divided = save(tmp_path / "many", 7, dims)[0]
    whole = checkpoint.save(tmp_path / "one", 7, arrays(7), {"updates": 7})
    merged = merge_checkpoint(tmp_path / "many", tmp_path / "merged")
    assert merged["folder"] == tmp_path / "merged" / "step-00000007" and merged["step"] == 7
    assert contents(merged["folder"]) == contents(whole)
    split = merge_checkpoint(whole, tmp_path / "split", dims)["folder"]
    assert contents(split) == contents(divided)
    again = merge_checkpoint(split, tmp_path / "again", dims_of("zero=5"))["folder"]  # from layout to layout
    assert contents(merge_checkpoint(again, tmp_path / "last")["folder"]) == contents(whole)


def test_one_tensor_at_a_time_is_read(tmp_path, monkeypatch):
    """The largest has 30 elements; nothing is read that is longer, and nothing twice."""
    save(tmp_path / "many", 7, dims_of("zero=4"))
    read = []
    inner = LazyWeights._read

    def counted(self, name, skipped, shape):
        read.append(int(np.prod(shape)))
        return inner(self, name, skipped, shape)

    monkeypatch.setattr(LazyWeights, "_read", counted)
    merge_checkpoint(tmp_path / "many", tmp_path / "merged")
    merge_checkpoint(tmp_path / "merged", tmp_path / "split", dims_of("zero=4"))
    size = sum(array.size for group in arrays(7).values() for array in group.values())
    assert max(read) <= 30 and sum(read) == 2 * size


def test_what_is_there_is_not_written_over(tmp_path):
    save(tmp_path, 7, dims_of("zero=2"))
    with pytest.raises(UserError, match="step-00000007: there is a checkpoint of this step already; choose another"):
        merge_checkpoint(tmp_path, tmp_path)


def test_what_a_training_is_writing_there_is_left_alone(tmp_path):
    save(tmp_path / "many", 7, dims_of("zero=2"))
    (tmp_path / "out" / "step-00000009.tmp").mkdir(parents=True)
    merge_checkpoint(tmp_path / "many", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("step-*")) == ["step-00000007", "step-00000009.tmp"]


def test_a_damaged_source_is_refused_and_nothing_written(tmp_path):
    folder = save(tmp_path / "many", 7, dims_of("zero=2"))[0]
    (folder / "model-00001.safetensors").unlink()
    with pytest.raises(UserError, match="incomplete or damaged .model-00001.safetensors: No such file"):
        merge_checkpoint(folder, tmp_path / "out")
    with pytest.raises(UserError, match="there is no valid checkpoint; give a run's folder or one of its step-"):
        merge_checkpoint(tmp_path / "many", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_break_in_the_middle_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    save(tmp_path / "many", 7, dims_of("zero=2"))

    def broken(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint.os, "rename", broken)
        merge_checkpoint(tmp_path / "many", tmp_path / "out")
    assert checkpoint.newest(tmp_path / "out") is None
    merge_checkpoint(tmp_path / "many", tmp_path / "out")
    assert checkpoint.newest(tmp_path / "out").step == 7


def test_a_tensor_that_cannot_be_divided_is_refused(tmp_path):
    whole = checkpoint.save(tmp_path / "one", 7, arrays(7), {})
    with pytest.raises(UserError, match=r"tensor=4 cannot divide layers.0.mlp.*, 6 along axis [01]; choose a divisor"):
        merge_checkpoint(whole, tmp_path / "split", dims_of("tensor=4"))
    assert not (tmp_path / "split").exists()


@pytest.fixture
def tool(root, monkeypatch, capsys):
    """Run the tool: tool(*arguments) -> (exit code, output, errors)."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["merge_checkpoint.py", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(root / "tools" / "merge_checkpoint.py"), run_name="__main__")
        return end.value.code, *capsys.readouterr()

    return call


def test_the_command_line(tool, tmp_path):
    checkpoint.save(tmp_path / "one", 7, arrays(7), {})
    code, out, _ = tool(tmp_path / "one", tmp_path / "split", "--split", "data=1,zero=4")
    assert (code, out) == (0, f"{tmp_path}/split/step-00000007: 15 tensors in 12 files\n")
    code, out, _ = tool(tmp_path / "split", tmp_path / "back")
    assert (code, out) == (0, f"{tmp_path}/back/step-00000007: 15 tensors in 3 files\n")
    assert contents(tmp_path / "back" / "step-00000007") == contents(tmp_path / "one" / "step-00000007")
    code, _, err = tool(tmp_path / "one", tmp_path / "x", "--split", "zero=four")
    assert code == 2 and err.startswith("error: layout 'zero=four'") and err.count("\n") == 1
    code, _, err = tool(tmp_path / "one")
    assert code == 2 and err == "error: the following arguments are required: OUTPUT; see --help\n"

"""tools/average_weights.py: the command line around the averaging."""

import runpy
import sys

import numpy as np
import pytest

from mg.weights import read_weights, write_weights


@pytest.fixture
def tool(root, monkeypatch, capsys):
    """Run the tool: tool(*arguments) -> (exit code, output, errors)."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["average_weights.py", *map(str, args)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(root / "tools" / "average_weights.py"), run_name="__main__")
        return end.value.code, *capsys.readouterr()

    return call


def test_two_files(tool, tmp_path):
    for name, value in (("a", 1.0), ("b", 4.0)):
        write_weights(tmp_path / f"{name}.safetensors", {"w": np.full(3, value, np.float32)})
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    code, out, _ = tool(*files, "-t", tmp_path / "mean.safetensors")
    assert (code, out) == (0, f"{tmp_path}/mean.safetensors: mean of 2 files, 1 tensors each\n")
    np.testing.assert_array_equal(read_weights(tmp_path / "mean.safetensors")["w"], [2.5, 2.5, 2.5])


def test_a_mistake_is_one_line(tool, tmp_path):
    code, _, err = tool(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "-t", tmp_path / "c.safetensors")
    assert code == 2 and err == f"error: {tmp_path}/a.safetensors: there is no such file; check the path\n"
    code, _, err = tool(tmp_path / "a.safetensors")
    assert code == 2 and err.startswith("error: the following arguments are required: -t") and err.count("\n") == 1

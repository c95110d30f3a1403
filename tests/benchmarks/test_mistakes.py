"""A mistake on a benchmark's command line is one line."""

import runpy
import sys

import pytest

TIMED = ("llama_speed", "llama_tokens", "parallel_step", "tae_speed", "text_encoders", "text_to_video", "train_step")


@pytest.fixture
def last_line(root, monkeypatch, capsys):
    """Run a benchmark as a program: last_line(name, *arguments) -> what it ends with on standard error."""

    def run(name, *arguments):
        path = root / "benchmarks" / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        monkeypatch.syspath_prepend(str(path.parent))
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(path), run_name="__main__")
        assert end.value.code == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "WARNING" not in line]
        return line

    return run


@pytest.mark.parametrize("name", TIMED)
def test_nothing_is_timed_less_than_once(last_line, name):
    assert last_line(name, "--runs", "0") == "error: --runs 0: give at least 1"


def test_sizes_below_one(last_line):
    assert last_line("tae_memory", "--frames", "32", "0") == "error: --frames [32, 0]: give at least 1"
    assert last_line("llama_speed", "--latent", "0", "4", "4") == "error: --latent [0, 4, 4]: give at least 1"


def test_sizes_that_do_not_divide(last_line):
    assert last_line("parallel_step", "--width", "100") == "error: --width 100: give a multiple of 64"
    assert "--latent [1, 3, 4]: give an even height" in last_line("parallel_step", "--latent", "1", "3", "4")


def test_batches_below_one(last_line):
    assert last_line("loader", "--batches", "0") == "error: --batches 0: give at least 1"
    assert "did you mean --data.size" in last_line("loader", "--data.sise", "8")


def test_a_missing_pipeline(last_line):
    assert "nothere: there is no such folder" in last_line("text_to_video", "--pipeline", "nothere")


def test_every_benchmark_ends_as_the_scripts_do(root):
    for path in (root / "benchmarks").glob("*.py"):
        text = path.read_text("utf-8")
        if "__main__" in text:
            assert text.endswith('if __name__ == "__main__":\n    cli.run(main)\n'), path.name

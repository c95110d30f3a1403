"""scripts/launch.py and scripts/run_distributed.sh from the command line."""

import os
import subprocess
import sys

import pytest


@pytest.fixture
def worker(tmp_path):
    path = tmp_path / "worker.py"
    path.write_text("import sys; print(sys.argv[1:]); sys.exit(6)")
    return path


def test_options_after_the_script_are_the_scripts(run, worker, tmp_path):
    result = run("launch.py", "--nproc_per_node", 1, "--log_dir", tmp_path / "logs", worker, "--log_dir", "x")
    assert result.code == 6 and result.out == "['--log_dir', 'x']\n"
    assert result.err.count("rank 0 ended with exit code 6") == 1


def test_the_shell_script_starts_the_launcher(root, worker, tmp_path):
    command = [root / "scripts" / "run_distributed.sh", "1", "--log_dir", tmp_path / "logs", worker, "a"]
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=60, env={**os.environ, "PYTHON": sys.executable}
    )
    assert result.returncode == 6 and result.stdout == "['a']\n"


@pytest.mark.parametrize(("words", "message"), [
    (["--nproc_per_node", 2], "error: no script to run"),
    (["--nproc_per_node", 2, "missing.py"], "error: missing.py: no such script"),
    (["--nproc_per_node", 2, "--", "no-such-program"], "error: no-such-program: no such program"),
])  # fmt: skip
def test_mistakes_are_one_line(run, words, message):
    result = run("launch.py", *words)
    assert result.code == 2
    assert result.err.startswith(message) and result.err.count("\n") == 1

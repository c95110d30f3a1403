"""A command is started again as long as it gets on, and not when that would help nobody."""

import ctypes
import operator
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import pytest

from mg.config.supervise import SuperviseConfig
from mg.errors import UserError
from mg.parallel import supervise as room
from mg.parallel.supervise import newest_step, supervise

# Ends as the next word of the plan says, "CODE" or "CODE+" (after a new checkpoint) or "-SIGNAL"; counts its starts.
PROGRAM = """
import os, sys
from pathlib import Path
folder, plan = Path(sys.argv[1]), sys.argv[2].split(",")
starts = folder / "starts"
number = int(starts.read_text()) if starts.exists() else 0
starts.write_text(str(number + 1))
word = plan[number]
if word.endswith("+"):
    step = folder / f"step-{number + 1:08d}"
    step.mkdir()
    (step / "manifest.json").touch()
if word.startswith("-"):
    os.kill(os.getpid(), int(word[1:].rstrip("+")))
sys.exit(int(word.rstrip("+")))
"""


def run(folder, plan, **options):
    """Return the exit code and the number of starts."""
    config = SuperviseConfig(run_folder=str(folder), **{"pause_seconds": 0.001, **options})
    code = supervise(config, [sys.executable, "-c", PROGRAM, str(folder), plan])
    return code, int((folder / "starts").read_text())


@pytest.mark.parametrize("code", [0, 2, 3, 5])
def test_what_would_end_the_same_way_is_not_started_again(tmp_path, code):
    assert run(tmp_path, f"{code}") == (code, 1)


def test_crashes_hangs_and_ends_of_time_are_started_again_until_all_is_done(tmp_path):
    assert run(tmp_path, "75+,4,-9+,1,-15,75+,0") == (0, 7)


@pytest.mark.parametrize("plan, code", [("1,1,1,0", 1), ("4+,4,-9,-9,0", 137), ("75,75,75,0", 75), ("1,1+,1,4,1,0", 1)])
def test_without_progress_it_is_given_up(tmp_path, plan, code):
    assert run(tmp_path, plan, max_failures=3) == (code, len(plan.split(",")) - 1)


def test_pauses_grow_and_an_end_of_time_needs_none(tmp_path, monkeypatch):
    supervisor = room._Supervisor(SuperviseConfig(run_folder=str(tmp_path), pause_seconds=10), ["x"])
    assert [supervisor._pause(1, failures) for failures in (0, 1, 2, 3, 9)] == [10, 10, 20, 40, 600]
    assert supervisor._pause(75, 0) == 0 and supervisor._pause(75, 2) == 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_passed_on_and_is_the_end(tmp_path, root, number):
    program = (
        "import signal, sys, time\n"
        "from pathlib import Path\n"
        "for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):\n"
        "    signal.signal(number, lambda number, frame: (Path(sys.argv[1], str(number)).touch(), sys.exit(75)))\n"
        "Path(sys.argv[1], 'ready').touch()\n"
        "while True:\n"  # one long sleep would not be woken by a signal that came just before it
        "    time.sleep(0.1)\n"
    )
    command = [sys.executable, root / "scripts/supervise.py", "--run_folder", tmp_path, "--", sys.executable, "-c",
               program, tmp_path]  # fmt: skip
    process = subprocess.Popen(list(map(str, command)), cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=30) == 75
    assert (tmp_path / str(int(number))).exists()


def test_a_signal_that_comes_just_before_a_wait_is_passed_on(tmp_path, monkeypatch):
    """Python notes it and calls the handler at the next instruction, which comes after the wait."""

    class Process(subprocess.Popen):
        def wait(self, timeout=None):
            if not (tmp_path / "sent").exists():
                (tmp_path / "sent").touch()
                raised = partial(ctypes.PyDLL(None)["raise"], signal.SIGTERM)
                slept = partial(time.sleep, 20 if timeout is None else timeout)
                list(map(operator.call, (raised, slept)))  # no instruction of Python's between the two
            return super().wait(timeout)

    monkeypatch.setattr(room.subprocess, "Popen", Process)
    start = time.monotonic()
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert supervise(SuperviseConfig(run_folder=str(tmp_path)), command) == 128 + signal.SIGTERM
    assert time.monotonic() - start < 15


def test_a_signal_ends_a_pause(tmp_path):
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    start = time.monotonic()
    assert run(tmp_path, "1,0", pause_seconds=60) == (1, 1)
    timer.join()
    assert time.monotonic() - start < 30


def test_progress_is_the_newest_committed_checkpoint(tmp_path):
    assert newest_step(tmp_path) == newest_step(tmp_path / "absent") == -1
    for name in ("step-00000007", "step-00000012", "step-00000020.tmp", "step-00000030.damaged"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").touch()
    (tmp_path / "step-00000040").mkdir()
    assert newest_step(tmp_path) == 12


@pytest.mark.parametrize(
    "options, command, words",
    [
        ({}, [], "there is no command to run; give it after the options: scripts/train.py --config ..."),
        ({}, ["x.py"], "run_folder is missing, and the command has no --output_path; name the training's output "
         "folder"),
        ({"run_folder": "r"}, ["/no/such/program"], "/no/such/program: cannot be started (No such file or directory); "
         "check the command"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_told(options, command, words):
    with pytest.raises(UserError) as caught:
        supervise(SuperviseConfig(**options), command)
    assert str(caught.value) == words


@pytest.mark.parametrize("words", [["--output_path", "a/b"], ["--output_path=a/b"]])
def test_the_folder_is_taken_from_the_command(words):
    assert str(room._Supervisor(SuperviseConfig(), ["train.py", *words])._folder) == "a/b"


def test_values_out_of_range_are_named():
    with pytest.raises(UserError, match="^max_failures=0: give at least 1$"):
        SuperviseConfig(max_failures=0)
    with pytest.raises(UserError, match="^pause_seconds=-1: give a number of seconds, 0 or above$"):
        SuperviseConfig(pause_seconds=-1)

import json
import os
import subprocess
import sys
import time

import pytest
from trainer_toy import toy_trainer

from mg.trainers.watchdog import Watchdog

HANGS = """
import ctypes, sys, time
from pathlib import Path
from mg.trainers.watchdog import Watchdog

def stuck_in_python():
    time.sleep(60)

def stuck_in_c():
    ctypes.PyDLL(None).sleep(60)  # PyDLL keeps Python's lock: no other thread of Python runs meanwhile

with Watchdog(Path(sys.argv[2]), 0.4, 20.0, on_hang=lambda text: print(text, flush=True)) as watchdog:
    watchdog.begin(6)
    watchdog.step(7)
    globals()[sys.argv[1]]()
"""

TRAINS = """
import sys, time
from trainer_toy import ToySource, toy_trainer

class Stuck(ToySource):
    def batch(self, index):
        if index == 5:
            time.sleep(60)
        return super().batch(index)

toy_trainer(sys.argv[1], 8, Stuck(), step_timeout=1.0, long_timeout=60.0, save_every=1).fit()
"""


def program(text, *args):
    here = os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *(path for path in sys.path if path)])}
    command = [sys.executable, "-c", text, *map(str, args)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_a_hang_ends_the_process_and_says_where(tmp_path):
    result = program(HANGS, "stuck_in_python", tmp_path)
    assert result.returncode == 4, result.stderr
    assert result.stdout == "no end of phase 'step' after step 7 within 0.4 s\n"
    text = (tmp_path / "hang-rank0.txt").read_text()
    assert "no end of phase 'step' after step 7" in text and "in stuck_in_python" in text and "in _watch" in text
    beat = json.loads((tmp_path / "heartbeat-rank0.json").read_text())
    assert beat["step"] == 7 and beat["phase"] == "step" and abs(beat["time"] - time.time()) < 100


def test_a_hang_that_holds_pythons_lock_ends_as_well(tmp_path):
    result = program(HANGS, "stuck_in_c", tmp_path)
    assert result.returncode == 1, result.stderr
    assert "in stuck_in_c" in (tmp_path / "hang-rank0.txt").read_text()


def test_a_training_that_hangs_ends_with_its_code_and_its_last_checkpoint(tmp_path):
    result = program(TRAINS, tmp_path)
    assert result.returncode == 4, result.stderr
    assert "exit code 4" in result.stderr
    assert (tmp_path / "LATEST").read_text() == "step-00000002\n"
    event = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])
    assert (event["event"], event["reason"]) == ("hang", "no end of phase 'step' after step 2 within 1 s")
    assert "in batch" in (tmp_path / "hang-rank0.txt").read_text()
    straight = toy_trainer(tmp_path / "straight", 4).fit()
    assert toy_trainer(tmp_path, 4).fit()["loss"] == straight["loss"]
    assert "in batch" in (tmp_path / "hang-rank0.txt").read_text()  # stays after the restart


def test_what_may_take_long_does_not_count_as_a_hang(tmp_path):
    def validate(step):
        time.sleep(1.5)
        return {}

    figures = toy_trainer(
        tmp_path, 2, step_timeout=1.0, long_timeout=60.0, validate=validate, validate_every=1
    ).fit()
    assert figures["step"] == 2
    assert not (tmp_path / "hang-rank0.txt").exists()
    beat = json.loads((tmp_path / "heartbeat-rank0.json").read_text())
    assert (beat["step"], beat["phase"], beat["pid"]) == (2, "end", os.getpid())


@pytest.mark.parametrize("limit", [0.0, 5.0])
def test_a_step_costs_next_to_nothing(tmp_path, limit):
    with Watchdog(tmp_path, limit, 10.0) as watchdog:
        start = time.perf_counter()
        for step in range(200):
            watchdog.step(step)
        assert (time.perf_counter() - start) / 200 < 0.01
    assert os.listdir(tmp_path) == ["heartbeat-rank0.json"]

"""scripts/train.py under scripts/launch.py: two processes train as one does, and meet the faults of one of them.

Two launches for everything. The seconds that the processes took to act alike are printed (pytest -s).
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import faulty_train
import numpy as np
import pytest

from mg.config import cli
from mg.config.train import TrainConfig
from mg.dataset.generation import GenerationSource
from mg.pipelines.train import train
from mg.pipelines.train_watch import FlowValidator
from mg.trainers.checkpoint import newest
from tests import tiny_training

LIMIT = 10.0
"""Seconds within which all processes must have done alike."""
SLOW = 8.0
"""Seconds that the second process is late."""
STEPS, BAD_STEP = 5, 3
"""Steps compared with those of one process, and the one whose second micro-batch is not finite on the second process;
the processes go on until they are stopped."""
VALIDATE_EVERY = 2
BATCHES = 2 * STEPS
FAULTS = {"bad": 2 * BAD_STEP - 1, "calm": BATCHES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_training.write(folder, "abcdef")
    return folder


def options(folder, output, mode, *more):
    return [
        *tiny_training.options(folder), "--mode", mode, "--output_path", str(output), "--workers", "0",
        "--data.batch_size", "4", "--train.accumulation", "2", "--loss.token_drop", "0.5", "--train.optimizer.lr",
        "1e-2", "--train.optimizer.eps", "1e-4", "--train.optimizer.clip_grad_norm", "0.2", "--valid.csv_path",
        f"{folder}/list.csv", "--valid.sampling_steps", "2", "--train.validate_every", str(VALIDATE_EVERY),
        *map(str, more),
    ]  # fmt: skip


class Launched:
    """Two processes that train, with half of the rows, the gradients and the optimizer's state each."""

    def __init__(self, root, logs, faults, argv):
        command = [
            sys.executable, "scripts/launch.py", "--nproc_per_node", "2", "--log_dir", str(logs), "--cluster_seconds",
            "100", faulty_train.__file__, json.dumps(faults), *argv, "--parallel.data", "1", "--parallel.zero", "2",
            "--parallel.zero_stage", "2",
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "GLOG_v": "3"}
        pipe = subprocess.PIPE
        self.logs = logs
        self.process = subprocess.Popen(command, cwd=root, env=environment, stdout=pipe, stderr=pipe, text=True)

    def ended(self):
        """Wait for the end; returns the exit code and when it was, and asserts that no process is left."""
        self.out, self.err = self.process.communicate(timeout=120)
        end = time.time()
        record = json.loads((self.logs / "node-0.json").read_text())
        assert not any(Path(f"/proc/{entry['pid']}").exists() for entry in record["processes"])
        return self.process.returncode, end

    def said(self, rank, words):
        """Return the number that a process printed after some words."""
        [line] = [line for line in self.log(rank).splitlines() if line.startswith(words)]
        return float(line.split()[-1])

    def log(self, rank):
        return (self.logs / f"rank-{rank:05d}.log").read_text()


@pytest.fixture(scope="module")
def runs(root, folder, tmp_path_factory):
    """The run of one process, and that of two until it was stopped: folders, launcher, times of signal and end, and
    what the validations of the one have counted."""
    place = tmp_path_factory.mktemp("runs")
    one, two, told = place / "one", place / "two", []
    started = Launched(root, place / "logs", {**FAULTS, "slow": SLOW}, options(folder, two, "graph",
                       "--train.steps", 10000, "--train.save_every", 10000))  # fmt: skip
    try:
        with pytest.MonkeyPatch.context() as patch:  # meanwhile, here
            patch.setattr(GenerationSource, "batch", faulty_train.faulty(GenerationSource.batch, FAULTS))
            patch.setattr(FlowValidator, "__call__", faulty_train.counted(FlowValidator.__call__, told.append))
            train(cli.parse(TrainConfig, options(folder, one, "pynative", "--train.steps", STEPS)))
        while len(rows(two)) <= STEPS and started.process.poll() is None:
            time.sleep(0.1)
        sent = time.time()
        started.process.send_signal(signal.SIGTERM)
        code, end = started.ended()
    finally:
        started.process.kill()
    assert code == 0, started.err + started.log(1)[-2000:]
    return one, two, started, (sent, end), told


def rows(output, name="metrics"):
    path = output / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
def test_two_processes_log_the_losses_of_one(runs):
    one, two, *_ = runs
    wanted, found, other = rows(one), rows(two)[:STEPS], rows(two / "ranks" / "1")[:STEPS]
    for name in ("loss", "grad_norm"):  # NaN where the step was bad
        expected, both, others = (np.array([row[name] for row in log], float) for log in (wanted, found, other))
        np.testing.assert_allclose(both, expected, rtol=0, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(others, both, err_msg=name)
        assert len(expected) == STEPS and np.nanstd(expected) > 1e-3


@pytest.mark.slow
def test_the_validation_of_two_processes_is_that_of_one(runs):
    """It is not divided: every process measures all videos, each of them once, in batches of four and of two."""
    one, two, started, _, told = runs
    steps = list(range(VALIDATE_EVERY, STEPS + 1, VALIDATE_EVERY))
    wanted = rows(one, "validation")[: len(steps)]
    for rank, output in enumerate((two, two / "ranks" / "1")):
        found = rows(output, "validation")[: len(steps)]
        for expected, figures in zip(wanted, found, strict=True):
            assert list(figures) == ["step", "val_loss", "val_loss_500", "val_loss_1000"]
            assert figures == pytest.approx(expected, rel=0, abs=1e-5)
        counted = [line for line in started.log(rank).splitlines() if line.startswith("validated at")]
        assert counted[: len(steps)] == told[: len(steps)]
    assert [row["step"] for row in wanted] == steps and wanted[0]["val_loss"] != wanted[1]["val_loss"]
    assert told[: len(steps)] == [f"validated at {step}: a.mp4 b.mp4 c.mp4 d.mp4 e.mp4 f.mp4" for step in steps]


@pytest.mark.slow
def test_a_step_that_is_not_finite_on_one_is_skipped_by_all(runs):
    one, two, *_ = runs
    for output in (one, two, two / "ranks" / "1"):
        assert [row["step"] for row in rows(output) if row["skipped"]] == [BAD_STEP]


@pytest.mark.slow
def test_all_wait_for_one_that_is_late(runs):
    _, two, started, *_ = runs
    late = started.said(1, "began at") - started.said(0, "began at")
    assert late > SLOW / 2
    starts = [rows(output, "events")[0]["time"] for output in (two, two / "ranks" / "1")]
    print(f"one process {late:.1f} s late: training starts {abs(starts[1] - starts[0]):.1f} s apart")
    assert abs(starts[1] - starts[0]) < LIMIT


@pytest.mark.slow
def test_sigterm_to_the_launcher_saves_and_ends(runs):
    _, two, _, (sent, end), _ = runs
    stops = [rows(output, "events")[-1] for output in (two, two / "ranks" / "1")]
    saved = max(stop["time"] for stop in stops) - sent
    print(f"SIGTERM to the launcher: saved after {saved:.1f} s, ended after {end - sent:.1f} s")
    assert saved < LIMIT and end - sent < 3 * LIMIT  # MindSpore's processes take their time to part
    last = rows(two)[-1]["step"]
    assert [(stop["event"], stop["step"]) for stop in stops] == [("stop", last)] * 2
    assert "SIGTERM" in {stop["reason"] for stop in stops}
    assert newest(two).step == last


@pytest.mark.slow
def test_one_that_is_killed_ends_all_and_the_last_checkpoint_counts(root, folder, runs, tmp_path):
    """The run goes on from its checkpoint, is killed a step after its second one, and one process goes on from that."""
    _, two, *_ = runs
    step = newest(two).step
    faults = {"kill": 2 * (step + 3) + 1}  # in the middle of step + 4
    more = ("--train.steps", step + 4, "--train.save_every", 1)
    started = Launched(root, tmp_path / "logs", faults, options(folder, two, "pynative", *more))
    try:
        code, end = started.ended()
    finally:
        started.process.kill()
    assert code == 128 + signal.SIGKILL, started.err
    seconds = end - started.said(1, "killed at")
    print(f"SIGKILL to one process: all ended after {seconds:.1f} s")
    assert seconds < LIMIT
    assert [row["step"] for row in rows(two)][step:] == [step + 1, step + 2, step + 3]
    assert newest(two).step == step + 3
    train(cli.parse(TrainConfig, options(folder, two, "pynative", *more)))
    assert [row["step"] for row in rows(two)][step:] == [step + 1, step + 2, step + 3, step + 4]

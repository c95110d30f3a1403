"""A run that is killed at any point of a save, or anywhere between, ends with the bits of one that was left alone."""

import json
import os
import signal
import subprocess
import sys

import kill_toy
import pytest

import mg.device
from mg.config.supervise import SuperviseConfig
from mg.parallel.supervise import supervise
from mg.weights import read_weights

BEFORE = ("folder", "model", "optimizer", "ema", "state", "manifest")
AFTER = ("renamed", "latest", "prune", "pruned")
BETWEEN = ("batch:5", "batch:6", "TERM:4", "inside:optimizer")
TIMES = ("step_time", "samples_per_s", "data_wait")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder with the runs `straight` and `killed`, and what was found after each kill, by place."""
    root = tmp_path_factory.mktemp("kill")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, kill_toy.__file__, str(root), *BEFORE, *AFTER, *BETWEEN]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return root, {row["place"]: row for row in json.loads(result.stdout.splitlines()[-1])}


def rows(folder, name):
    lines = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def test_every_kill_leaves_a_checkpoint_that_is_whole(runs):
    _, found = runs
    for place in BEFORE:  # two steps further by the first save of the process, the second is as if it had not begun
        row = found[place]
        assert (row["signal"], row["to"] - row["from"]) == (signal.SIGKILL, 2), row
        assert f"step-{row['to'] + 2:08d}.tmp" in row["left"], row
    for place in ("renamed", "latest"):  # the second save counts
        row = found[place]
        assert (row["signal"], row["to"] - row["from"]) == (signal.SIGKILL, 4), row
    for place in ("prune", "pruned"):
        row = found[place]
        assert row["signal"] == signal.SIGKILL and row["to"] - row["from"] >= 4, row
    assert not any(name.endswith(".tmp") for name in found["prune"]["left"])
    assert any(name.endswith(".tmp") and name < f"step-{found['pruned']['to']:08d}" for name in found["pruned"]["left"])
    for place in BETWEEN:
        row = found[place]
        killed = 0 if place == "TERM:4" else signal.SIGKILL
        assert (row["signal"], row["to"] - row["from"]) == (killed, 2), row


def test_the_end_is_the_same_to_the_bit(runs):
    root, _ = runs
    straight, killed = root / "straight", root / "killed"
    folders = sorted(path.name for path in straight.glob("step-*"))
    assert sorted(path.name for path in killed.glob("step-*")) == folders
    assert [int(folder[5:]) for folder in folders] == [8, 10, 20, 30, 40, 44]  # the best, milestones, the last
    for folder in folders:
        for name in ("model", "optimizer", "ema"):
            file = f"{folder}/{name}.safetensors"
            assert (killed / file).read_bytes() == (straight / file).read_bytes(), file
    for name in ("LATEST", "BEST"):
        assert (killed / name).read_bytes() == (straight / name).read_bytes()
    assert len(read_weights(straight / folders[-1] / "optimizer.safetensors")) == 2 * 5 + 1


def test_the_logs_have_every_step_once(runs):
    root, found = runs
    for name in ("metrics", "validation", "bad_steps"):
        straight = rows(root / "straight", name)
        assert rows(root / "killed", name) == straight and straight
    assert [row["step"] for row in rows(root / "killed", "metrics")] == list(range(1, kill_toy.STEPS + 1))
    events = [json.loads(line) for line in (root / "killed" / "events.jsonl").read_text().splitlines()]
    begun = [row["step"] for row in events if row["event"] in ("start", "resume")]
    assert begun[1:-1] == [row["from"] for row in list(found.values())[1:]]


def test_there_is_a_kill_at_every_point_of_a_save(tmp_path):
    points = []
    kill_toy.toy_trainer(
        tmp_path, 6, validate=kill_toy.validate, hook=points.append, **kill_toy.SETTINGS
    ).fit()
    assert set(points) == {*BEFORE, *AFTER}


def test_a_supervised_run_that_dies_again_and_again_comes_to_the_same_end(tmp_path, monkeypatch):
    monkeypatch.setenv("KILL_TOY_STEPS", "12")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    config = SuperviseConfig(run_folder=str(tmp_path / "run"), max_failures=1, pause_seconds=0.0)
    command = [sys.executable, kill_toy.__file__, str(tmp_path / "run"), "once", "batch:10"]  # in its fifth step
    assert supervise(config, command) == 0
    starts = [row["step"] for row in rows(tmp_path / "run", "events") if row["event"] in ("start", "resume")]
    assert starts == [0, 4, 8]
    mg.device.setup("CPU", "pynative")
    monkeypatch.setattr(kill_toy, "STEPS", 12)
    kill_toy.train(tmp_path / "straight", None)
    for name in ("model", "optimizer", "ema"):
        file = f"step-00000012/{name}.safetensors"
        assert (tmp_path / "run" / file).read_bytes() == (tmp_path / "straight" / file).read_bytes()
    assert rows(tmp_path / "run", "metrics") == rows(tmp_path / "straight", "metrics")

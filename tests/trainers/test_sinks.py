"""What the sinks are given over a run and its resumes, and that none of them can end a training."""

import json
import math
import struct
import subprocess
import sys
import types

import pytest
from trainer_toy import toy_trainer

from mg.config.logs import LogConfig, WandbConfig
from mg.errors import UserError
from mg.trainers.runlog import RunLog

OFFLINE = LogConfig(wandb=WandbConfig(mode="offline", project="p"))


class UsageError(Exception):
    pass


class FakeWandb(types.ModuleType):
    """Behaves as wandb does where it matters here: a step below the last one of its run is refused."""

    def __init__(self):
        super().__init__("wandb")
        self.errors = types.SimpleNamespace(UsageError=UsageError)
        self.inits, self.histories, self.finished = [], {}, 0
        self.init_error = self.log_error = None

    def init(self, **options):
        if self.init_error:
            raise self.init_error
        self.inits.append(options)
        history = self.histories.setdefault(options["id"], [])
        return types.SimpleNamespace(log=lambda values, step: self.log(history, values, step), finish=self.finish)

    def log(self, history, values, step):
        if self.log_error:
            raise self.log_error
        assert not history or step >= history[-1][0], "the step went back"
        history.append((step, values))

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def log_of(folder, step, config=OFFLINE):
    return RunLog(folder, step, 100, config, {"model": {"ch": 4}})


def run(folder, start, steps, config=OFFLINE):
    log = log_of(folder, start, config)
    for step in steps:
        log.row("metrics", step, {"loss": step / 8, "skipped": False, "note": "text"})
    return log


def test_a_run_and_its_resumes_are_one_run_with_rising_steps(tmp_path, wandb):
    folder = tmp_path / "my-run"
    folder.mkdir()
    run(folder, 0, (1, 2, 3, 4)).close()
    log = run(folder, 2, (3, 4, 5))
    log.row("validation", 5, {"val_psnr": math.nan})
    log.close()
    first, second = wandb.inits
    assert first["id"] == second["id"] == json.loads((folder / "wandb.json").read_text())["id"]
    assert (first["name"], first["project"], first["mode"], first["resume"]) == ("my-run", "p", "offline", "allow")
    assert first["config"] == {"model": {"ch": 4}} and first["dir"] == str(folder)
    (history,) = wandb.histories.values()
    losses = [(step, values["train/loss"]) for step, values in history if "train/loss" in values]
    assert losses == [(step, step / 8) for step in (1, 2, 3, 4, 5)]
    assert set(history[0][1]) == {"train/loss", "train/skipped"}  # numbers only
    assert history[-1][0] == 5 and math.isnan(history[-1][1]["validation/val_psnr"])
    assert wandb.finished == 2


def test_steps_sent_two_crashes_ago_are_not_sent_again(tmp_path, wandb):
    run(tmp_path, 0, range(1, 9)).close()
    run(tmp_path, 2, (3, 4)).close()  # metrics.jsonl ends at 4 now, the run there at 8
    run(tmp_path, 2, range(3, 11)).close()
    (history,) = wandb.histories.values()
    assert [step for step, _ in history] == list(range(1, 11))


def test_a_run_that_was_logged_elsewhere_before_sends_what_it_logs_from_now_on(tmp_path, wandb):
    run(tmp_path, 0, (1, 2, 3, 4), LogConfig()).close()
    run(tmp_path, 2, (3, 4)).close()
    (history,) = wandb.histories.values()
    assert [step for step, _ in history] == [3, 4]


def test_what_fails_in_a_sink_is_told_once_and_the_files_go_on(tmp_path, wandb, capsys):
    log = log_of(tmp_path, 0)

    class Strange(Exception):
        pass

    wandb.log_error = Strange("no\nroute")
    for step in (1, 2, 3):
        log.row("metrics", step, {"loss": 1.0})
    log.close()
    err = capsys.readouterr().err
    assert err.count("Weights & Biases failed (Strange: no route): this run goes on without it") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    assert wandb.finished == 0


def test_a_network_that_is_down_at_the_start_does_not_end_a_training(tmp_path, wandb, capsys):
    wandb.init_error = TimeoutError("no answer")
    run(tmp_path, 0, (1,)).close()
    assert "Weights & Biases failed (TimeoutError: no answer)" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl").read_text()


def test_wrong_options_and_missing_packages_are_the_users_to_mend(tmp_path, wandb, monkeypatch):
    wandb.init_error = UsageError("api_key not configured")
    with pytest.raises(UserError, match=r"train\.log\.wandb: api_key not configured; run: wandb login"):
        log_of(tmp_path, 0)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb is not installed; run: pip install wandb, or set train\.log\.wandb\."):
        log_of(tmp_path, 0)
    (tmp_path / "wandb.json").write_text("{")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with pytest.raises(UserError, match=r"wandb\.json: cannot be read"):
        log_of(tmp_path, 0)


def tensorboard_steps(folder, tag):
    """Read event files as TensorBoard does: a session log with status START voids its step and later ones."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    kept = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.session_log.status == SessionLog.START:
                kept = [(step, value) for step, value in kept if step < event.step]
            kept += [(event.step, value.simple_value) for value in event.summary.value if value.tag == tag]
    return kept


def test_tensorboard_needs_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"tensorboardX is not installed; run: pip install tensorboardX, or set"):
        RunLog(tmp_path, 0, 1, LogConfig(tensorboard=True))


def test_nothing_is_imported_unasked(tmp_path):
    code = (
        "import sys; from pathlib import Path; from mg.trainers.runlog import RunLog\n"
        f"log = RunLog(Path({str(tmp_path)!r}), 0, 1); log.row('metrics', 1, {{'loss': 1.0}}); log.close()\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('wandb', 'tensorboard', 'tensorboardX')])"
    )
    path = {"PYTHONPATH": ":".join(part for part in sys.path if part)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=path, timeout=60)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
    assert not (tmp_path / "tensorboard").exists() and not (tmp_path / "wandb.json").exists()


def test_the_trainer_feeds_the_sinks_over_a_resume_from_an_earlier_step(tmp_path, wandb):
    """The run is killed at step 5, after the checkpoint of step 4; both sinks get every step once."""
    log = LogConfig(tensorboard=True, wandb=WandbConfig(mode="offline"))

    class Crash(BaseException):
        pass

    def validate(step):
        if step == 6 and len(wandb.inits) == 1:
            raise Crash
        return {"psnr": 20.0 + step}

    options = dict(validate=validate, validate_every=3, save_every=4, log=log)
    with pytest.raises(Crash):
        toy_trainer(tmp_path, 8, **options).fit()
    toy_trainer(tmp_path, 8, **options).fit()
    (history,) = wandb.histories.values()
    steps = [step for step, values in history if "train/loss" in values]
    assert steps == list(range(1, 9))
    assert [(s, v) for s, v in history if "train/loss" not in v] == [
        (3, {"validation/psnr": 23.0}), (6, {"validation/psnr": 26.0}), (8, {"validation/psnr": 28.0}),
    ]
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [values["train/loss"] for _, values in history if "train/loss" in values] == [row["loss"] for row in logged]
    shown = tensorboard_steps(tmp_path / "tensorboard", "train/loss")
    assert shown == [(row["step"], pytest.approx(row["loss"])) for row in logged]
    assert [step for step, _ in tensorboard_steps(tmp_path / "tensorboard", "validation/psnr")] == [3, 6, 8]
    assert wandb.inits[0]["config"]["train"]["steps"] == 8


@pytest.mark.parametrize("options", [{"mode": "off"}, {"project": ""}, {"name": ""}])
def test_wrong_options_are_named(options):
    (name, value), = options.items()
    with pytest.raises(UserError, match=rf"wandb\.{name}='{value}' must"):
        WandbConfig(**options)

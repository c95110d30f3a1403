"""Settings that differ from those a checkpoint was trained with: refused, admitted, or told."""

import shutil
from dataclasses import replace

import pytest
from sources_toy import rows, toy
from trainer_toy import toy_config

import mg.device
from mg.config.guard import LossScaleConfig, SpikeConfig
from mg.config.trainer import OptimizerConfig, PlateauConfig, ScheduleConfig, TrainerConfig
from mg.errors import UserError
from mg.trainers import checkpoint
from mg.trainers.sources import changes, check_changes, free_changes


@pytest.fixture(autouse=True)
def pynative(graph_mode):
    mg.device.setup("CPU", "pynative")  # spares a compilation per run


def test_a_resume_with_other_settings_is_refused_unless_they_are_named(straight, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    optimizer = OptimizerConfig(lr=1e-3, weight_decay=0.05, clip_grad_norm=0.5)
    other = dict(optimizer=optimizer, fingerprint={"data": {"size": [4, 4], "list": "x" * 200}})
    with pytest.raises(UserError) as caught:
        toy(run, 12, **other).fit()
    said = str(caught.value)
    assert said.startswith(f"{run}/step-00000010: cannot resume, the run differs: data.list was None is 'xxx")
    assert "(202 characters), data.size was None is [4, 4], trainer.optimizer.lr was 0.03 is 0.001; " in said
    assert said.endswith("or name in train.allow_changes what may differ")
    with pytest.raises(UserError, match="the run differs: trainer.optimizer.lr was 0.03 is 0.001; choose"):
        toy(run, 12, allow_changes=("data", "optimizer.l"), **other).fit()
    toy(run, 12, allow_changes=("data", "train.optimizer.lr"), **other).fit()
    assert rows(run)[-1]["step"] == 12 and rows(run)[-1]["lr"] == 1e-3
    lines = [row for row in rows(run, "events") if row["event"] == "source"][-1]["lines"]
    assert lines[-1] == "unlike there, as train.allow_changes admits: trainer.optimizer.lr was 0.03 is 0.001"
    assert len(lines) == 4


def test_settings_that_an_earlier_version_did_not_know_were_as_their_defaults(straight):
    saved = checkpoint.newest(straight)
    config, mark = toy_config(10), saved.state["fingerprint"]
    del saved.state["config"]["schedule"], saved.state["config"]["optimizer"]["eps"]
    same = toy_config(20, log_every=7, schedule=TrainerConfig(steps=1).schedule)
    assert check_changes(saved, "there", mark, same) == []
    assert [name for name, _, _ in changes(saved, mark, config)] == ["trainer.schedule.warmup_steps"]


@pytest.mark.parametrize(
    "change, name, says",
    [
        ({"spike": SpikeConfig(action="skip")}, "spike.action", "was 'warn' is 'skip'"),
        ({"loss_scale": LossScaleConfig(window=5)}, "loss_scale.window", "was 1000 is 5"),
    ],
)
def test_what_the_guard_does_about_a_step_is_part_of_the_course(straight, change, name, says):
    saved = checkpoint.newest(straight)
    mark, config = saved.state["fingerprint"], toy_config(10, **change)
    for known in (True, False):
        if not known:
            del saved.state["config"][name.partition(".")[0]]  # written before there was such a section
            assert check_changes(saved, "there", mark, toy_config(10)) == []
        with pytest.raises(UserError, match=f"^there: cannot resume, the run differs: trainer.{name} {says}; "):
            check_changes(saved, "there", mark, config)
    assert check_changes(saved, "there", mark, replace(config, allow_changes=(name,))) == [f"trainer.{name} {says}"]
    free = toy_config(10, max_bad_steps=3, max_bad_fraction=0.5)
    assert check_changes(saved, "there", mark, free) == []


def test_a_new_number_of_steps_or_validations_is_told_where_the_learning_rate_depends_on_it(tmp_path):
    plateau = PlateauConfig(factor=0.5, monitor="figure")
    settings = dict(schedule=ScheduleConfig(name="cosine"), lr_reduce_on_plateau=plateau)
    toy(tmp_path, 2, **settings).fit()
    toy(tmp_path, 4, **{**settings, "validate_every": 1}).fit()
    lines = [row["lines"] for row in rows(tmp_path, "events") if row["event"] == "source"]
    assert lines[1][1:] == [
        "unlike there: train.steps was 2 is 4: the learning rate goes on as the schedule has it for the new number",
        "unlike there: train.validate_every was 2 is 1: the patience of lr_reduce_on_plateau counts validations, which "
        "are now others",
    ]
    saved = checkpoint.newest(tmp_path)
    assert free_changes(saved, toy_config(4, validate_every=1, **settings)) == []
    assert free_changes(saved, toy_config(9, validate_every=3)) == []  # a constant rate without plateau
    assert len(free_changes(saved, toy_config(9, schedule=ScheduleConfig(warmup_ratio=0.1)))) == 1
    del saved.state["config"]
    assert free_changes(saved, toy_config(9, validate_every=3, **settings)) == []

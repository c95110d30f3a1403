"""P9: mistakes are told before anything is compiled, in one exact line."""

import shutil
import sys
import time

import pytest
from trainer_toy import toy_config, toy_trainer

import mg.device
from mg.config.tae_train import TaeModelConfig, TaeTrainConfig
from mg.config.train import TrainConfig, TransformerConfig
from mg.config.trainer import TrainerConfig
from mg.errors import UserError
from mg.trainers import checkpoint

DISK = "{0}: a checkpoint needs 1.0 MB, the disk has 0.5 MB left; free some space or choose another output folder"
ORIGINS = (
    "train.init_from=runs/a and model.pretrained=b.safetensors: both name weights to begin with; give model.pretrained "
    "for a file of weights, or train.init_from for a run"
)


def full_disk(patch, output):
    usage = shutil.disk_usage(output)
    patch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage._replace(free=500_000))


def no_fsspec(patch, output):
    patch.setitem(sys.modules, "fsspec.core", None)


def numpy_two(patch, output):
    mg.device._mindspore.cache_clear()
    patch.setattr(mg.device.np, "__version__", "2.1.0")


CASES = {
    "nothing to train": ({"steps": 0}, None, "steps=0 must be 1 or above"),
    "no step between saves": ({"save_every": 0}, None, "save_every=0 must be 1 or above"),
    "more checkpoints than steps": ({"num_checkpoints": 9}, None, "num_checkpoints=9 must be at most steps=8"),
    "best of no validation": (
        {"keep_best": 1}, None, "validate_every=0 must be 1 or above where keep_best is not 0",
    ),
    "best without a list": (
        {"keep_best": 1, "validate_every": 1}, None,
        "keep_best needs a validation; name a validation list, or set it to 0",
    ),
    "time that runs backwards": (
        {"max_minutes": -1.0}, None, "max_minutes=-1.0 must be a finite number, 0 (off) or above",
    ),
    "long is shorter": (
        {"step_timeout": 60.0, "long_timeout": 30.0}, None,
        "long_timeout=30.0 must be a finite number, at least step_timeout=60.0",
    ),
    "a path for a URL": ({"remote": "/mnt/x"}, None, "remote='/mnt/x' must be a URL, such as file:///folder"),
    "no fsspec": (
        {"remote": "s3://b/run"}, no_fsspec,
        "train.remote=s3://b/run: fsspec is not installed; run: pip install 'mg[remote]'",
    ),
    "unknown protocol": ({"remote": "ftq://b/run"}, None, "train.remote=ftq://b/run: Protocol not known: ftq"),
    "no run to go on with": (
        {"resume_from": "{0}/none"}, None,
        "train.resume_from={0}/none: there is no valid checkpoint; give a run's folder or one of its step-*",
    ),
    "no run to begin with": (
        {"init_from": "{0}/none"}, None,
        "train.init_from={0}/none: there is no valid checkpoint; give a run's folder or one of its step-*",
    ),
    "full disk": ({}, full_disk, DISK),
    "numpy 2": ({}, numpy_two, "numpy 2.1.0: MindSpore needs numpy 1; run: pip install 'numpy<2'"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_bad_start_is_told_at_once(case, tmp_path, monkeypatch):
    options, prepare, words = CASES[case]
    options = {name: value.format(tmp_path) if isinstance(value, str) else value for name, value in options.items()}
    start, trainer = time.perf_counter(), None
    with monkeypatch.context() as patch, pytest.raises(UserError) as caught:
        if prepare is not None:
            prepare(patch, tmp_path)
        mg.device.setup("CPU", "graph")
        trainer = toy_trainer(tmp_path, **{"steps": 8, **options})
        trainer.fit()
    assert str(caught.value) == words.format(tmp_path)
    assert time.perf_counter() - start < 10
    assert trainer is None or trainer.compilations == 0
    assert not list(tmp_path.glob("*.jsonl")) and not list(tmp_path.glob("step-*"))


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as caught:
        toy_trainer(tmp_path / "file", 4)
    assert str(caught.value) == (
        f"--output_path: cannot write {tmp_path}/file: there is a file where a folder is needed; choose another path"
    )


def test_the_space_needed_is_that_of_the_checkpoint(tmp_path):
    trainer = toy_trainer(tmp_path, 1)
    estimated = sum(learner.checkpoint_bytes for learner in trainer._learners)
    trainer.fit()
    saved = checkpoint.newest(tmp_path)
    assert estimated == checkpoint.bytes_of({name: saved.tensors(name) for name in ("model", "optimizer", "ema")})


@pytest.mark.parametrize(
    "make",
    [
        lambda train: TaeTrainConfig(model=TaeModelConfig(pretrained="b.safetensors"), train=train),
        lambda train: TrainConfig(model=TransformerConfig(preset="tiny", pretrained="b.safetensors"), train=train),
    ],
    ids=["tae", "transformer"],
)
def test_weights_come_from_one_place(make):
    with pytest.raises(UserError) as caught:
        make(toy_config(4, init_from="runs/a"))
    assert str(caught.value) == ORIGINS
    assert make(TrainerConfig(steps=4)).train.init_from is None

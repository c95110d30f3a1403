import importlib
import re
import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from mg.config import cli
from mg.config.train import TrainConfig

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs").rglob("*.yaml"))
TAE = ROOT / "configs/tae/train"


def config_class(path):
    first = path.read_text("utf-8").split("\n", 1)[0]
    match = re.fullmatch(r"# class: (mg\.config\.\w+):(\w+)", first)
    assert match, f"{path}: the first line must be `# class: mg.config.<module>:<class>`, it is {first!r}"
    return getattr(importlib.import_module(match[1]), match[2])


def config(name):
    return cli.load(config_class(TAE / name), TAE / name)


def test_there_are_configs():
    assert {path.name for path in FILES} >= {"tiny.yaml", "mixed_256x256x16.yaml", "mixed_256x256x32.yaml"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_parses_into_its_class(path):
    kind = config_class(path)
    assert isinstance(cli.load(kind, path), kind)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_shows_a_command_that_parses(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, script, *argv = shlex.split(path.read_text("utf-8").splitlines()[1].removeprefix("# "))
    assert (ROOT / script).is_file()
    files = [value for flag, value in pairwise(argv) if flag in ("-c", "--config")]
    assert files[-1] == str(path.relative_to(ROOT)) and argv[0] in ("-c", "--config")
    config = cli.parse(config_class(path), argv)
    if isinstance(config, TrainConfig):  # the command runs as it stands: nothing that a run needs is missing
        assert config.csv_path and config.data.text.by_kind and config.data.tae_latent_folder
        if config.train.lr_reduce_on_plateau.factor != 1:
            assert config.valid.csv_path


def test_full_size_settings():
    x16 = config("mixed_256x256x16.yaml")
    assert (x16.model.preset, x16.model.pretrained) == ("sd35", "models/tae_vae2d.safetensors")
    assert (x16.data.size, x16.data.num_frames, x16.data.image_ratio) == ((256, 256), 16, 0.25)
    assert (x16.loss.reconstruction, x16.loss.kl_weight, x16.loss.outlier_weight) == ("l1", 1e-6, 0.0)
    optimizer, schedule = x16.train.optimizer, x16.train.schedule
    assert (optimizer.lr, optimizer.betas, optimizer.clip_grad_norm) == (1e-5, (0.9, 0.999), 1.0)
    assert (schedule.name, schedule.warmup_steps, x16.train.ema_decay) == ("constant", 1000, 0.9999)
    assert (x16.model.dtype, x16.model.use_recompute) == ("fp32", False)


def test_longer_clips_change_only_the_length_and_the_memory_savings():
    x16, x32 = config("mixed_256x256x16.yaml"), config("mixed_256x256x32.yaml")
    assert x32 == replace(
        x16,
        model=replace(x16.model, dtype="bf16", use_recompute=True),
        data=replace(x16.data, num_frames=32),
        valid=replace(x16.valid, num_frames=32),
    )

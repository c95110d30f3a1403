"""docs/training.md has every option of the training loop, with its default."""

import re
from dataclasses import fields

from mg.config.cli import _options
from mg.config.durability import DurabilityConfig
from mg.config.trainer import TrainerConfig


def rows(root):
    text = (root / "docs" / "training.md").read_text()
    return dict(re.findall(r"^\| `([\w.]+)` \| (.+?) \|", text, re.MULTILINE))


def test_every_option_is_described_and_no_other(root):
    elsewhere = {field.name for field in fields(DurabilityConfig)}  # docs/reliability.md; logs: docs/logs.md
    wanted = {name for name, _ in _options(TrainerConfig) if name.split(".")[0] not in elsewhere | {"log"}}
    assert set(rows(root)) == wanted


def test_the_defaults_are_those_of_the_code(root):
    config = TrainerConfig(steps=1000)
    for name, said in rows(root).items():
        value = config
        for part in name.split("."):
            value = getattr(value, part)
        if isinstance(value, (dict, tuple)) and not value:
            assert said == "none", name
        elif isinstance(value, tuple):
            assert tuple(float(part) for part in said.split(",")) == value, name
        else:
            assert (float(said) == value) if isinstance(value, (int, float)) else (said == value), name

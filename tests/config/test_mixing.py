"""Weights of several lists: ranges, and what they exclude."""

from dataclasses import replace

import pytest

from mg.config import cli
from mg.config.mixing import check_mix
from mg.config.tae_train import TaeTrainConfig
from mg.config.train import TrainConfig, TransformerConfig
from mg.errors import UserError


@pytest.mark.parametrize("weights", [{}, {"a": 0}, {"a": 1, "b": -1}, {"a": float("nan")}, {"a": 1e9}])
def test_weights_that_cannot_be_used_are_named(weights):
    check_mix("mix", None)
    check_mix("mix", {"a": 0.5, "b": 3})
    with pytest.raises(UserError, match="^mix"):
        check_mix("mix", weights)


@pytest.mark.parametrize("config", [TaeTrainConfig(), TrainConfig(model=TransformerConfig(preset="tiny"))])
def test_a_mix_takes_the_place_of_the_list(config, tmp_path):
    mixed = replace(config, mix={"a.csv": 3, "b.csv": 0.5})
    (tmp_path / "c.yaml").write_text(cli.dump(mixed))
    assert cli.load(type(config), tmp_path / "c.yaml") == mixed
    with pytest.raises(UserError, match="mix and csv_path"):
        replace(mixed, csv_path="c.csv")
    with pytest.raises(UserError, match="^mix: a.csv: 0"):
        replace(config, mix={"a.csv": 0.0})


def test_a_mix_on_the_command_line():
    argv = ["--mix", '{"a.csv": 3, "videos": 1}', "--data.coverage", "all", "--data.size", "8", "8"]
    config = cli.parse(TaeTrainConfig, [*argv, "--data.num_frames", "4", "--data.batch_size", "1"])
    assert config.mix == {"a.csv": 3.0, "videos": 1.0} and config.data.coverage == "all"

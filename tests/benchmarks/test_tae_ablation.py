"""Variants of the ablation differ from the first in their own option alone."""

import dataclasses
import importlib.util
import sys

import pytest

from mg.config import cli
from mg.errors import UserError


@pytest.fixture(scope="module")
def room(root):
    spec = importlib.util.spec_from_file_location("tae_ablation", root / "benchmarks" / "tae_ablation.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # the parser looks its source up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def settings(room, tmp_path):
    words = ["--valid.csv_path", "test.csv", "--model.preset", "tiny", "--output_path", str(tmp_path)]
    return cli.parse(room.Settings, [*words, "--train.steps", "7"])


def test_variants_differ_in_one_option(room, settings, tmp_path):
    folder = str(tmp_path / "x")
    first = room.config_of(settings, None, folder)
    assert (first.train.steps, first.model.preset, first.output_path) == (7, "tiny", folder)
    assert not isinstance(first, room.Settings)
    outlier = room.config_of(settings, "loss.outlier_weight=1e5", folder)
    assert outlier == dataclasses.replace(first, loss=dataclasses.replace(first.loss, outlier_weight=1e5))
    channels = room.config_of(settings, "model.z_channels=4", folder)
    assert channels == dataclasses.replace(first, model=dataclasses.replace(first.model, z_channels=4))


def test_mistakes_are_refused_before_anything_is_trained(room, settings, tmp_path):
    with pytest.raises(UserError, match="loss.outlier_wait"):
        room.config_of(settings, "loss.outlier_wait=1", str(tmp_path / "x"))
    with pytest.raises(UserError, match="--variants kl: give option=value"):
        dataclasses.replace(settings, variants=("kl",))
    with pytest.raises(UserError, match="--valid.csv_path is missing"):
        cli.parse(room.Settings, [])
    with pytest.raises(UserError, match="z_channels=0 must be 1 or above"):
        room.config_of(settings, "model.z_channels=0", str(tmp_path / "x"))


def test_table_has_the_columns_that_are_measured(room):
    rows = [{"variant": "first", "rec": 0.1234, "val_psnr": 20.5, "seconds": 3}]
    rows.append({"variant": "b", "rec": 0.5, "seconds": 4})
    assert room.table(rows).splitlines() == [
        "| variant | rec | val_psnr | seconds |",
        "|---|---|---|---|",
        "| first | 0.1234 | 20.5 | 3 |",
        "| b | 0.5 |  | 4 |",
    ]

"""Both halves of the training step's benchmark do the same: only then are their times comparable."""

import importlib
from dataclasses import replace

import numpy as np
import pytest

from mg.models.tae import PRESETS

SMALL = {
    "ch": 4, "ch_mult": [1, 2], "num_res_blocks": 1, "norm_groups": 2,
    "temporal_downsample_level": [0], "temporal_upsample_level": [1],
}  # fmt: skip


@pytest.fixture
def bench(root, monkeypatch):
    """The benchmark as a module, with a preset small enough to compile quickly."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    monkeypatch.setitem(PRESETS, "tiny", {**PRESETS["tiny"], **SMALL})
    return importlib.import_module("train_step")


@pytest.fixture
def config(bench, root):
    """Sizes of the benchmark, with a KL weight that shows in an update."""
    flags = ["--config", str(root / "configs/tae/train/tiny.yaml"), "--frames", "4", "--size", "8", "--batch_size", "2"]
    found = bench.settings(bench.arguments(flags))
    return replace(found, loss=replace(found.loss, kl_weight=0.1))


@pytest.mark.parametrize("mode, frames", [pytest.param("graph", 4, marks=pytest.mark.slow), ("pynative", 1)])
def test_weights_and_averages_agree_after_two_updates(bench, config, mode, frames):
    config = replace(config, mode=mode, data=replace(config.data, num_frames=frames))
    optimizer = config.train.optimizer
    assert (optimizer.name, optimizer.clip_grad_norm, config.loss.reconstruction) == ("adamw", 0.5, "l2")
    (ours, report), (theirs, _) = (half(config, 2) for half in (bench.ours, bench.twin))
    mine, other = ours()(), theirs()()
    assert mine.shape == other.shape
    weights, averages = np.split(other, 2)
    # An AdamW step moves a weight by about the learning rate, whatever the size of its gradient.
    assert np.median(np.abs(weights)) > 0.5 * optimizer.lr
    assert 0.1 * np.linalg.norm(weights) < np.linalg.norm(averages) < np.linalg.norm(weights)
    # Not closer: some gradients, as those of keys' biases, are nothing but rounding errors, and AdamW enlarges them.
    assert np.linalg.norm(mine - other) < 5e-3 * np.linalg.norm(other)
    ours()
    graphs = 3 if mode == "graph" else 0
    assert report().startswith("gradient ") and f"; {graphs} graphs compiled; peak memory " in report()


def test_every_term_shows_in_the_updates(bench, config):
    """Without that a twin that left out a term would be as close as one that has it."""
    before = bench.twin(config, 2)[0]()()
    for name, value in {"reconstruction": "l1", "kl_weight": 0.0}.items():
        other = bench.twin(replace(config, loss=replace(config.loss, **{name: value})), 2)[0]()()
        assert np.linalg.norm(other - before) > 0.05 * np.linalg.norm(before), name


def test_configuration_and_sizes_are_those_asked_for(bench, root):
    found = bench.settings(bench.arguments(["--config", str(root / "configs/tae/train/tiny_128.yaml"), "--size", "64"]))
    assert (found.data.size, found.data.num_frames, found.data.batch_size) == ((64, 64), 32, 1)
    assert (found.train.optimizer.name, found.train.ema_decay) == ("adamw", 0.98)  # the twin has no SOAP

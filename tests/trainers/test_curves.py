"""Numbers do not drift: golden loss curves of both models, the same bits twice, the guard on both."""

import functools
import json

import curve_runs
import mindspore as ms
import numpy as np
import pytest

from mg.trainers.schedule import learning_rate
from mg.weights import read_weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """The folder of the full run of a model, trained when it is first asked for."""

    @functools.cache
    def train(model):
        ms.set_context(mode=ms.GRAPH_MODE)
        output = tmp_path_factory.mktemp(model)
        trainer = curve_runs.trainer(model, output)
        trainer.fit()
        assert trainer.compilations == 4
        return output

    return train


def bits(output, step, name="model"):
    arrays = read_weights(output / f"step-{step:08d}" / f"{name}.safetensors")
    return {key: value.tobytes() for key, value in arrays.items()}


@pytest.mark.parametrize("model", curve_runs.MODELS)
def test_the_loss_curve_is_the_golden_one(model, long_run):
    """If a change of the numbers is meant, write the files again: see tests/trainers/curve_runs.py."""
    golden = json.loads(curve_runs.golden_file(model).read_text())
    assert golden["config"] == curve_runs.config_hash(model), "the settings changed: write the golden curves again"
    found = curve_runs.losses(long_run(model))
    assert len(found) == len(golden["losses"]) == curve_runs.STEPS and golden["reason"]
    np.testing.assert_allclose(found, golden["losses"], rtol=golden["rtol"])
    assert np.mean(found[-3:]) < 0.95 * np.mean(found[:3])  # a curve that does not fall would say little


@pytest.mark.parametrize("model", curve_runs.MODELS)
def test_a_second_run_has_the_same_bits_and_its_bad_step_changes_nothing(model, long_run, tmp_path):
    output = long_run(model)
    trainer = curve_runs.trainer(model, tmp_path, bad=10, steps=6, save_every=1, max_bad_steps=1)
    fit_as_the_long_run(trainer)
    assert curve_runs.losses(tmp_path)[:5] == curve_runs.losses(output)[:5]
    for name in ("model", "optimizer", "ema"):
        assert bits(tmp_path, 5, name) == bits(output, 5, name)
        assert bits(tmp_path, 6, name) == bits(tmp_path, 5, name)
    (report,) = [json.loads(line) for line in (tmp_path / "bad_steps.jsonl").read_text().splitlines()]
    assert (report["step"], report["reason"]) == (6, "nonfinite")
    assert report["ids"] == ["10a", "10b", "11a", "11b"]


def fit_as_the_long_run(trainer):
    """A schedule knows the length of its run; here the first steps are to be those of the long one."""
    schedule, peak = trainer.config.schedule, trainer.config.optimizer.lr
    trainer._rate = lambda learner: learning_rate(trainer.step, peak, schedule, curve_runs.STEPS)
    trainer.fit()


def test_another_seed_is_another_run(long_run, tmp_path):
    curve_runs.trainer("transformer", tmp_path, seed=1, steps=1).fit()
    assert abs(curve_runs.losses(tmp_path)[0] - curve_runs.losses(long_run("transformer"))[0]) > 1e-4

"""Guidance: its formula, its two modes, its schedules."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from mg.errors import UserError
from mg.schedulers import GuidanceConfig, guide, guided, solve, time_grid

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 4, 2, 3, 3)).astype(np.float32)
TEXT = [RNG.standard_normal((3, 5, 4)).astype(np.float32), RNG.integers(0, 2, (3, 5)).astype(np.float32)]
EMPTY = [RNG.standard_normal((3, 5, 4)).astype(np.float32), RNG.integers(0, 2, (3, 5)).astype(np.float32)]


class Network:
    """A velocity that depends on every argument, row by row; remembers the batch sizes it saw."""

    def __init__(self):
        self.batches = []

    def __call__(self, x, level, text, mask):
        self.batches.append(len(x))
        pooled = (text * mask[..., None]).sum(1)  # (b, 4)
        return np.sin(x + pooled[:, :, None, None, None]) * np.float32(1 + level / 1000)


@pytest.mark.parametrize("scale", [-1.0, 0.3, 2.5, 7.5])
def test_formula(scale):
    conditional, unconditional = X[0].astype(np.float64), X[1].astype(np.float64)
    expected = (1 - scale) * unconditional + scale * conditional
    np.testing.assert_allclose(guided(conditional, unconditional, scale), expected, atol=1e-12)


def test_one_is_conditional_and_zero_unconditional_exactly():
    np.testing.assert_array_equal(guided(X[0], X[1], 1.0), X[0])
    np.testing.assert_array_equal(guided(X[0], X[1], 0), X[1])
    per_sample = guided(X[:2], X[1:], np.float32([1, 0]).reshape(2, 1, 1, 1, 1))
    np.testing.assert_allclose(per_sample, np.stack([X[0], X[2]]), atol=1e-6)


class _Guided(nn.Cell):
    def construct(self, conditional, unconditional, scale):
        return guided(conditional, unconditional, 7.5), guided(conditional, unconditional, scale)


def test_in_a_graph_it_is_that_of_numpy():
    results = _Guided()(ms.Tensor(X[:2]), ms.Tensor(X[1:]), ms.Tensor(np.float32(2.5)))
    for result, scale in zip(results, (7.5, 2.5), strict=True):
        np.testing.assert_allclose(result.asnumpy(), guided(X[:2], X[1:], scale), atol=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_batched_is_sequential_is_the_formula(schedule):
    results = {}
    for mode, sizes in (("batched", [6]), ("sequential", [3, 3])):
        network = Network()
        config = GuidanceConfig(scale=7.5, mode=mode, schedule=schedule)
        results[mode] = guide(network, config, TEXT, EMPTY)(X, 400.0)
        assert network.batches == sizes
    np.testing.assert_allclose(results["batched"], results["sequential"], atol=1e-6)
    network = Network()
    expected = guided(network(X, 400.0, *TEXT), network(X, 400.0, *EMPTY), config.scale_at(400.0))
    np.testing.assert_allclose(results["batched"], expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["batched", "sequential"])
def test_scales_one_and_zero_through_a_whole_sampling(mode):
    grid, network = time_grid("linear-quadratic", 6), Network()
    for scale, text in ((1.0, TEXT), (0.0, EMPTY)):
        plain = solve(lambda x, level, text=text: network(x, level, *text), X, grid)
        result = solve(guide(network, GuidanceConfig(scale=scale, mode=mode), TEXT, EMPTY), X, grid)
        np.testing.assert_allclose(result, plain, atol=1e-6)
    other = solve(guide(network, GuidanceConfig(scale=3, mode=mode), TEXT, EMPTY), X, grid)
    assert np.abs(other - plain).max() > 0.1


def test_scale_one_costs_one_half_and_needs_no_empty_prompt():
    network = Network()
    np.testing.assert_array_equal(guide(network, GuidanceConfig(), TEXT)(X, 500.0), network(X, 500.0, *TEXT))
    assert network.batches == [3, 3]


def test_schedules_rise_from_one_to_the_scale():
    levels = [1000, 750, 500, 250, 0]
    shown = {
        schedule: [GuidanceConfig(scale=5, schedule=schedule).scale_at(level) for level in levels]
        for schedule in ("constant", "linear", "cosine")
    }
    assert shown["constant"] == [5, 5, 5, 5, 5]
    assert shown["linear"] == pytest.approx([1, 2, 3, 4, 5])
    assert shown["cosine"] == pytest.approx([1, 1 + 4 * (1 - 0.5**0.5) / 2, 3, 1 + 4 * (1 + 0.5**0.5) / 2, 5])


def test_interval_is_inclusive_and_the_rest_costs_one_half():
    config = GuidanceConfig(scale=4, schedule="linear", start=800, stop=200)
    assert [config.scale_at(level) for level in (1000, 801, 800, 500, 200, 199, 0)] == [1, 1, 1, 2.5, 4, 1, 1]
    network = Network()
    velocity = guide(network, config, TEXT, EMPTY)
    np.testing.assert_array_equal(velocity(X, 900.0), Network()(X, 900.0, *TEXT))
    velocity(X, 800.0)
    velocity(X, 100.0)
    assert network.batches == [3, 6, 3]


def test_a_schedule_without_interval_keeps_one_shape():
    network = Network()
    solve(guide(network, GuidanceConfig(scale=3, schedule="linear"), TEXT, EMPTY), X, time_grid("linear", 4))
    assert network.batches == [6] * 4


def test_guidance_without_an_unconditional_half_is_one_clear_error():
    with pytest.raises(UserError, match=r"guidance scale=7.5 needs an encoded empty .* give one, or use scale=1"):
        guide(Network(), GuidanceConfig(scale=7.5), TEXT)


@pytest.mark.parametrize("mode", ["batched", "sequential"])
def test_halves_of_other_shapes_are_an_error(mode):
    with pytest.raises(ValueError, match="conditional text has shapes"):
        guide(Network(), GuidanceConfig(scale=2, mode=mode), TEXT, [EMPTY[0][:, :4], EMPTY[1]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": -1.0}, "scale=-1.0 must be a finite number"),
        ({"scale": float("nan")}, "scale=nan must be a finite number"),
        ({"mode": "both"}, "mode='both' must be one of batched, sequential"),
        ({"schedule": "sine"}, "schedule='sine' must be one of constant, linear, cosine"),
        ({"start": 200.0, "stop": 200.0}, "start=200.0, stop=200.0: noise levels"),
        ({"start": 1001.0}, "start=1001.0"),
    ],
)
def test_impossible_settings_are_named(options, message):
    with pytest.raises(UserError, match=message):
        GuidanceConfig(**options)

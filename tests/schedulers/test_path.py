"""Paths in float64: their ends, their derivatives, and the way back from what a network predicts."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from mg.errors import UserError
from mg.schedulers import PATHS, FlowMatching, VariancePreserving, tau_of
from mg.schedulers import path as path_module

SHAPE = (3, 4, 2, 5, 6)
INNER = (0.01, 0.2, 0.5, 0.77, 0.99)


@pytest.fixture
def x1():
    return np.random.default_rng(0).standard_normal(SHAPE) * 2 + 1


@pytest.fixture
def x0():
    return np.random.default_rng(1).standard_normal(SHAPE)


@pytest.mark.parametrize("sigma_min", [0.0, 1e-5, 0.1])
def test_ends_are_noise_and_data_with_the_least_noise(x1, x0, sigma_min):
    path = FlowMatching(sigma_min)
    np.testing.assert_array_equal(path.interpolate(x1, x0, 0.0), x0)
    np.testing.assert_allclose(path.interpolate(x1, x0, 1.0), x1 + sigma_min * x0, rtol=0, atol=1e-14)


def test_values_of_the_paper_formula():
    path = FlowMatching()
    assert path.interpolate(np.float64(3), np.float64(-2), 0.25) == pytest.approx(0.75 - 2 * (1 - 0.99999 * 0.25))
    assert path.velocity(np.float64(3), np.float64(-2)) == pytest.approx(3 + 2 * 0.99999)
    assert PATHS["ot"] == FlowMatching(1e-5) and PATHS["rectified"] == FlowMatching(0.0)


@pytest.mark.parametrize("tau", INNER)
@pytest.mark.parametrize("name", PATHS)
def test_velocity_is_the_derivative(x1, x0, name, tau):
    path, h = PATHS[name], 1e-5 * min(tau, 1 - tau)
    numerical = (path.interpolate(x1, x0, tau + h) - path.interpolate(x1, x0, tau - h)) / (2 * h)
    # The difference of two points of size 5 is good to 1e-15 / h.
    np.testing.assert_allclose(path.velocity(x1, x0, tau), numerical, rtol=1e-6, atol=max(1e-6, 1e-14 / h))


@pytest.mark.parametrize("tau", INNER)
@pytest.mark.parametrize("name", PATHS)
def test_endpoints_follow_from_the_target(x1, x0, name, tau):
    path = PATHS[name]
    data, noise = path.endpoints(path.target(x1, x0, tau), path.interpolate(x1, x0, tau), tau)
    np.testing.assert_allclose(data, x1, atol=1e-11)
    np.testing.assert_allclose(noise, x0, atol=1e-11)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_diffusion_keeps_the_variance_and_ends_near_noise_and_data(schedule):
    path = VariancePreserving(schedule)
    alpha, sigma = path.coefficients(np.linspace(0, 1, 101))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=1e-14)
    assert (np.diff(alpha) > 0).all() and (np.diff(sigma) < 0).all()
    # exp(-5) of data in the noise, as in DDPM: exp(-(0.1 + 20) / 4).
    assert alpha[0] == pytest.approx({"cosine": np.exp(-5), "linear": np.exp(-20.1 / 4)}[schedule], rel=1e-4)
    assert sigma[-1] == pytest.approx({"cosine": np.exp(-10), "linear": 0.0}[schedule], abs=1e-8)


def test_linear_schedule_is_the_limit_of_ddpm():
    betas = np.linspace(1e-4, 0.02, 1000)
    discrete = np.sqrt(np.cumprod(1 - betas))
    alpha, _ = VariancePreserving("linear").coefficients(1 - np.arange(1, 1001) / 1000)
    np.testing.assert_allclose(alpha, discrete, atol=2e-3)


def test_v_turns_with_the_cosine_path(x1, x0):
    """Salimans & Ho: v is the derivative with respect to the angle, so the velocity is a multiple of it."""
    path = PATHS["vp-cosine"]
    ratio = path.velocity(x1, x0, 0.3) / path.target(x1, x0, 0.3)
    np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-9)
    assert ratio.flat[0] == pytest.approx(-np.pi / 2, rel=0.01)


def test_tau_of_levels_broadcasts_over_a_batch(x1, x0):
    tau = tau_of(np.array([1000.0, 250.0, 0.0]), 5)
    assert tau.shape == (3, 1, 1, 1, 1) and tau.reshape(-1).tolist() == [0.0, 0.75, 1.0]
    mixed = FlowMatching(0.0).interpolate(x1, x0, tau)
    np.testing.assert_allclose(mixed[1], 0.75 * x1[1] + 0.25 * x0[1])
    np.testing.assert_array_equal(mixed[0], x0[0])


class _Noised(nn.Cell):
    def construct(self, x1, x0, timestep):
        tau = tau_of(timestep, x1.ndim)
        return path_module.interpolate(x1, x0, tau, 1e-5), path_module.velocity(x1, x0, 1e-5)


def test_flow_matching_in_a_graph_is_that_of_numpy(x1, x0):
    levels = np.float32([990, 400, 3])
    x1, x0 = x1.astype(np.float32), x0.astype(np.float32)
    x, target = _Noised()(ms.Tensor(x1), ms.Tensor(x0), ms.Tensor(levels))
    path = FlowMatching()
    np.testing.assert_allclose(x.asnumpy(), path.interpolate(x1, x0, tau_of(levels, 5)), atol=1e-6)
    np.testing.assert_allclose(target.asnumpy(), path.target(x1, x0), atol=1e-6)


@pytest.mark.parametrize("sigma_min", [-1e-5, 1.0, float("nan")])
def test_sigma_min_out_of_range(sigma_min):
    with pytest.raises(UserError, match=f"sigma_min={sigma_min!r} must be in"):
        FlowMatching(sigma_min)


def test_unknown_diffusion_is_named():
    with pytest.raises(UserError, match="schedule='sine' must be 'cosine' or 'linear'"):
        VariancePreserving("sine")
    with pytest.raises(UserError, match="predicts='x' must be 'v' or 'epsilon'"):
        VariancePreserving("cosine", "x")

"""Solvers on velocities whose solution is known."""

import numpy as np
import pytest

from mg.errors import NumericalAbort, UserError
from mg.schedulers import PATHS, FlowMatching, ddim, solve, time_grid
from mg.schedulers.grids import KINDS
from mg.schedulers.solvers import SOLVERS

SHAPE = (2, 4, 2, 3, 3)


@pytest.fixture
def data():
    return np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


@pytest.fixture
def noise():
    return np.random.default_rng(1).standard_normal(SHAPE).astype(np.float32)


@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", KINDS)
def test_oracle_velocity_returns_the_data(data, noise, kind, solver, steps):
    """The oracle sees x and the level alone, and answers as the network that has learned this one clip."""
    path = FlowMatching()

    def oracle(x, level):
        tau = 1.0 - level / 1000.0
        start = (x - tau * data) / (1.0 - (1.0 - path.sigma_min) * tau)
        return path.velocity(data, start)

    before = noise.copy()
    result = solve(oracle, noise, time_grid(kind, steps), solver)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, data, atol=1e-4)
    np.testing.assert_array_equal(noise, before)


def curved(x, level):
    """dx / dtau = x * cos(2 tau), solved by x0 * exp(sin(2 tau) / 2)."""
    return x * np.float32(np.cos(2 * (1 - level / 1000)))


@pytest.mark.parametrize(("solver", "ratio"), [("euler", 2), ("midpoint", 4)])
def test_order(noise, solver, ratio):
    exact = noise.astype(np.float64) * np.exp(np.sin(2.0) / 2)
    errors = [np.abs(solve(curved, noise, time_grid("linear", n), solver) - exact).max() for n in (8, 16, 32)]
    assert errors[0] / errors[1] == pytest.approx(ratio, rel=0.15)
    assert errors[1] / errors[2] == pytest.approx(ratio, rel=0.15)


@pytest.mark.parametrize(("solver", "calls"), [("euler", [1000, 600]), ("midpoint", [1000, 800, 600, 300])])
def test_levels_asked_and_callback(noise, solver, calls):
    asked, seen = [], []

    def velocity(x, level):
        assert x.dtype == np.float32
        asked.append(level)
        return np.zeros(SHAPE, np.float16)

    result = solve(velocity, noise, np.array([1000.0, 600.0, 0.0]), solver, lambda *step: seen.append(step))
    np.testing.assert_array_equal(result, noise)
    assert asked == calls and seen == [(1, 2), (2, 2)]


def test_state_is_fp32_also_for_a_network_in_fp16():
    """FP16 would lose each of these steps: 1024 + 0.1 is 1024 there."""
    start = np.full((1, 1), 1024, np.float32)
    result = solve(lambda x, level: np.full((1, 1), 10, np.float16), start, time_grid("linear", 100))
    np.testing.assert_allclose(result, 1034, atol=1e-2)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_state_stops_at_its_step(noise, bad):
    def velocity(x, level):
        return np.where((level < 600) & (x == x.max()), bad, 0).astype(np.float32)

    with pytest.raises(NumericalAbort, match=r"after sampling step 3 of 4 \(noise level 500\); check the weights"):
        solve(velocity, noise, time_grid("linear", 4))
    with pytest.raises(NumericalAbort, match="the noise to start from holds NaN or Inf"):
        solve(velocity, np.full(SHAPE, bad), time_grid("linear", 4))


@pytest.mark.parametrize("grid", [[1000], [], [1000, 1000, 0], [0, 1000], [1001, 0], [1000, -1], [1000, np.nan, 0]])
def test_a_grid_must_fall(noise, grid):
    with pytest.raises(ValueError, match="a grid of noise levels must fall strictly"):
        solve(curved, noise, np.array(grid))


def test_a_velocity_that_would_broadcast_is_an_error(noise):
    with pytest.raises(ValueError, match=r"the velocity has shape \(3, 3\)"):
        solve(lambda x, level: x[0, 0, 0], noise, time_grid("linear", 2))


def test_unknown_solver(noise):
    with pytest.raises(UserError, match="solver='heun': choose euler, midpoint"):
        solve(curved, noise, time_grid("linear", 2), "heun")


@pytest.mark.parametrize("name", PATHS)
def test_ddim_with_an_oracle_returns_the_data(data, noise, name):
    path = PATHS[name]

    def oracle(x, level):
        tau = 1.0 - level / 1000.0
        if isinstance(path, FlowMatching):
            alpha, sigma = tau, 1.0 - (1.0 - path.sigma_min) * tau
        else:
            alpha, sigma = path.coefficients(tau)
        return path.target(data, (x - alpha * data) / sigma, tau)

    # A diffusion path starts at alpha * data + sigma * noise with alpha near 0.0067.
    start = path.interpolate(data, noise, 0.0)
    np.testing.assert_allclose(ddim(path, oracle, start, time_grid("linear", 20)), data, atol=3e-4)


def test_ddim_on_the_straight_path_is_euler(noise):
    grid = time_grid("linear-quadratic", 12)
    np.testing.assert_allclose(ddim(FlowMatching(), curved, noise, grid), solve(curved, noise, grid), atol=1e-5)


def test_ddim_converges_to_the_flow_of_a_gaussian():
    """Data N(0, 0.5^2): the probability flow maps noise to data by scaling, here known in closed form."""
    std = 0.5
    noise = np.float32([-1.5, -0.3, 0.2, 1.7])
    for name in ("vp-cosine", "vp-cosine-epsilon", "vp-linear"):
        path = PATHS[name]

        def best(x, level, path=path):
            """The conditional expectation of the target given x."""
            alpha, sigma = path.coefficients(1.0 - level / 1000.0)
            variance = (alpha * std) ** 2 + sigma**2
            return path.target(alpha * std**2 / variance * x, sigma / variance * x, 1.0 - level / 1000.0)

        result = ddim(path, best, noise, time_grid("linear", 1000))
        np.testing.assert_allclose(result, std * noise, rtol=0.01)

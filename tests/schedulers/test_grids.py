"""Grids against given numbers and their own definitions."""

import numpy as np
import pytest

from mg.errors import UserError
from mg.schedulers import time_grid
from mg.schedulers.grids import KINDS


def test_linear():
    assert time_grid("linear", 4).tolist() == [1000, 750, 500, 250, 0]


def test_linear_quadratic_of_50_steps():
    grid = time_grid("linear-quadratic", 50)
    assert grid[:25].tolist() == list(range(1000, 975, -1))
    np.testing.assert_allclose(grid[25:28], [974.556, 970.225, 963.006], atol=5e-4)
    np.testing.assert_allclose(grid[-3:], [144.379, 73.633, 0], atol=5e-4)


def test_linear_quadratic_of_10_steps():
    expected = [1000, 999, 998, 997, 996, 968.333, 885.333, 747, 553.333, 304.333, 0]
    np.testing.assert_allclose(time_grid("linear-quadratic", 10), expected, atol=5e-4)


def test_linear_quadratic_of_an_odd_number_has_the_middle_step_in_the_straight_half():
    """First 3 of 5 points straight, then 998 * (k / 3)^2 down from 998."""
    expected = [1000, 999, 998, 998 - 998 / 9, 998 - 998 * 4 / 9, 0]
    np.testing.assert_allclose(time_grid("linear-quadratic", 5), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (7, [1000, 991.6667, 983.3333, 975, 907.8125, 722.9167, 420.3125, 0]),
        (10, [1000, 995, 990, 985, 980, 975, 932, 813, 618, 347, 0]),
    ],
)
def test_smooth_has_the_values_of_diffusers_for_mochi(steps, expected):
    """From `linear_quadratic_schedule(steps, 0.025)` of diffusers, whose import takes seconds."""
    np.testing.assert_allclose(time_grid("linear-quadratic-smooth", steps), expected, atol=5e-5)


@pytest.mark.parametrize("steps", [3, 7, 50, 51])
def test_smooth_is_the_parabola_of_its_three_conditions(steps):
    first = steps // 2
    slope = 25 / first
    # a + b i + c i^2 with the value and the slope of the line at the joint, and 1000 at the end.
    conditions = np.array([[1, first, first**2], [0, 1, 2 * first], [1, steps, steps**2]], float)
    a, b, c = np.linalg.solve(conditions, [slope * first, slope, 1000])
    i = np.arange(steps + 1)
    progress = np.where(i <= first, slope * i, a + b * i + c * i**2)
    np.testing.assert_allclose(time_grid("linear-quadratic-smooth", steps), 1000 - progress, atol=1e-8)


def test_only_the_smooth_one_has_one_slope_at_the_joint():
    def slopes(kind, joint):
        spacing = -np.diff(time_grid(kind, 50))
        # Spacings of a parabola grow evenly: half a step before the first of them is the slope at the joint.
        return spacing[joint - 1], spacing[joint] - (spacing[joint + 1] - spacing[joint]) / 2

    assert slopes("linear-quadratic-smooth", 25) == pytest.approx((1, 1), abs=1e-9)
    assert slopes("linear-quadratic", 24) == pytest.approx((1, 0), abs=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9, 50, 333, 1999, 2000])
@pytest.mark.parametrize("kind", KINDS)
def test_every_grid_falls_from_noise_to_data(kind, steps):
    grid = time_grid(kind, steps)
    assert grid.dtype == np.float64 and grid.shape == (steps + 1,)
    assert grid[0] == 1000 and grid[-1] == 0 and (np.diff(grid) < 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_too_few_steps(kind):
    with pytest.raises(UserError, match="num_sampling_steps=0: give 1 or more"):
        time_grid(kind, 0)


def test_too_many_steps_and_unknown_kinds_are_named():
    with pytest.raises(UserError, match="num_sampling_steps=2001.*take fewer or sample_method=linear"):
        time_grid("linear-quadratic", 2001)
    with pytest.raises(UserError, match="sample_method='cubic': choose linear, linear-quadratic, "):
        time_grid("cubic", 10)

"""Distributions of the noise levels, against their quantile functions."""

from statistics import NormalDist

import numpy as np
import pytest

from mg.errors import UserError
from mg.rng import stream
from mg.schedulers import even_timesteps, sample_timesteps

COUNT = 200_000
SHARES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


def levels(kind="logit-normal", count=COUNT, **options):
    return sample_timesteps(stream(5, "test"), count, kind, **options)


def assert_shares_below(drawn, quantiles):
    """Share below each quantile, within 5 standard errors of a binomial count."""
    for share, quantile in zip(SHARES, quantiles, strict=True):
        assert np.mean(drawn <= quantile) == pytest.approx(share, abs=5 * (share * (1 - share) / len(drawn)) ** 0.5)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.7, 0.4), (-1.0, 2.0)])
def test_logit_normal_quantiles(mean, std):
    quantiles = [1000 / (1 + np.exp(-NormalDist(mean, std).inv_cdf(share))) for share in SHARES]
    drawn = levels(mean=mean, std=std)
    assert_shares_below(drawn, quantiles)
    assert np.median(drawn) == pytest.approx(1000 / (1 + np.exp(-mean)), abs=2.5 * std)


def test_uniform_quantiles():
    assert_shares_below(levels("uniform"), [1000 * share for share in SHARES])


def test_discrete_uniform_draws_every_integer_alike():
    drawn = levels("discrete-uniform", 1_000_000)
    counts = np.bincount(drawn.astype(int), minlength=1001)
    assert counts[0] == 0 and len(counts) == 1001
    assert np.abs(counts[1:] - 1000).max() < 6 * 1000**0.5


@pytest.mark.parametrize("kind", ["logit-normal", "uniform", "discrete-uniform"])
def test_integers_only_when_asked(kind):
    drawn, whole = levels(kind, 1000), levels(kind, 1000, integer=True)
    assert drawn.dtype == whole.dtype == np.float32
    np.testing.assert_array_equal(whole, np.ceil(drawn))
    assert ((whole >= 1) & (whole <= 1000)).all()
    assert (drawn == whole).mean() == (1 if kind == "discrete-uniform" else pytest.approx(0, abs=0.01))


def test_extremes_stay_levels_to_train_on():
    drawn = levels(count=1000, std=1e6)
    assert drawn.min() == np.float32(1e-3) and drawn.max() == 1000
    assert levels(count=1000, std=1e6, integer=True).min() == 1


def test_a_pure_function_of_the_generator():
    np.testing.assert_array_equal(levels(count=50), levels(count=50))
    assert len(levels(count=0)) == 0


def test_even_levels_are_the_references():
    assert even_timesteps(10).tolist() == [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]
    assert even_timesteps(1).tolist() == [1000] and even_timesteps(3).dtype == np.float32
    with pytest.raises(UserError, match="count=0"):
        even_timesteps(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "normal"}, "timesteps='normal': choose logit-normal, uniform, discrete-uniform"),
        ({"std": 0.0}, "std=0.0 must be"),
        ({"std": float("inf")}, "std=inf must be"),
        ({"mean": float("nan")}, "mean=nan must be"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        levels(count=3, **options)

"""Noise levels to train on."""

import math
from typing import Literal

import numpy as np

from mg.errors import UserError

KINDS = ("logit-normal", "uniform", "discrete-uniform")
# A sigmoid of a large negative number is 0 in floating point, but 0 is no noise level to train on.
_LOWEST = 1e-3


def sample_timesteps(
    rng: np.random.Generator,
    count: int,
    kind: Literal["logit-normal", "uniform", "discrete-uniform"] = "logit-normal",
    integer: bool = False,
    mean: float = 0.0,
    std: float = 1.0,
) -> np.ndarray:
    """Draw noise levels, float32 (count,) in (0, 1000]; 1000 is pure noise.

    Args:
        rng: where they are drawn from, see `mg.rng.stream`.
        count: how many.
        kind: "logit-normal" is 1000 * sigmoid(normal) (Esser et al. 2024; Movie Gen, 3.1.2), "uniform" any real number,
            "discrete-uniform" one of 1, 2, ..., 1000.
        integer: round up to 1, 2, ..., 1000, as the reference implementation does.
        mean: of the normal, logit-normal only; above 0 shifts towards the noise.
        std: of the normal, logit-normal only, above 0.

    Raises:
        UserError: unknown kind, mean or std out of range.
    """
    if kind not in KINDS:
        raise UserError(f"timesteps={kind!r}: choose {', '.join(KINDS)}")
    if not math.isfinite(mean):
        raise UserError(f"mean={mean!r} must be a finite number")
    if not (math.isfinite(std) and std > 0):
        raise UserError(f"std={std!r} must be a finite number above 0")
    if kind == "discrete-uniform":
        levels = rng.integers(1, 1001, count).astype(np.float64)
    elif kind == "uniform":
        levels = 1000.0 * (1.0 - rng.random(count))  # random() may be 0, but is never 1
    else:
        # The sigmoid by way of tanh, which does not overflow.
        levels = 500.0 * (1.0 + np.tanh(0.5 * rng.normal(mean, std, count)))
    levels = np.clip(levels, _LOWEST, 1000.0)
    return (np.ceil(levels) if integer else levels).astype(np.float32)


def even_timesteps(count: int) -> np.ndarray:
    """Return `count` evenly spaced noise levels up to 1000, float32 (count,), ascending; 10 gives 100, 200, ..., 1000.

    They are for validation, whose loss is to be the same number for the same weights. Raises UserError below 1.
    """
    if count < 1:
        raise UserError(f"count={count!r}: a validation needs 1 noise level or more")
    return (1000.0 * np.arange(1, count + 1) / count).astype(np.float32)

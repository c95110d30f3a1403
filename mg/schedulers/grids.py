"""The noise levels a sampler visits."""

from typing import Literal

import numpy as np

from mg.errors import UserError

KINDS = ("linear", "linear-quadratic", "linear-quadratic-smooth")
# With more steps the straight half, spaced by 1, would reach the data.
_MAX_STEPS_LINEAR_QUADRATIC = 2000
# Share of the way that the straight half of the smooth grid covers: 25 steps of 1 in 1000.
_SMOOTH_LINEAR_SHARE = 0.025


def time_grid(kind: Literal["linear", "linear-quadratic", "linear-quadratic-smooth"], steps: int) -> np.ndarray:
    """Return noise levels, float64 (steps + 1,), strictly falling from 1000 (noise) to 0 (data).

    "linear": evenly spaced. "linear-quadratic" (Movie Gen, 3.4.2): the first half of the steps, rounded up, are those
    of a linear grid of 1000 steps, the others are spaced quadratically from there. "linear-quadratic-smooth": the
    spacing does not jump at the joint; the straight half, rounded down, covers 2.5 % of the way (as in Mochi and LTX).

    Raises:
        UserError: unknown kind, fewer than 1 step, or more than 2000 for "linear-quadratic".
    """
    if kind not in KINDS:
        raise UserError(f"sample_method={kind!r}: choose {', '.join(KINDS)}")
    if steps < 1:
        raise UserError(f"num_sampling_steps={steps!r}: give 1 or more")
    if kind == "linear":
        return 1000.0 * np.arange(steps, -1, -1) / steps
    return _linear_quadratic(steps) if kind == "linear-quadratic" else _smooth(steps)


def _linear_quadratic(steps: int) -> np.ndarray:
    if steps > _MAX_STEPS_LINEAR_QUADRATIC:
        raise UserError(
            f"num_sampling_steps={steps}: linear-quadratic has no more than {_MAX_STEPS_LINEAR_QUADRATIC}; "
            "take fewer or sample_method=linear"
        )
    first = (steps + 1) // 2
    rest = steps - first
    straight = np.arange(first, dtype=np.float64)
    # The parabola starts at the last straight point (k = 0, not repeated) and ends at the data (k = rest + 1).
    k = np.arange(1, rest + 2)
    curved = straight[-1] + (1000.0 - straight[-1]) * (k / (rest + 1)) ** 2
    return 1000.0 - np.concatenate([straight, curved])


def _smooth(steps: int) -> np.ndarray:
    """Progress d * i, plus q * (i - first)^2 beyond the joint at i = first, where the slope thus stays d.

    q follows from the progress 1 at the last step: q = (1 - d * steps) / (steps - first)^2.
    """
    first = steps // 2
    slope = _SMOOTH_LINEAR_SHARE / max(first, 1)
    i = np.arange(steps + 1, dtype=np.float64)
    beyond = np.maximum(i - first, 0.0) / (steps - first)
    levels = 1000.0 * (1.0 - slope * i - (1.0 - slope * steps) * beyond**2)
    levels[-1] = 0.0  # not 1e-13
    return levels

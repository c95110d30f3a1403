"""Following a learned velocity from noise to data, in FP32 whatever the network computes in."""

from collections.abc import Callable
from typing import Literal

import numpy as np

from mg.errors import NumericalAbort, UserError
from mg.schedulers.path import Path

SOLVERS = ("euler", "midpoint")

Velocity = Callable[[np.ndarray, float], np.ndarray]
"""Point x, float32, and noise level in [0, 1000] -> velocity dx / dtau (or another prediction), shaped as x."""
Callback = Callable[[int, int], None]
"""Number of steps done (1 after the first), number of steps in all."""


def solve(
    velocity: Velocity,
    noise: np.ndarray,
    grid: np.ndarray,
    solver: Literal["euler", "midpoint"] = "euler",
    callback: Callback | None = None,
) -> np.ndarray:
    """Integrate dx / dtau = velocity from noise to data; returns float32 of the noise's shape, noise is not changed.

    Args:
        velocity: what the network says; "euler" asks it once per step, "midpoint" twice. It must not change its input.
        noise: the point at the grid's first level, any shape.
        grid: strictly falling noise levels in [0, 1000], see `time_grid`.
        solver: "euler" is first order (the paper's choice), "midpoint" second order.
        callback: called after every step.

    Raises:
        UserError: unknown solver.
        NumericalAbort: NaN or Inf in the noise or after a step.
        ValueError: a grid that does not fall, or a velocity of another shape than x.
    """
    if solver not in SOLVERS:
        raise UserError(f"solver={solver!r}: choose {', '.join(SOLVERS)}")

    def step(x: np.ndarray, level: float, following: float) -> np.ndarray:
        dt = np.float32((level - following) / 1000.0)
        slope = _ask(velocity, x, level)
        if solver == "midpoint":
            slope = _ask(velocity, x + np.float32(0.5) * dt * slope, 0.5 * (level + following))
        return x + dt * slope

    return _walk(step, noise, grid, callback)


def ddim(
    path: Path, predict: Velocity, noise: np.ndarray, grid: np.ndarray, callback: Callback | None = None
) -> np.ndarray:
    """Sample any path: estimate data and noise at each level, and move to the next level between the two.

    On the straight path that is an Euler step; on diffusion's it is DDIM without added noise (Song et al. 2021), so
    that objectives can be compared under one sampler. `predict` returns the path's target; the rest as in `solve`.
    """

    def step(x: np.ndarray, level: float, following: float) -> np.ndarray:
        data, start = path.endpoints(_ask(predict, x, level), x, 1.0 - level / 1000.0)
        return path.interpolate(data, start, 1.0 - following / 1000.0).astype(np.float32)

    return _walk(step, noise, grid, callback)


def _walk(
    step: Callable[[np.ndarray, float, float], np.ndarray],
    noise: np.ndarray,
    grid: np.ndarray,
    callback: Callback | None,
) -> np.ndarray:
    levels = [float(level) for level in np.asarray(grid, np.float64).reshape(-1)]
    pairs = list(zip(levels, levels[1:], strict=False))
    if not pairs or not all(1000.0 >= level > following >= 0.0 for level, following in pairs):
        raise ValueError(f"a grid of noise levels must fall strictly within [0, 1000], got {levels}")
    x = np.array(noise, np.float32)
    if not np.isfinite(x).all():
        raise NumericalAbort("the noise to start from holds NaN or Inf; draw it anew")
    for done, (level, following) in enumerate(pairs, 1):
        x = step(x, level, following)
        if not np.isfinite(x).all():
            raise NumericalAbort(
                f"NaN or Inf in the latent after sampling step {done} of {len(pairs)} (noise level {level:g}); "
                "check the weights, or lower the guidance scale"
            )
        if callback:
            callback(done, len(pairs))
    return x


def _ask(velocity: Velocity, x: np.ndarray, level: float) -> np.ndarray:
    answer = np.asarray(velocity(x, level), np.float32)
    if answer.shape != x.shape:
        raise ValueError(f"the velocity has shape {answer.shape}, the point {x.shape}; they must be equal")
    return answer

"""Classifier-free guidance (Ho & Salimans 2022): the prompt's velocity, pushed away from the empty prompt's."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mg.errors import UserError

Array = Any
"""A numpy array or a MindSpore tensor."""

MODES = ("batched", "sequential")
SCHEDULES = ("constant", "linear", "cosine")


def guided(conditional: Array, unconditional: Array, scale: float | Array) -> Array:
    """Return unconditional + scale * (conditional - unconditional): 1 is the former, 0 the latter, exactly.

    Operators only, so numpy arrays and MindSpore tensors of one shape will do; `scale` may be an array that broadcasts.
    """
    if isinstance(scale, (int, float)):  # not int | float, which a compiled graph does not know
        if scale == 1:
            return conditional
        if scale == 0:
            return unconditional
    return unconditional + scale * (conditional - unconditional)


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """How strongly the prompt is followed, and when; raises UserError for values out of range."""

    scale: float = 1.0
    """Strength at its highest, 0 or above; 1 is off: the unconditional half is never computed (Movie Gen: 7.5)."""
    mode: Literal["batched", "sequential"] = "batched"
    """Both halves in one call of twice the batch, or one after the other, which takes half the memory."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """From start to stop: the scale throughout, or rising from 1 to the scale in a line or along half a cosine."""
    start: float = 1000.0
    """Highest noise level that is guided; 1000 is pure noise."""
    stop: float = 0.0
    """Lowest noise level that is guided, below start; levels outside are not guided and cost one half only."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise UserError(f"scale={self.scale!r} must be a finite number, 0 or above; 1 is no guidance")
        if self.mode not in MODES:
            raise UserError(f"mode={self.mode!r} must be one of {', '.join(MODES)}")
        if self.schedule not in SCHEDULES:
            raise UserError(f"schedule={self.schedule!r} must be one of {', '.join(SCHEDULES)}")
        if not 0 <= self.stop < self.start <= 1000:
            raise UserError(f"start={self.start!r}, stop={self.stop!r}: noise levels, 1000 >= start > stop >= 0")

    @property
    def needs_unconditional(self) -> bool:
        """Whether text for the unconditional half is needed at all."""
        return self.scale != 1

    def is_guided(self, level: float) -> bool:
        """Tell whether both halves are computed at a noise level."""
        return self.needs_unconditional and self.stop <= level <= self.start

    def scale_at(self, level: float) -> float:
        """Return the scale at a noise level; 1 where there is no guidance."""
        if not self.is_guided(level):
            return 1.0
        if self.schedule == "constant":
            return float(self.scale)
        share = (self.start - level) / (self.start - self.stop)
        if self.schedule == "cosine":
            share = 0.5 * (1.0 - math.cos(math.pi * share))
        return 1.0 + (self.scale - 1.0) * share


def guide(
    velocity: Callable[..., np.ndarray],
    config: GuidanceConfig,
    conditional: Sequence[np.ndarray],
    unconditional: Sequence[np.ndarray] | None = None,
) -> Callable[[np.ndarray, float], np.ndarray]:
    """Turn a network's velocity(x (b, ...), level, *text) into the guided velocity(x, level) that `solve` takes.

    Shapes per call: "sequential" always b; "batched" 2b where it guides, conditional half first, and b elsewhere, so
    that a compiled network sees one shape unless start and stop leave levels out.

    Args:
        velocity: row i of its result depends on row i of x and of every text array only.
        config: scale, mode, schedule.
        conditional: arrays (b, ...) given to `velocity` after the level: embeddings, masks.
        unconditional: the same for the empty or the negative prompt, with equal shapes; not used at scale 1.

    Raises:
        UserError: guidance without text for the unconditional half.
        ValueError: arrays of the two halves that differ in number or shape.
    """
    if not config.needs_unconditional:
        return lambda x, level: velocity(x, level, *conditional)
    if unconditional is None:
        raise UserError(
            f"guidance scale={config.scale:g} needs an encoded empty or negative prompt; give one, or use scale=1"
        )
    shapes, others = ([np.shape(array) for array in half] for half in (conditional, unconditional))
    if shapes != others:
        raise ValueError(f"conditional text has shapes {shapes}, unconditional {others}; they must be equal")
    # Joined once, not at every step.
    joined = []
    if config.mode == "batched":
        joined = [np.concatenate(pair) for pair in zip(conditional, unconditional, strict=True)]

    def guided_velocity(x: np.ndarray, level: float) -> np.ndarray:
        if not config.is_guided(level):
            return velocity(x, level, *conditional)
        if config.mode == "batched":
            halves = np.split(velocity(np.concatenate([x, x]), level, *joined), 2)
        else:
            halves = velocity(x, level, *conditional), velocity(x, level, *unconditional)
        return guided(*halves, config.scale_at(level))

    return guided_velocity

"""What the training loop does about numbers that go wrong."""

import math
from dataclasses import dataclass, field
from typing import Literal

from mg.errors import UserError


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise UserError(f"{name}={value!r} must be {rule}")


@dataclass(frozen=True, kw_only=True)
class SpikeConfig:
    """Gradients far larger than those of late, by median and median deviation; raises UserError out of range."""

    action: Literal["off", "warn", "skip", "abort"] = "warn"
    """warn: a line in the log; skip: such a step is no update, and counts as a bad one; abort: the run ends."""
    threshold: float = 6.0
    """A spike's log norm lies more than so many standard deviations above the median of the window."""
    window: int = 200
    """Applied steps that the median and the deviation are taken over."""
    warmup: int = 100
    """Applied steps before the first judgement."""

    def __post_init__(self) -> None:
        """Check ranges."""
        actions = ("off", "warn", "skip", "abort")
        _require(self.action in actions, "spike.action", self.action, f"one of {', '.join(actions)}")
        _require(math.isfinite(self.threshold) and self.threshold > 0, "spike.threshold", self.threshold, "above 0")
        _require(self.window >= 2, "spike.window", self.window, "2 or above")
        _require(2 <= self.warmup <= self.window, "spike.warmup", self.warmup, f"from 2 to spike.window={self.window}")


@dataclass(frozen=True, kw_only=True)
class LossScaleConfig:
    """Dynamic loss scale for FP16 activations; raises UserError for values out of range."""

    init: float = 0.0
    """Scale of the first step, 65536 for instance; 0 is off."""
    factor: float = 2.0
    """Divides the scale after a step whose gradient overflowed, which is skipped; multiplies it after a window."""
    window: int = 1000
    """Steps without overflow before the scale rises."""

    def __post_init__(self) -> None:
        """Check ranges."""
        held = self.init == 0 or math.isfinite(self.init) and self.init >= 1
        _require(held, "loss_scale.init", self.init, "0 (off), or 1 or above")
        _require(math.isfinite(self.factor) and self.factor > 1, "loss_scale.factor", self.factor, "above 1")
        _require(self.window >= 1, "loss_scale.window", self.window, "1 or above")


def check_loss_scale(loss_scale: LossScaleConfig, dtype: str) -> None:
    """Raise UserError where a loss scale is set for activations that need none (BF16 has FP32's range)."""
    if loss_scale.init and dtype != "fp16":
        raise UserError(f"train.loss_scale.init={loss_scale.init:g} is for fp16; leave it 0 with model.dtype={dtype}")


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """The part of the training loop's settings that keeps bad numbers out; raises UserError for values out of range."""

    max_bad_steps: int = 10
    """More bad steps in a row than this end the run: those with NaN or infinity, and spikes that are skipped."""
    max_bad_fraction: float = 0.05
    """A larger share of bad steps than this, from step 100 on, ends the run; 1 is off."""
    spike: SpikeConfig = field(default_factory=SpikeConfig)
    loss_scale: LossScaleConfig = field(default_factory=LossScaleConfig)

    def __post_init__(self) -> None:
        """Check ranges."""
        _require(self.max_bad_steps >= 0, "max_bad_steps", self.max_bad_steps, "0 or above")
        _require(0 < self.max_bad_fraction <= 1, "max_bad_fraction", self.max_bad_fraction, "above 0, at most 1 (off)")

"""What a run keeps, where else it keeps it, what it starts from, and when it ends by itself."""

import math
from dataclasses import dataclass
from typing import Literal

from mg.errors import UserError


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise UserError(f"{name}={value!r} must be {rule}")


@dataclass(frozen=True, kw_only=True)
class DurabilityConfig:
    """The part of the training loop's settings that decides whether a run survives; raises UserError out of range."""

    save_every: int = 500
    """Steps between checkpoints; the last step is always saved."""
    keep_last: int = 2
    """Number of newest checkpoints kept; 0 keeps all."""
    keep_every: int = 0
    """Checkpoints at multiples of this step are made and kept for good; 0 is off."""
    num_checkpoints: int = 0
    """This many checkpoints, evenly spread up to the last step, are made and kept; those that keep_last holds back
    meanwhile go when the last one is written; 0 is off."""
    keep_best: int = 0
    """Number of best checkpoints kept, by the figure `monitor` of the validation of their very step; each validation
    that belongs to the best is saved; 0 is off."""
    monitor: str = "val_loss"
    """Figure of the validation that keep_best goes by."""
    monitor_mode: Literal["min", "max"] = "min"
    """Whether a smaller or a larger figure is better."""
    max_failed_saves: int = 3
    """Training goes on after a save that the disk refused; this many in a row, or one at the last step, end the run."""
    max_minutes: float = 0.0
    """After this time the run stops with a checkpoint and exit code 75, to be started again; 0 is off."""
    step_timeout: float = 3600.0
    """A step that takes longer, in seconds, is a hang: the stacks are written, the run ends with exit code 4; leave
    room for the compilation of a new shape; 0 is off."""
    long_timeout: float = 14400.0
    """The same for the first step, validations and saves; at least step_timeout."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("save_every", "max_failed_saves"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or above")
        for name in ("keep_last", "keep_every", "num_checkpoints", "keep_best"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or above")
        for name in ("max_minutes", "step_timeout"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, name, value, "a finite number, 0 (off) or above")
        _require(
            math.isfinite(self.long_timeout) and self.long_timeout >= self.step_timeout,
            "long_timeout", self.long_timeout, f"a finite number, at least step_timeout={self.step_timeout!r}",
        )
        _require(self.monitor_mode in ("min", "max"), "monitor_mode", self.monitor_mode, "'min' or 'max'")


def check_durability(config: "DurabilityConfig", steps: int, validate_every: int) -> None:
    """Check what depends on the length of the run and its validations; raises UserError."""
    _require(
        config.num_checkpoints <= steps, "num_checkpoints", config.num_checkpoints, f"at most steps={steps}"
    )
    _require(
        config.keep_best == 0 or validate_every >= 1,
        "validate_every", validate_every, "1 or above where keep_best is not 0",
    )

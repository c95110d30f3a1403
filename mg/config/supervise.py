"""Configuration of `scripts/supervise.py`."""

import math
from dataclasses import dataclass

from mg.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SuperviseConfig:
    """When a training is started again, and when it is given up; raises UserError for values out of range."""

    run_folder: str | None = None
    """Output folder of the training, whose newest checkpoint says whether there is progress; none: what the command has
    as --output_path."""
    max_failures: int = 3
    """So many ends in a row without a new checkpoint are enough."""
    pause_seconds: float = 10.0
    """Wait before a start after a failure; twice as long after each further one without progress, up to ten minutes."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.max_failures < 1:
            raise UserError(f"max_failures={self.max_failures}: give at least 1")
        if not (math.isfinite(self.pause_seconds) and self.pause_seconds >= 0):
            raise UserError(f"pause_seconds={self.pause_seconds}: give a number of seconds, 0 or above")

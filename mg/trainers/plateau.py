"""Learning rate that falls when a figure of the validation stops getting better."""

import math

from mg.config.trainer import PlateauConfig


class Plateau:
    """Counts validations without progress and cuts the learning rate; off where the factor is 1.

    The figure must fall by more than `min_delta` below the best so far (rise above it, for mode "max") to count as
    progress; after `patience` validations without any, the rate is cut and the count starts again. A figure that is
    not finite is no progress.
    """

    def __init__(self, config: PlateauConfig) -> None:
        self.config = config
        self.best: float | None = None
        """Best figure so far, None before the first finite one."""
        self.waited = 0
        """Validations since the last progress or cut."""
        self.scale = 1.0
        """What the cuts so far multiply the learning rate by."""

    def observe(self, figure: float) -> bool:
        """Take the figure of one validation; return whether the learning rate was cut."""
        config = self.config
        if config.factor == 1.0:
            return False
        sign = 1.0 if config.mode == "min" else -1.0
        if math.isfinite(figure) and (self.best is None or sign * figure < sign * self.best - config.min_delta):
            self.best, self.waited = figure, 0
            return False
        self.waited += 1
        if self.waited < config.patience:
            return False
        self.scale *= config.factor
        self.waited = 0
        return True

    def rate(self, scheduled: float) -> float:
        """Return the learning rate in place of the schedule's: no cut goes below min_lr, none raises the rate."""
        return min(scheduled, max(scheduled * self.scale, self.config.min_lr))

    def state(self) -> dict[str, float | int | None]:
        """Return what a resumed run needs, as JSON values."""
        return {"best": self.best, "waited": self.waited, "scale": self.scale}

    def restore(self, state: dict[str, float | int | None]) -> None:
        """Go on from what `state` returned."""
        self.best, self.waited, self.scale = state["best"], state["waited"], state["scale"]

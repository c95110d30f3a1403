"""Which checkpoints a run makes and which it keeps: pure functions of steps and figures."""

import math
from collections.abc import Collection, Iterable

from mg.config.durability import DurabilityConfig


def spread(count: int, total: int) -> list[int]:
    """Return `count` steps up to and with `total`, as evenly apart as whole numbers allow; count is at most total."""
    return [-(-total * number // count) for number in range(1, count + 1)]


class Retention:
    """The rules of one run of `total` steps, and the best figures it has seen.

    best: (step, figure), the best first; at most keep_best of them, of committed checkpoints only.
    """

    def __init__(self, config: DurabilityConfig, total: int) -> None:
        self.config = config
        self._total = total
        self._spread = frozenset(spread(config.num_checkpoints, total)) if config.num_checkpoints else frozenset()
        self.best: list[tuple[int, float]] = []

    def due(self, step: int) -> bool:
        """Tell whether a checkpoint belongs at this step, whatever the validation says."""
        return step == self._total or step % self.config.save_every == 0 or self._is_milestone(step)

    def with_figure(self, step: int, figure: float | None) -> list[tuple[int, float]]:
        """Return what `best` becomes once a checkpoint of this figure is committed.

        A figure that is missing or not finite is never among the best; of two equal ones the earlier is better.
        """
        others = [entry for entry in self.best if entry[0] != step]
        if figure is None or not math.isfinite(figure):
            return others
        sign = 1.0 if self.config.monitor_mode == "min" else -1.0
        ranked = sorted([*others, (step, float(figure))], key=lambda entry: (sign * entry[1], entry[0]))
        return ranked[: self.config.keep_best]

    def is_best(self, step: int, figure: float | None) -> bool:
        """Tell whether a checkpoint of this figure would be among the best."""
        return step in (entry[0] for entry in self.with_figure(step, figure))

    def kept(self, steps: Iterable[int]) -> set[int]:
        """Return those of the committed steps that stay."""
        found = sorted(steps)
        best = {step for step, _ in self.best}
        keep_last = self.config.keep_last
        if keep_last and self._spread and found and found[-1] >= self._total:
            keep_last = 1  # the run is complete: the ones in between were for a crash
        last = found[-keep_last:] if keep_last else found
        return {step for step in found if step in last or step in best or self._is_milestone(step)}

    def _is_milestone(self, step: int) -> bool:
        every = self.config.keep_every
        return step in self._spread or bool(every and step % every == 0)

    def state(self) -> list[list[float]]:
        """Return `best` as JSON values."""
        return as_json(self.best)

    def restore(self, state: Collection[Collection[float]]) -> None:
        """Go on from what `state` returned; more than keep_best are cut off."""
        self.best = []
        for step, figure in state:
            self.best = self.with_figure(int(step), float(figure))


def as_json(best: Iterable[tuple[int, float]]) -> list[list[float]]:
    """Return a list of best checkpoints as JSON values."""
    return [[step, figure] for step, figure in best]

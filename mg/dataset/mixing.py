"""Which of several groups a draw comes from: exact shares at any point, a pure function of the draw's number."""

import functools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import floor

import numpy as np

from mg import rng
from mg.errors import UserError

WINDOW = 100
"""Draws over which weights are made good: in so many, each group comes as often as its weight says, rounded."""


class Mix:
    """Draws from groups, window after window: e windows hold floor(e * share) draws of a group, in a random order.

    Args:
        shares: draws of each group per window, above 0 for at least one group.
        seed: of the order within the windows.
        name: of the order's random stream.
    """

    def __init__(self, shares: Sequence[Fraction], seed: int, name: str) -> None:
        # Exact: rounding errors would shift a draw after some hundred thousand windows.
        self._shares = list(shares)
        self._seed, self._name = seed, name
        if not any(self._shares):
            raise ValueError("there is no group to draw from")

    def pick(self, number: int) -> tuple[int, int]:
        """Return the group of draw `number` >= 0 and how many draws of that group come before it."""
        if len(self._shares) == 1:
            return 0, number
        window = self._window_of(number)
        before = self._before(window)
        mixed = self._mixed(window, before)
        place = number - sum(before)
        group = int(mixed[place])
        return group, before[group] + int(np.count_nonzero(mixed[:place] == group))

    def counts(self, number: int) -> list[int]:
        """Return how many of the first `number` draws each group has."""
        if len(self._shares) == 1:
            return [number]
        window = self._window_of(number)
        before = self._before(window)
        place = number - sum(before)
        inside = np.bincount(self._mixed(window, before)[:place], minlength=len(before))
        return [int(count) for count in np.add(before, inside)]

    def _before(self, window: int) -> list[int]:
        """Draws of each group before a window."""
        return [floor(window * share) for share in self._shares]

    def _window_of(self, number: int) -> int:
        """Find the window that a draw falls into, the last that begins at or before it."""
        high = 1
        while sum(self._before(high)) <= number:
            high *= 2
        low = high // 2  # begins at or before the draw
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if sum(self._before(middle)) <= number else (low, middle)
        return low

    def _mixed(self, window: int, before: Sequence[int]) -> np.ndarray:
        """List the groups of a window's draws in their order."""
        counts = tuple(after - count for after, count in zip(self._before(window + 1), before, strict=True))
        return _shuffled(self._seed, self._name, window, counts)


@functools.lru_cache(maxsize=16)
def _shuffled(seed: int, name: str, window: int, counts: tuple[int, ...]) -> np.ndarray:
    mixed = np.repeat(np.arange(len(counts)), counts)
    return mixed[rng.stream(seed, name, window).permutation(len(mixed))]


def weighted(weights: Mapping[str, float], amounts: Mapping[str, Fraction | int] | None = None) -> list[Fraction]:
    """Turn weights into draws per window of `WINDOW`.

    Args:
        weights: name -> weight, above 0, of any sum.
        amounts: name -> what a draw of the group counts for; None: 1 each. A group of twice the amount is drawn half
            as often.
    """
    raw = []
    for name, weight in weights.items():
        exact = Fraction(weight).limit_denominator(10**6)
        raw.append(exact / (1 if amounts is None else amounts[name]))
    return [share * WINDOW / sum(raw) for share in raw]


def check_weights(option: str, weights: Mapping[str, float] | None) -> None:
    """Raise UserError, naming the option, unless there are no weights or all are usable."""
    if weights is None:
        return
    if not weights:
        raise UserError(f"{option}: it is empty; name at least one list and its weight, such as {{videos.csv: 1}}")
    for name, weight in weights.items():
        if not 1e-6 <= weight <= 1e6:
            raise UserError(f"{option}: {name}: {weight} must be a number from 1e-6 to 1e6")

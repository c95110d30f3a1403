"""Which of several groups a draw comes from: exact shares at any point, a pure function of the draw's number."""

import functools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import floor
from typing import Protocol

import numpy as np

from mg import rng
from mg.log import get_logger

WINDOW = 100
"""Draws over which weights are made good: in so many, each group comes as often as its weight says, rounded."""


class Mix:
    """Draws from groups, window after window: e windows hold floor(e * share) draws of a group, in a random order.

    Args:
        shares: draws of each group per window, above 0 for at least one group.
        seed: of the order within the windows.
        name: of the order's random stream.
        even: spread the draws of each group evenly over a window, each at random within its stretch of it; otherwise
            they are shuffled.
    """

    def __init__(self, shares: Sequence[Fraction], seed: int, name: str, even: bool = False) -> None:
        # Exact: rounding errors would shift a draw after some hundred thousand windows.
        self._shares = list(shares)
        self._seed, self._name, self._even = seed, name, even
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
        window = int(number // sum(self._shares))  # begins at or before the draw: rounding down only takes draws away
        while sum(self._before(window + 1)) <= number:
            window += 1
        return window

    def _mixed(self, window: int, before: Sequence[int]) -> np.ndarray:
        """List the groups of a window's draws in their order."""
        counts = tuple(after - count for after, count in zip(self._before(window + 1), before, strict=True))
        return _mixed(self._seed, self._name, window, counts, self._even)


@functools.lru_cache(maxsize=16)
def _mixed(seed: int, name: str, window: int, counts: tuple[int, ...], even: bool) -> np.ndarray:
    groups = np.repeat(np.arange(len(counts)), counts)
    draw = rng.stream(seed, name, window)
    if not even:
        return groups[draw.permutation(len(groups))]
    stretch = np.concatenate([np.arange(count) for count in counts])  # 0, 1, ... within each group
    places = (stretch + draw.random(len(groups))) / np.repeat(counts, counts)  # in [0, 1)
    return groups[np.argsort(places, kind="stable")]


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


class Mixed(Protocol):
    """A source of batches from several lists.

    Attributes:
        lists: name -> number of items, in order.
        weights: name -> share of the samples, of any sum; None for one list alone.
    """

    lists: Mapping[str, int]
    weights: Mapping[str, float] | None

    def drawn(self, batches: int) -> Mapping[str, int]:
        """Return how many samples of each list the first so many batches hold."""


def log_lists(source: Mixed, batches: int) -> None:
    """Write a line per list, if there are several: size, weight, and its samples among the first so many batches."""
    if source.weights is None:
        return
    drawn, whole = source.drawn(batches), sum(source.weights.values())
    total = sum(drawn.values())
    for name, count in source.lists.items():
        share = f"{100 * drawn[name] / total:.2f} %" if total else "none"
        get_logger().info(
            "list %s: %d files, weight %.2f %%, %d of %d samples so far (%s)",
            name, count, 100 * source.weights[name] / whole, drawn[name], total, share,
        )  # fmt: skip

"""Endless passes over a set of clips, each in an order of its own: what draw n of the set is, as a function of n."""

import bisect
import functools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Int

from mg import rng
from mg.dataset.manifest import Item


@dataclass(frozen=True)
class Draw:
    """One item of a set.

    Attributes:
        item: the clip.
        start: first frame of the window to cut; None: anywhere.
    """

    item: Item
    start: int | None = None


class Passes(Protocol):
    """A set that is gone through again and again.

    Attributes:
        items: the clips of the set.
    """

    items: Sequence[Item]

    @property
    def size(self) -> float:
        """Draws of one pass, on average."""

    def draw(self, number: int) -> Draw:
        """Return draw `number` >= 0."""


class ClipPasses:
    """Each pass takes each clip once, in an order of its own.

    Args:
        items: at least one.
        seed: of the orders.
        name: of the orders' random stream.
    """

    def __init__(self, items: Sequence[Item], seed: int, name: str) -> None:
        self.items = items
        self._seed, self._name = seed, name

    @property
    def size(self) -> float:
        """See `Passes`."""
        return float(len(self.items))

    def draw(self, number: int) -> Draw:
        """See `Passes`."""
        turn, place = divmod(number, len(self.items))
        return Draw(self.items[_order(self._seed, self._name, turn, len(self.items))[place]])


class WindowPasses:
    """Each pass cuts every clip into windows that leave out no frame, from a grid that is shifted from pass to pass.

    The clips come in an order of its own per pass, so many at a time; the windows of those are shuffled among
    themselves. A clip's windows thus follow each other closely enough to be served from one decoding. The first and
    the last window of a clip lie at its ends and may overlap their neighbours.

    Args:
        items: at least one.
        counts: frames of each, at least 1.
        length: frames of a window; a shorter clip is one window.
        together: clips whose windows are shuffled among themselves, at least 1.
        seed: of grids and orders.
        name: of their random streams.

    Attributes:
        items: see above.
        counts: see above, int64.
    """

    def __init__(
        self, items: Sequence[Item], counts: Sequence[int], length: int, together: int, seed: int, name: str
    ) -> None:
        self.items = items
        self.counts = np.asarray(counts, np.int64)  # (n,)
        self._length, self._together = length, together
        self._seed, self._name = seed, name
        self._begins = [0]  # draws before each pass, as far as known
        self._plans: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._lock = threading.Lock()

    @property
    def size(self) -> float:
        """See `Passes`; over all shifts of the grid."""
        shifts = np.arange(self._length)
        return float(np.mean([self._windows(np.full(len(self.counts), shift)).sum() for shift in shifts]))

    def draw(self, number: int) -> Draw:
        """See `Passes`."""
        with self._lock:
            turn = self._pass_of(number)
            if turn not in self._plans:
                self._plans = {key: plan for key, plan in self._plans.items() if abs(key - turn) == 1}
                self._plans[turn] = self._plan(turn)
            clips, starts = self._plans[turn]
            place = number - self._begins[turn]
        return Draw(self.items[clips[place]], int(starts[place]))

    def _pass_of(self, number: int) -> int:
        while self._begins[-1] <= number:
            turn = len(self._begins) - 1
            self._begins.append(self._begins[turn] + int(self._windows(self._shift(turn)).sum()))
        return bisect.bisect_right(self._begins, number) - 1

    def _shift(self, turn: int) -> Int[np.ndarray, "n"]:
        """Where the grid of each clip begins in a pass, 0 to length - 1."""
        return rng.stream(self._seed, f"{self._name}.grid", turn).integers(self._length, size=len(self.counts))

    def _windows(self, shift: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """Count the windows of each clip."""
        spare = self.counts - self._length  # the last possible start
        grid = np.where(spare >= shift, (spare - shift) // self._length + 1, 0)
        behind = (spare < shift) | ((spare - shift) % self._length > 0)  # the last window is not on the grid
        return np.where(spare <= 0, 1, grid + (shift > 0) + behind)

    def _starts(self, clip: int, shift: int) -> np.ndarray:
        spare = int(self.counts[clip]) - self._length
        return np.unique([0, *range(shift, spare + 1, self._length), spare]) if spare > 0 else np.zeros(1, np.int64)

    def _plan(self, turn: int) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"]]:
        """Lay out a pass: clip and start of every window, in the order they are drawn in."""
        shift = self._shift(turn)
        order = _order(self._seed, self._name, turn, len(self.items))
        mixed = rng.stream(self._seed, f"{self._name}.windows", turn)
        clips, starts = [], []
        for first in range(0, len(order), self._together):
            group = [(clip, self._starts(clip, shift[clip])) for clip in order[first : first + self._together]]
            which = np.concatenate([np.full(len(begins), clip) for clip, begins in group])
            begins = np.concatenate([begins for _, begins in group])
            shuffled = mixed.permutation(len(which))
            clips.append(which[shuffled])
            starts.append(begins[shuffled])
        return np.concatenate(clips), np.concatenate(starts)


@functools.lru_cache(maxsize=16)
def _order(seed: int, name: str, turn: int, count: int) -> np.ndarray:
    return rng.stream(seed, name, turn).permutation(count)

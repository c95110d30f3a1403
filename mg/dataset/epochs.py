"""Which items make up batch n: without end, every pass over a list in a new order, a pure function of (seed, n)."""

import functools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import floor

import numpy as np

from mg import rng


class Epochs:
    """Batches out of groups of items; a batch holds items of one group.

    Each group is passed through again and again in an order of its own, without leaving anything out: a batch may hold
    the end of one pass and the beginning of the next. In epoch e, a group has as many batches as make e + 1 passes
    altogether, rounded down, so that over many epochs every item is used equally often; the groups' batches are mixed.

    Args:
        groups: name -> items, none of them empty.
        sizes: name -> items per batch.
        seed: of the orders.
        name: of the orders' random streams.
    """

    def __init__(
        self, groups: Mapping[str, Sequence[int]], sizes: Mapping[str, int], seed: int, name: str
    ) -> None:
        self._groups = [(key, list(groups[key])) for key in sorted(groups)]
        self._sizes = [sizes[key] for key, _ in self._groups]
        self._seed, self._name = seed, name
        # Exact: rounding errors would shift a batch after some hundred thousand epochs.
        self._shares = [Fraction(len(items), size) for (_, items), size in zip(self._groups, self._sizes, strict=True)]

    @property
    def items(self) -> int:
        """Number of items."""
        return sum(len(items) for _, items in self._groups)

    @property
    def per_epoch(self) -> float:
        """Batches of one pass over all items, on average."""
        return float(sum(self._shares))

    def batch(self, number: int) -> tuple[str, list[int]]:
        """Return the group of batch `number` >= 0 and its items."""
        epoch = self._epoch_of(number)
        before = self._before(epoch)
        mixed = self._mixed(epoch)
        place = number - sum(before)
        group = mixed[place]
        count = before[group] + int(np.count_nonzero(mixed[:place] == group))  # batches of this group so far
        key, items = self._groups[group]
        size = self._sizes[group]
        chosen = []
        for position in range(count * size, (count + 1) * size):
            turn, offset = divmod(position, len(items))
            chosen.append(items[_order(self._seed, f"{self._name}.{key}", turn, len(items))[offset]])
        return key, chosen

    def _before(self, epoch: int) -> list[int]:
        """Batches of each group before an epoch."""
        return [floor(epoch * share) for share in self._shares]

    def _epoch_of(self, number: int) -> int:
        """Find the epoch that a batch falls into, the last that begins at or before it."""
        high = 1
        while sum(self._before(high)) <= number:
            high *= 2
        low = high // 2  # begins at or before the batch
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if sum(self._before(middle)) <= number else (low, middle)
        return low

    def _mixed(self, epoch: int) -> np.ndarray:
        """List the groups of an epoch's batches in their order."""
        counts = np.subtract(self._before(epoch + 1), self._before(epoch))
        mixed = np.repeat(np.arange(len(counts)), counts)
        return mixed[_order(self._seed, f"{self._name}.mix", epoch, len(mixed))]


@functools.lru_cache(maxsize=256)
def _order(seed: int, name: str, epoch: int, count: int) -> np.ndarray:
    return rng.stream(seed, name, epoch).permutation(count)

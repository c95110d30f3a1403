"""Which items make up batch n: without end, every pass over a list in a new order, a pure function of (seed, n)."""

import functools
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from mg import rng
from mg.dataset.mixing import Mix, weighted


class Epochs:
    """Batches out of groups of items; a batch holds items of one group.

    Each group is passed through again and again in an order of its own, without leaving anything out: a batch may hold
    the end of one pass and the beginning of the next. In epoch e, a group has as many batches as make e + 1 passes
    altogether, rounded down, so that over many epochs every item is used equally often; the groups' batches are mixed.
    With weights, a group has that share of the items drawn instead, exact over any hundred batches (see `Mix`).

    Args:
        groups: name -> items, none of them empty.
        sizes: name -> items per batch.
        seed: of the orders.
        name: of the orders' random streams.
        weights: name -> share of the items drawn, of any sum; None: as many as a group has.
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[int]],
        sizes: Mapping[str, int],
        seed: int,
        name: str,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self._groups = [(key, list(groups[key])) for key in sorted(groups)]
        self._sizes = [sizes[key] for key, _ in self._groups]
        self._seed, self._name = seed, name
        shares = self._shares = [
            Fraction(len(items), size) for (_, items), size in zip(self._groups, self._sizes, strict=True)
        ]
        if weights is not None and groups:
            keys = [key for key, _ in self._groups]
            shares = weighted({key: weights[key] for key in keys}, {key: Fraction(sizes[key]) for key in keys})
        self._mix = Mix(shares, seed, f"{name}.mix", even=weights is not None) if groups else None

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
        group, count = self._mix.pick(number)
        key, items = self._groups[group]
        size = self._sizes[group]
        chosen = []
        for position in range(count * size, (count + 1) * size):
            turn, offset = divmod(position, len(items))
            chosen.append(items[_order(self._seed, f"{self._name}.{key}", turn, len(items))[offset]])
        return key, chosen

    def drawn(self, number: int) -> dict[str, int]:
        """Return how many items of each group the first `number` batches hold."""
        counts = self._mix.counts(number) if self._mix else []
        return {key: count * size for (key, _), count, size in zip(self._groups, counts, self._sizes, strict=True)}


@functools.lru_cache(maxsize=256)
def _order(seed: int, name: str, epoch: int, count: int) -> np.ndarray:
    return rng.stream(seed, name, epoch).permutation(count)

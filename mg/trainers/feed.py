"""How micro-batches reach the training loop: by number, counted and timed."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Protocol

import numpy as np

Batch = Mapping[str, np.ndarray]
BatchFactory = Callable[[int], Iterator[Batch]]


class BatchSource(Protocol):
    """Data by number: the same index always gives the same batch, so a resume needs no state of the data."""

    def batch(self, index: int) -> Batch:
        """Return micro-batch `index` (0 and up, without end)."""


class DivisibleSource(Protocol):
    """Data by number of which some rows can be had without the others."""

    def size(self, index: int) -> int:
        """Return the number of rows of micro-batch `index`."""

    def batch(self, index: int, rows: Sequence[int] | None = None) -> Batch:
        """Return rows of micro-batch `index`, the same as in the whole; None: all."""


class OwnRows:
    """Micro-batches with one process' rows alone: the others are not even read.

    source: of the micro-batches of all processes.
    own: gives the rows that are this process', of so many.
    """

    def __init__(self, source: DivisibleSource, own: Callable[[int], Sequence[int]]) -> None:
        self._source, self._own = source, own

    def batch(self, index: int) -> Batch:
        """See `BatchSource`."""
        return self._source.batch(index, self._own(self._source.size(index)))


class Clock:
    """Passes on `number` batches; notes samples and the seconds spent waiting for them.

    entry: whose rows are the samples.
    units: gives what else a batch has and how many, {"tokens": 512} for instance; None: b * t frames, where the entry
        has the five dimensions (b, c, t, h, w).
    parts: how many processes share the rows; each batch has those of one, and the samples of all are counted.
    """

    def __init__(
        self,
        batches: Iterator[Batch],
        number: int,
        entry: str,
        units: Callable[[Batch], Mapping[str, int]] | None = None,
        parts: int = 1,
    ) -> None:
        self._batches = batches
        self._parts = parts
        self._number = number
        self._entry = entry
        self._units = units or self._frames
        self.samples = 0
        self.counts: Counter[str] = Counter()
        """How many of each unit."""
        self.ids: list[str] = []
        """Names of the samples, where the batches have "ids" or "names"."""
        self.waited = 0.0

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self._number):
            start = time.perf_counter()
            batch = next(self._batches, None)
            self.waited += time.perf_counter() - start
            if batch is None:
                raise ValueError("the batches ended: the iterator given to the trainer must be endless")
            self.ids += map(str, batch.get("ids", batch.get("names", ())))
            yield batch
            # Counted afterwards: who takes a batch tells better what is missing in it.
            self.samples += self._parts * len(batch[self._entry])
            self.counts.update({unit: self._parts * count for unit, count in self._units(batch).items()})

    def _frames(self, batch: Batch) -> dict[str, int]:
        shape = np.shape(batch[self._entry])
        return {"frames": shape[0] * shape[2]} if len(shape) == 5 else {}


def by_index(source: BatchSource) -> BatchFactory:
    """Return a function from the first index wanted to the source's batches from there on."""
    return lambda start: (source.batch(index) for index in count(start))

"""How micro-batches reach the training loop: by number, counted and timed."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import Protocol

import numpy as np

Batch = Mapping[str, np.ndarray]
BatchFactory = Callable[[int], Iterator[Batch]]


class BatchSource(Protocol):
    """Data by number: the same index always gives the same batch, so a resume needs no state of the data."""

    def batch(self, index: int) -> Batch:
        """Return micro-batch `index` (0 and up, without end)."""


class Clock:
    """Passes on `number` batches; notes samples and the seconds spent waiting for them.

    entry: whose rows are the samples.
    units: gives what else a batch has and how many, {"tokens": 512} for instance; None: b * t frames, where the entry
        has the five dimensions (b, c, t, h, w).
    """

    def __init__(
        self,
        batches: Iterator[Batch],
        number: int,
        entry: str,
        units: Callable[[Batch], Mapping[str, int]] | None = None,
    ) -> None:
        self._batches = batches
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
            self.samples += len(batch[self._entry])
            self.counts.update(self._units(batch))

    def _frames(self, batch: Batch) -> dict[str, int]:
        shape = np.shape(batch[self._entry])
        return {"frames": shape[0] * shape[2]} if len(shape) == 5 else {}


def by_index(source: BatchSource) -> BatchFactory:
    """Return a function from the first index wanted to the source's batches from there on."""
    return lambda start: (source.batch(index) for index in count(start))

"""How micro-batches reach the training loop: by number, counted and timed."""

import time
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
    """Passes on `number` batches; adds up samples (rows of `entry`) and the seconds spent waiting for them."""

    def __init__(self, batches: Iterator[Batch], number: int, entry: str) -> None:
        self._batches = batches
        self._number = number
        self._entry = entry
        self.samples = 0
        self.waited = 0.0

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self._number):
            start = time.perf_counter()
            batch = next(self._batches, None)
            self.waited += time.perf_counter() - start
            if batch is None:
                raise ValueError("the batches ended: the iterator given to the trainer must be endless")
            self.samples += len(batch.get(self._entry, ()))
            yield batch


def by_index(source: BatchSource) -> BatchFactory:
    """Return a function from the first index wanted to the source's batches from there on."""
    return lambda start: (source.batch(index) for index in count(start))

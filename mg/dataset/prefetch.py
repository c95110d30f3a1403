"""Batches built ahead of the training step by threads."""

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from mg.errors import UserError

Batch = Mapping[str, Any]


class Source(Protocol):
    """Batches by number, each a pure function of it; safe to ask from several threads."""

    def batch(self, index: int) -> Batch:
        """Return batch `index` >= 0."""


class Prefetcher:
    """Yields batches start, start + 1, ... of a source without end, built ahead of time by threads.

    The batches are those of `source.batch`, whatever the number of workers. An error surfaces where its batch is due,
    with the batch number as a note. Close it, or use it as a context manager, to stop the threads.

    Args:
        source: anything with a thread-safe `batch(index)`.
        start: the first index.
        depth: how many batches are built or kept ahead, at least 1.
        workers: threads; 0 builds each batch when it is asked for, in the thread that asks.
        on_close: called once at the end, with the number of the first batch that was not handed out.
    """

    def __init__(
        self,
        source: Source,
        start: int = 0,
        depth: int = 4,
        workers: int = 1,
        on_close: Callable[[int], None] = lambda position: None,
    ) -> None:
        """Start building at once, unless there are no workers."""
        if depth < 1 or workers < 0:
            raise UserError(f"depth and workers: {depth} and {workers} must be at least 1 and 0")
        self._source = source
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch") if workers else None
        self._ahead: deque[tuple[int, Future[Batch]]] = deque()
        self._next = start
        self._on_close = on_close
        self._closed = False
        for _ in range(depth if workers else 0):
            self._submit()

    def _submit(self) -> None:
        self._ahead.append((self._next, self._pool.submit(self._source.batch, self._next)))
        self._next += 1

    def __iter__(self) -> "Prefetcher":
        """Return itself: there is one position, and iterating again goes on from it."""
        return self

    def __next__(self) -> Batch:
        """Return the next batch, waiting for it if need be."""
        if self._closed:
            raise RuntimeError("the prefetcher is closed")
        index = self._position
        try:
            return self._built() if self._pool else self._build()
        except BaseException as error:
            error.add_note(f"while building batch {index}")
            self.close()
            raise

    @property
    def _position(self) -> int:
        """Number of the batch that is due."""
        return self._ahead[0][0] if self._ahead else self._next

    def _built(self) -> Batch:
        batch = self._ahead[0][1].result()
        self._ahead.popleft()
        self._submit()
        return batch

    def _build(self) -> Batch:
        batch = self._source.batch(self._next)
        self._next += 1
        return batch

    def close(self) -> None:
        """Drop the batches ahead and stop the threads; harmless when done twice."""
        if not self._closed:
            self._on_close(self._position)
        self._closed = True
        self._ahead.clear()
        if self._pool:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "Prefetcher":
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()

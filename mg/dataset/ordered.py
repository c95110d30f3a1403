"""Work done by threads ahead of time, its results in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")


def in_order(work: Callable[[Given], Made], given: Iterable[Given], workers: int, ahead: int = 2) -> Iterator[Made]:
    """Yield work(one) for each that is given, in order.

    Args:
        work: called in threads.
        given: taken from only as far as needed, so that it may be long and results may be large.
        workers: threads; 0 works in the caller's.
        ahead: results per thread that may wait.
    """
    if not workers:
        yield from map(work, given)
        return
    rest = iter(given)
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque()
        try:
            for one in rest:
                waiting.append(pool.submit(work, one))
                if len(waiting) > workers * ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

"""The threads that build batches ahead: the same batches in the same order, errors where they are due."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mg.config.clips import ClipSettings
from mg.dataset.clips import ClipSource
from mg.dataset.headers import Header
from mg.dataset.manifest import Item
from mg.dataset.prefetch import Prefetcher
from mg.errors import NoGoodClip, UserError


class Uneven:
    """A source whose earlier batches take longer, so that threads finish out of order."""

    def batch(self, index):
        time.sleep(0.004 * (3 - index % 4))
        return {"ids": [index], "thread": threading.current_thread().name}


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_the_order_does_not_depend_on_the_workers(workers):
    with Prefetcher(Uneven(), start=5, depth=6, workers=workers) as ahead:
        batches = [next(ahead) for _ in range(20)]
    assert [batch["ids"][0] for batch in batches] == list(range(5, 25))
    threads = {batch["thread"] for batch in batches}
    assert threads == {threading.current_thread().name} if workers == 0 else len(threads) == workers


class Slow:
    """A `FrameReader` whose decoding takes 30 ms and no core: what threads gain does not depend on the machine."""

    def check(self, item):
        pass

    def header(self, item):
        return Header(6, 8, 8, 0.25)

    def times(self, item):
        return [n / 24 for n in range(6)]

    def fps(self, item):
        return 24.0

    def read(self, item, indices):
        time.sleep(0.03)
        return np.random.default_rng(item.row).integers(0, 256, (6, 8, 8, 3), np.uint8)[np.asarray(indices)]


def test_four_threads_give_twice_the_clips_where_decoding_is_the_limit():
    items = [Item(Path(f"{n}.mp4"), f"{n}.mp4", None, n + 1) for n in range(7)]
    seconds, batches = {}, {}
    for workers in (0, 4):
        source = ClipSource(items, ClipSettings(size=(8, 8), num_frames=4, batch_size=2, seed=3), reader=Slow())
        began = time.perf_counter()
        with Prefetcher(source, depth=8, workers=workers) as ahead:
            batches[workers] = [next(ahead) for _ in range(16)]
            seconds[workers] = time.perf_counter() - began
    assert seconds[0] >= 2 * seconds[4], seconds  # 16 batches of 60 ms, four at a time: a quarter and a little more
    for one, other in zip(batches[0], batches[4], strict=True):
        assert one["ids"] == other["ids"]
        assert all(one[name].tobytes() == other[name].tobytes() for name in ("video", "mask", "fps"))


def test_without_workers_nothing_is_built_before_it_is_asked_for():
    source = Recorder(fails_at=2)
    ahead = Prefetcher(source, workers=0)
    assert source.asked == []
    assert [next(ahead)["ids"] for _ in range(2)] == [["0"], ["1"]] and source.asked == [0, 1]
    with pytest.raises(NoGoodClip) as error:
        next(ahead)
    assert error.value.__notes__ == ["while building batch 2"]


class Recorder:
    """A source that notes what was asked of it and fails at one index."""

    def __init__(self, fails_at=None):
        self.asked, self.fails_at = [], fails_at

    def batch(self, index):
        self.asked.append(index)
        if index == self.fails_at:
            raise NoGoodClip("all gone")
        return {"ids": [str(index)]}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fails_at", [None, 7])
def test_at_the_end_it_tells_how_far_the_batches_went(workers, fails_at):
    told = []
    ahead = Prefetcher(Recorder(fails_at), start=4, workers=workers, on_close=told.append)
    for _ in range(3):
        next(ahead)
    if fails_at:
        with pytest.raises(NoGoodClip):
            next(ahead)
    ahead.close()
    ahead.close()
    assert told == [7]


def test_errors_surface_where_the_batch_is_due():
    ahead = Prefetcher(Recorder(fails_at=6), start=4, depth=4)
    assert [next(ahead)["ids"] for _ in range(2)] == [["4"], ["5"]]
    with pytest.raises(NoGoodClip, match="all gone") as error:
        next(ahead)
    assert error.value.__notes__ == ["while building batch 6"]
    with pytest.raises(RuntimeError, match="closed"):
        next(ahead)


def test_it_works_ahead_but_not_further_than_told():
    source = Recorder()
    ahead = Prefetcher(source, depth=3)
    deadline = time.monotonic() + 5
    while len(source.asked) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert source.asked == [0, 1, 2]
    ahead.close()
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
    for wrong in ({"depth": 0}, {"workers": -1}):
        with pytest.raises(UserError, match="depth and workers"):
            Prefetcher(source, **wrong)

"""Passes over a set of clips: each once, or every frame of each, and which windows follow each other."""

from pathlib import Path

import numpy as np
import pytest

from mg.dataset.epochs import Epochs
from mg.dataset.manifest import Item
from mg.dataset.mixing import Mix, weighted
from mg.dataset.passes import ClipPasses, WindowPasses


def items(count):
    return [Item(Path(f"/{n}.mp4"), f"{n}.mp4", None, n + 1) for n in range(count)]


def passes_of(passes, turns):
    """The draws of the first passes, each as (number of the clip, start)."""
    begins = [0]
    for turn in range(turns):
        begins.append(begins[-1] + int(passes._windows(passes._shift(turn)).sum()))
    draws = [passes.draw(number) for number in range(begins[-1])]
    named = [(passes.items.index(draw.item), draw.start) for draw in draws]
    return [named[start:end] for start, end in zip(begins, begins[1:], strict=False)]


@pytest.mark.parametrize("length", [1, 2, 7, 16])
def test_every_frame_lands_in_a_window_of_every_pass(length):
    counts = [1, 2, 6, 7, 8, 13, 14, 15, 16, 17, 100]
    passes = WindowPasses(items(len(counts)), counts, length, 3, 5, "t")
    grids, sizes = set(), []
    for one in passes_of(passes, 12):
        sizes.append(len(one))
        assert len(set(one)) == len(one)  # no window twice
        for clip, count in enumerate(counts):
            starts = sorted(start for which, start in one if which == clip)
            covered = {frame for start in starts for frame in range(start, min(start + length, count))}
            assert covered == set(range(count))
            assert starts[0] == 0 and starts[-1] == max(0, count - length)
            inner = starts[1:-1]
            assert all(later - start == length for start, later in zip(inner, inner[1:], strict=False))
            assert len(starts) <= -(-count // length) + 1
            grids.add((clip, tuple(starts)))
    assert passes.size == pytest.approx(np.mean(sizes), rel=0.08)
    long = {starts for clip, starts in grids if clip == 10}
    assert len(long) > min(length, 6) - 1 if length > 1 else len(long) == 1


def test_the_clips_of_a_group_are_mixed_and_groups_follow_each_other():
    counts = [64] * 12
    passes = WindowPasses(items(12), counts, 8, 4, 0, "t")
    one, other = passes_of(passes, 2)
    order = list(dict.fromkeys(clip for clip, _ in one))
    assert sorted(order) == list(range(12))
    groups, place = [], 0
    while place < len(one):  # a group ends where its last clip does
        seen = set()
        while len(seen) < 4 or (place < len(one) and one[place][0] in seen):
            seen.add(one[place][0])
            place += 1
        groups.append(seen)
    assert len(groups) == 3 and set.union(*groups) == set(range(12))
    runs = sum(a[0] != b[0] for a, b in zip(one, one[1:], strict=False))
    assert runs > len(one) / 2  # windows of different clips alternate
    assert [clip for clip, _ in one] != [clip for clip, _ in other]


def test_a_draw_is_a_pure_function_of_its_number():
    counts = [30, 41, 8, 77, 5]
    forward = WindowPasses(items(5), counts, 8, 2, 9, "t")
    want = [forward.draw(number) for number in range(200)]
    backward = WindowPasses(items(5), counts, 8, 2, 9, "t")
    assert [backward.draw(number) for number in reversed(range(200))] == want[::-1]
    assert WindowPasses(items(5), counts, 8, 2, 9, "t").draw(199) == want[199]
    other = WindowPasses(items(5), counts, 8, 2, 10, "t")
    assert [other.draw(number) for number in range(200)] != want


def test_plain_passes_take_each_clip_once():
    passes = ClipPasses(items(6), 1, "t")
    names = [passes.draw(number).item.name for number in range(60)]
    turns = [names[start : start + 6] for start in range(0, 60, 6)]
    assert all(sorted(turn) == sorted(set(names)) for turn in turns) and len({tuple(turn) for turn in turns}) > 6
    assert passes.size == 6 and passes.draw(3).start is None


def test_orders_are_those_of_earlier_versions():
    """A run that was begun before must go on with the same data."""
    clips = ClipPasses(items(10), 0, "order")
    order = [9, 3, 0, 8, 7, 6, 2, 1, 4, 5, 7, 0, 9, 5, 3, 8]
    assert [clips.items.index(clips.draw(number).item) for number in range(16)] == order
    windows = WindowPasses(items(4), [30, 5, 17, 9], 8, 2, 0, "order")
    drawn = [windows.draw(number) for number in range(16)]
    assert [(windows.items.index(one.item), one.start) for one in drawn] == [
        (3, 1), (3, 0), (2, 9), (2, 0), (2, 3), (1, 0), (0, 22), (0, 0), (0, 11), (0, 19), (0, 3), (3, 0), (3, 1),
        (1, 0), (0, 7), (0, 0),
    ]  # fmt: skip
    epochs = Epochs({"a": list(range(7)), "b": [7, 8, 9]}, {"a": 2, "b": 1}, 0, "generation.video")
    assert [epochs.batch(number) for number in range(8)] == [
        ("b", [9]), ("b", [7]), ("a", [2, 0]), ("b", [8]), ("a", [4, 3]), ("a", [5, 1]), ("a", [6, 4]), ("a", [0, 1]),
    ]  # fmt: skip
    mix = Mix(weighted({"a": 3, "b": 1}), 0, "sets.video", even=True)
    assert [mix.pick(number)[0] for number in range(16)] == [0, 0, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0]

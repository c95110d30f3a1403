"""Which group a draw comes from: the weights' counts in every window, whatever the position."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from mg.dataset.epochs import Epochs
from mg.dataset.mixing import WINDOW, Mix, log_lists, weighted
from mg.log import get_logger


@pytest.mark.parametrize("weights", [(3, 1), (0.5, 0.3, 0.2), (1, 1, 1), (1000, 1), (0.333, 2 / 3)])
@pytest.mark.parametrize("seed, even", [(0, True), (7, True), (0, False)])
def test_counts_are_exact_per_window_and_within_a_percent_over_ten_thousand(weights, seed, even):
    named = {str(n): weight for n, weight in enumerate(weights)}
    mix = Mix(weighted(named), seed, "t", even=even)
    drawn = [mix.pick(number) for number in range(10_000)]
    groups = np.array([group for group, _ in drawn])
    share = np.array(weights) / sum(weights)
    counted = np.zeros(len(weights), int)
    for number, (group, before) in enumerate(drawn):  # each group's draws are numbered without a gap
        assert before == counted[group], number
        counted[group] += 1
    assert np.all(np.abs(counted - 10_000 * share) <= np.maximum(1, 0.01 * 10_000 * share))
    for end in range(WINDOW, 10_001, WINDOW):  # off by rounding only, at the end of every window
        assert np.abs(np.bincount(groups[:end], minlength=len(weights)) - end * share).max() <= len(weights)
    if even:  # and hardly more in between
        realised = np.cumsum(groups[:, None] == np.arange(len(weights)), 0)
        assert np.abs(realised - np.arange(1, 10_001)[:, None] * share).max() <= len(weights) + 1
    assert mix.counts(777) == np.bincount(groups[:777], minlength=len(weights)).tolist()
    assert Mix(weighted(named), seed, "t", even).pick(9_999) == drawn[-1]  # nothing to remember
    if min(share) > 0.1:
        windows = {tuple(groups[start : start + WINDOW]) for start in range(0, 9_000, WINDOW)}
        assert len(windows) > 50


def test_a_group_whose_draws_count_twice_is_drawn_half_as_often():
    shares = weighted({"a": 1, "b": 1}, {"a": Fraction(2), "b": Fraction(1)})
    assert shares == [Fraction(100, 3), Fraction(200, 3)]


def test_epochs_by_weight_give_items_by_weight_and_still_take_each_once_per_pass():
    groups = {"big": list(range(40)), "small": [40, 41, 42], "other": list(range(50, 57))}
    sizes = {"big": 4, "small": 1, "other": 2}
    epochs = Epochs(groups, sizes, 3, "t", {"big": 1, "small": 2, "other": 1})
    batches = [epochs.batch(number) for number in range(4000)]
    counts = Counter()
    for key, items in batches:
        assert len(items) == sizes[key] and set(items) <= set(groups[key])
        counts[key] += len(items)
    total = sum(counts.values())
    np.testing.assert_allclose([counts[key] / total for key in ("big", "small", "other")], [0.25, 0.5, 0.25], rtol=0.01)
    assert epochs.drawn(4000) == counts and epochs.drawn(0) == dict.fromkeys(groups, 0)
    for key, members in groups.items():
        stream = [item for group, items in batches if group == key for item in items]
        passes = [stream[i : i + len(members)] for i in range(0, len(stream) - len(members) + 1, len(members))]
        assert len(passes) > 10 and all(sorted(one) == members for one in passes)
        assert len({tuple(one) for one in passes}) > 5


def test_the_log_has_a_line_per_list(caplog):
    class Source:
        lists, weights = {"a.csv": 20, "b": 3}, {"a.csv": 3, "b": 1}

        def drawn(self, batches):
            return {"a.csv": 3 * batches, "b": batches}

    logger = get_logger()
    logger.addHandler(caplog.handler)
    try:
        log_lists(Source(), 0)
        log_lists(Source(), 25)
        one = Source()
        one.weights = None
        log_lists(one, 25)
    finally:
        logger.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records] == [
        "list a.csv: 20 files, weight 75.00 %, 0 of 0 samples so far (none)",
        "list b: 3 files, weight 25.00 %, 0 of 0 samples so far (none)",
        "list a.csv: 20 files, weight 75.00 %, 75 of 100 samples so far (75.00 %)",
        "list b: 3 files, weight 25.00 %, 25 of 100 samples so far (25.00 %)",
    ]

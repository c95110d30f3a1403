import math

import pytest

from mg.config.durability import DurabilityConfig
from mg.config.trainer import TrainerConfig
from mg.errors import UserError
from mg.trainers.retention import Retention, spread


def run(rules, steps, figures=None):
    """Commit a checkpoint wherever one is due or best, prune after each; return the steps left."""
    there = set()
    for step in steps:
        figure = (figures or {}).get(step)
        if rules.due(step) or rules.is_best(step, figure):
            rules.best = rules.with_figure(step, figure)
            there = rules.kept({*there, step})
    return sorted(there)


@pytest.mark.parametrize("count, total", [(1, 10), (3, 10), (4, 10), (7, 10), (10, 10), (6, 1001), (13, 100)])
def test_as_many_as_asked_for_evenly_up_to_the_last_step(count, total):
    steps = spread(count, total)
    gaps = [after - before for before, after in zip([0, *steps], steps, strict=False)]
    assert len(steps) == len(set(steps)) == count and steps[-1] == total
    assert max(gaps) - min(gaps) <= 1
    rules = Retention(DurabilityConfig(num_checkpoints=count, save_every=2), total)
    assert run(rules, range(1, total + 1)) == steps


def test_before_the_end_the_rolling_ones_are_there_as_well():
    rules = Retention(DurabilityConfig(num_checkpoints=2, save_every=3, keep_last=2), 20)
    assert run(rules, range(1, 18)) == [10, 12, 15]


def test_keep_last_zero_keeps_all():
    rules = Retention(DurabilityConfig(save_every=2, keep_last=0, num_checkpoints=2), 9)
    assert run(rules, range(1, 10)) == [2, 4, 5, 6, 8, 9]


def test_milestones_and_the_newest_combine():
    rules = Retention(DurabilityConfig(save_every=4, keep_last=1, keep_every=6), 23)
    assert run(rules, range(1, 24)) == [6, 12, 18, 23]
    assert run(rules, range(1, 23)) == [6, 12, 18, 20]


@pytest.mark.parametrize("mode, best", [("min", [9, 3]), ("max", [6, 15])])
def test_the_best_are_kept_whatever_comes_later(mode, best):
    figures = {3: 0.5, 6: 0.9, 9: 0.4, 12: math.nan, 15: 0.8, 18: 0.7, 21: 0.6}
    rules = Retention(DurabilityConfig(save_every=100, keep_last=1, keep_best=2, monitor_mode=mode), 25)
    assert run(rules, range(1, 22), figures) == sorted(best)  # nothing else was even made
    assert [step for step, _ in rules.best] == best
    again = Retention(rules.config, 25)
    again.restore(rules.state())
    assert again.best == rules.best
    assert not again.is_best(24, 0.65) and not again.is_best(24, math.inf) and not again.is_best(24, None)
    assert again.kept([*best, 24, 25]) == {*best, 25}


def test_of_equal_figures_the_earlier_stays_and_a_step_done_again_counts_once():
    rules = Retention(DurabilityConfig(keep_best=1), 10)
    rules.best = rules.with_figure(2, 0.5)
    assert not rules.is_best(4, 0.5) and rules.is_best(4, 0.49)
    assert rules.with_figure(2, 0.7) == [(2, 0.7)]
    assert Retention(DurabilityConfig(keep_best=0), 10).with_figure(2, 0.5) == []


@pytest.mark.parametrize(
    "options, words",
    [
        ({"save_every": 0}, "save_every=0 must be 1 or above"),
        ({"keep_last": -1}, "keep_last=-1 must be 0 or above"),
        ({"keep_every": -1}, "keep_every=-1 must be 0 or above"),
        ({"num_checkpoints": 6}, "num_checkpoints=6 must be at most steps=5"),
        ({"keep_best": 1}, "validate_every=0 must be 1 or above where keep_best is not 0"),
        ({"keep_best": -2}, "keep_best=-2 must be 0 or above"),
        ({"monitor_mode": "low"}, "monitor_mode='low' must be 'min' or 'max'"),
        ({"max_failed_saves": 0}, "max_failed_saves=0 must be 1 or above"),
    ],
)
def test_values_out_of_range_are_named(options, words):
    with pytest.raises(UserError) as caught:
        TrainerConfig(steps=5, **options)
    assert str(caught.value) == words

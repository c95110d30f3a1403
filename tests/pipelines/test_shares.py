"""Shares of a list: who has what, and what the one that leads waits for."""

from types import SimpleNamespace

import numpy as np
import pytest

from mg.pipelines import shares
from mg.pipelines.shares import Share, in_order


def share(folder, index, count=2, helper=False):
    """The share of a process; no other processes have to be there."""
    group, tokens = SimpleNamespace(size=count, index=index), SimpleNamespace(size=1 + helper, index=int(helper))
    leads = index == 0 and not helper
    mesh = SimpleNamespace(groups={"batch": group, "tokens": tokens}, leads=leads, total=lambda *values: list(values))
    return Share(mesh, folder)


def test_shares_of_a_list_are_all_of_it(tmp_path):
    parts = [share(tmp_path, index, 3) for index in range(3)]
    assert [part.of(range(7)) for part in parts] == [range(0, 7, 3), range(1, 7, 3), range(2, 7, 3)]
    items = list(range(20))
    for part in parts:  # of every second one from number 1 on
        number, count = part.within(1, 2)
        assert items[number::count] == list(part.of(items[1::2]))
    assert share(tmp_path, 1).writes and not share(tmp_path, 1, helper=True).writes


def test_the_leader_waits_for_those_that_have_not_finished(tmp_path, monkeypatch):
    (tmp_path / ".share-1.npz").write_bytes(b"of a run that was broken off")
    leader, other = share(tmp_path, 0), share(tmp_path, 1)
    helper = share(tmp_path, 1, helper=True)
    leader.leave({"rows": [(0, "a"), (2, "c")]})
    helper.leave({"rows": [(1, "not told")]})
    other.leave({"rows": [(1, "b")]}, finished=False)
    looks = []

    def look(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            other.leave({"rows": [(1, "b"), (3, "d")]}, {"picture": np.arange(3)})

    monkeypatch.setattr(shares.time, "sleep", look)
    leader.wait()
    assert len(looks) == 2
    (tmp_path / ".share-1-unfinished.npz").unlink()
    found = leader.collect()
    assert in_order(found, "rows") == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(found[1][1]["picture"], np.arange(3))
    assert not list(tmp_path.iterdir())
    assert in_order(other.collect(), "rows") == ["b", "d"]


def test_after_a_failure_there_is_what_was_finished_before(tmp_path, monkeypatch):
    leader, other = share(tmp_path, 0), share(tmp_path, 1)

    def interrupted(seconds):
        raise KeyboardInterrupt

    leader.leave({"rows": [(0, "a")]})
    other.leave({"rows": [(1, "b")]}, finished=False)
    monkeypatch.setattr(shares.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        leader.wait()
    assert in_order(leader.collect(), "rows") == ["a", "b"] and not list(tmp_path.iterdir())


def test_one_process_has_everything(tmp_path):
    alone = Share(None, tmp_path)
    assert alone.of([3, 4]) == [3, 4] and alone.writes and alone.leads and alone.within(1, 4) == (1, 4)
    alone.leave({"rows": [(1, "b"), (0, "a")]})
    alone.wait()
    assert in_order(alone.collect(), "rows") == ["a", "b"] and not list(tmp_path.iterdir())

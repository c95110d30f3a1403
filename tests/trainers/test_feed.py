"""How batches reach the loop: a process' own rows, and the counts of all."""

import numpy as np

from mg.trainers.feed import Clock, OwnRows, by_index


class Source:
    """Batches of four or six rows; notes the rows that are asked for."""

    def __init__(self):
        self.asked = []

    def size(self, index):
        return 4 + 2 * (index % 2)

    def batch(self, index, rows=None):
        self.asked += [(index, row) for row in rows]
        return {"video": np.zeros((len(rows), 3, 5, 2, 2)) + index, "ids": [f"{index}-{row}" for row in rows]}


def test_a_process_asks_for_its_own_rows_alone():
    source = Source()
    batches = by_index(OwnRows(source, lambda rows: range(1, rows, 2)))(3)
    assert [next(batches)["ids"] for _ in range(2)] == [["3-1", "3-3", "3-5"], ["4-1", "4-3"]]
    assert source.asked == [(3, 1), (3, 3), (3, 5), (4, 1), (4, 3)]


def test_samples_and_units_of_all_processes_are_counted():
    own = OwnRows(Source(), lambda rows: range(1, rows, 2))
    for units, counts in ((None, {"frames": 2 * 5 * 5}), (lambda batch: {"tokens": 7}, {"tokens": 2 * 2 * 7})):
        clock = Clock(by_index(own)(0), 2, "video", units, parts=2)
        assert len(list(clock)) == 2
        assert clock.samples == 4 + 6 and clock.counts == counts
        assert clock.ids == ["0-1", "0-3", "1-1", "1-3", "1-5"]

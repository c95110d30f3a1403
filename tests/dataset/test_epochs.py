"""Which items make up a batch: everything equally often, in ever new orders."""

from collections import Counter
from math import floor

from mg.dataset.epochs import Epochs


def test_epochs_use_every_item_equally_often():
    groups = {"a": list(range(10)), "b": [10, 11, 12], "c": [13]}
    epochs = Epochs(groups, {"a": 4, "b": 4, "c": 2}, seed=0, name="t")
    shares = {"a": 10 / 4, "b": 3 / 4, "c": 1 / 2}
    drawn = [epochs.batch(number) for number in range(400)]
    total = 0
    for epoch in range(1, 90):  # after every epoch, each group has had as many batches as make its passes
        total = sum(floor(epoch * share) for share in shares.values())
        counts = Counter(key for key, _ in drawn[:total])
        assert counts == {key: floor(epoch * share) for key, share in shares.items() if floor(epoch * share)}
    for key, members in groups.items():
        stream = [number for group, numbers in drawn if group == key for number in numbers]
        passes = [stream[i : i + len(members)] for i in range(0, len(stream) - len(members) + 1, len(members))]
        assert len(passes) > 100 and all(sorted(one) == members for one in passes)
    orders = {tuple(n for group, numbers in drawn[i : i + 4] if group == "a" for n in numbers) for i in range(0, 80, 4)}
    assert len(orders) > 10
    far = 10**9
    assert epochs.batch(far) == Epochs(groups, {"a": 4, "b": 4, "c": 2}, seed=0, name="t").batch(far)

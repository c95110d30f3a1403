"""Random streams: pure functions of their arguments, independent of each other."""

import hashlib
import itertools

import numpy as np
import pytest

from mg.rng import stream


def test_same_arguments_same_numbers():
    first, second = stream(7, "noise", 3, 1, 2), stream(7, "noise", 3, 1, 2)
    np.testing.assert_array_equal(first.standard_normal(100), second.standard_normal(100))


def philox(key: list[int], counter: list[int]) -> list[int]:
    """Philox 4x64 with 10 rounds (Salmon et al. 2011), written out with integers."""
    mask = (1 << 64) - 1
    k, x = list(key), list(counter)
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * x[0], 0xCA5A826395121157 * x[2]
        x = [(b >> 64) ^ x[1] ^ k[0], b & mask, (a >> 64) ^ x[3] ^ k[1], a & mask]
        k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
    return x


def test_values_stay_what_they_were():
    # A change here would break the resumption of every run there is.
    digest = hashlib.sha256(b"5:augment").digest()
    key = [int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")]
    # numpy counts blocks in the lowest word and advances it before the first one.
    expected = philox(key, [1, 11, 13, 17]) + philox(key, [2, 11, 13, 17])
    assert stream(5, "augment", 11, 13, 17).bit_generator.random_raw(8).tolist() == expected


def test_every_argument_counts():
    calls = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 1), (0, "a", 0, 1), (0, "a", 0, 0, 1), (0, "a", 1, 1)]
    draws = [tuple(stream(*call).integers(0, 2**62, 4)) for call in calls]
    assert len(set(draws)) == len(calls)


def test_neighbouring_steps_do_not_overlap():
    # 4096 numbers each: a stream that ran on into its neighbour's counter would share them.
    steps = [set(stream(0, "noise", step).integers(0, 2**62, 4096).tolist()) for step in range(4)]
    assert all(not a & b for a, b in itertools.combinations(steps, 2))


def test_streams_are_uncorrelated():
    count = 100_000
    rows = [stream(0, name, step).standard_normal(count) for name in ("noise", "augment") for step in (0, 1)]
    correlation = np.corrcoef(rows) - np.eye(4)
    assert np.abs(correlation).max() < 5 / np.sqrt(count)


def test_missing_counters_are_zeros():
    np.testing.assert_array_equal(stream(1, "a").random(4), stream(1, "a", 0, 0, 0).random(4))


@pytest.mark.parametrize("arguments", [(0, "a", 1, 2, 3, 4), (-1, "a"), (0, "a", -1)])
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="up to three counters, none of them negative"):
        stream(*arguments)

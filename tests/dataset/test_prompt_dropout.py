import numpy as np
import pytest

from mg.config.prompt_dropout import PromptDropout
from mg.dataset.prompt_dropout import apply_drop, drop_mask
from mg.errors import UserError
from mg.models.text_encoders.features import TextFeatures

COUNT = 40_000


def spread(p):
    """Four standard deviations of a share of COUNT."""
    return 4 * np.sqrt(p * (1 - p) / COUNT)


def features(rows, start):
    tokens = start + np.arange(rows * 3, dtype=np.int32).reshape(rows, 3)
    embeddings = tokens[..., None] + np.arange(2, dtype=np.float32) / 4
    return TextFeatures(embeddings.astype(np.float32), tokens % 2 == 0, tokens)


def test_shares():
    mask = drop_mask(0, 5, COUNT, p_all=0.1, p_each=0.3)
    one, every = 0.1 + 0.9 * 0.3, 0.1 + 0.9 * 0.3**3
    assert np.abs(mask.mean(axis=0) - one).max() < spread(one)
    assert abs(mask.all(axis=1).mean() - every) < spread(every)


def test_encoders_are_independent_without_the_joint_drop():
    mask = drop_mask(3, 0, COUNT, encoders=4, p_all=0.0, p_each=0.4)
    assert mask.shape == (COUNT, 4) and mask.dtype == bool
    assert np.abs(np.corrcoef(mask.T) - np.eye(4)).max() < 4 / np.sqrt(COUNT)


def test_all_together_is_all_or_nothing():
    mask = drop_mask(0, 0, COUNT, p_all=0.2, p_each=0.0)
    assert set(mask.sum(axis=1)) == {0, 3}
    assert abs(mask[:, 0].mean() - 0.2) < spread(0.2)


@pytest.mark.parametrize(("p_all", "p_each", "share"), [(0, 0, 0.0), (1, 0, 1.0), (0, 1, 1.0)])
def test_certainties(p_all, p_each, share):
    assert drop_mask(0, 0, 1000, p_all=p_all, p_each=p_each).mean() == share


def test_a_pure_function_of_every_argument():
    calls = [
        {"seed": 0, "step": 1}, {"seed": 1, "step": 1}, {"seed": 0, "step": 2},
        {"seed": 0, "step": 1, "micro_step": 1}, {"seed": 0, "step": 1, "rank": 1},
    ]  # fmt: skip
    first, second = ([drop_mask(batch=64, p_all=0.3, p_each=0.3, **call).tobytes() for call in calls] for _ in "ab")
    assert first == second and len(set(first)) == len(calls)


def test_a_larger_batch_begins_with_a_smaller_one():
    small, large = (drop_mask(0, 9, batch, p_all=0.2, p_each=0.3) for batch in (50, 80))
    np.testing.assert_array_equal(large[:50], small)
    assert small.any() and not small.all()


def test_rows_are_replaced_whole():
    given, empty = features(4, 100), features(1, 0)
    before = features(4, 100)
    dropped = np.array([False, True, False, True])
    out = apply_drop(given, empty, dropped)
    for name in ("embeddings", "mask", "tokens"):
        array, old = getattr(out, name), getattr(before, name)
        assert array.dtype == old.dtype
        np.testing.assert_array_equal(array[[0, 2]], old[[0, 2]])
        np.testing.assert_array_equal(array[[1, 3]], getattr(empty, name).repeat(2, axis=0))
        np.testing.assert_array_equal(getattr(given, name), old)
        assert not np.shares_memory(array, getattr(given, name))


def test_what_does_not_fit_is_refused():
    dropped = np.zeros(4, bool)
    for empty, rows in ((features(2, 0), dropped), (features(1, 0), dropped[:3]), (features(1, 0), dropped[:, None])):
        with pytest.raises(ValueError, match="do not fit the empty prompt"):
            apply_drop(features(4, 0), empty, rows)


@pytest.mark.parametrize("values", [{"all": 1.1}, {"each": -0.1}, {"all": float("nan")}, {"seed": -1}])
def test_ranges(values):
    name = next(iter(values))
    with pytest.raises(UserError, match=f"prompt dropout {name}="):
        PromptDropout(**values)


def test_probabilities_are_checked_where_they_are_used():
    with pytest.raises(UserError, match="each=1.5: give a probability"):
        drop_mask(0, 0, 4, p_all=0.1, p_each=1.5)

"""Captions for long-context fine-tuning: pieces, joined captions, what is held back, draws, pictures' embeddings."""

import numpy as np
import pytest

from mg.dataset.long_captions import (
    CaptionRows,
    LongCaptionBatches,
    hold_back,
    joined,
    pieces,
    read_captions,
    read_image_embeddings,
    shortened,
)
from mg.errors import UserError
from mg.rng import stream
from mg.weights import write_weights

START, END, PAD = 98, 99, 0


def row(content, width=30):
    """Tokens and mask of one caption with the given content."""
    tokens = np.full(width, PAD, np.int32)
    tokens[: len(content) + 2] = [START, *content, END]
    return tokens, np.arange(width) < len(content) + 2


def rows(*contents):
    tokens, mask = zip(*map(row, contents), strict=True)
    return np.stack(tokens), np.stack(mask)


def test_pieces_are_few_consecutive_equal_and_closed():
    contents = [range(1, 7), range(1, 24), [], range(1, 10)]
    tokens, mask, owners = pieces(*rows(*contents), 8, PAD)
    assert list(owners) == [0, 1, 1, 1, 1, 2, 3, 3]  # at most 6 tokens of content each
    assert tokens.shape == (8, 8) and tokens.dtype == np.int32
    kept = [list(piece[real]) for piece, real in zip(tokens, mask, strict=True)]
    assert all(piece[0] == START and piece[-1] == END for piece in kept)
    for owner, content in enumerate(contents):
        own = [piece[1:-1] for piece, number in zip(kept, owners, strict=True) if number == owner]
        assert sum(own, []) == list(content)
        assert max(map(len, own)) - min(map(len, own)) <= 1
    assert (tokens[~mask] == PAD).all()


def test_shortened_keeps_the_closing_token_and_short_captions():
    tokens, mask = rows(range(1, 7), range(1, 8), range(1, 20))
    cut, cut_mask = shortened(tokens, mask, 8, PAD)
    assert cut.shape == tokens.shape and list(cut_mask.sum(1)) == [8, 8, 8]
    np.testing.assert_array_equal(cut[0], tokens[0])
    for got in cut[1:]:
        assert list(got[:8]) == [START, 1, 2, 3, 4, 5, 6, END] and not got[8:].any()
    assert mask[2].sum() == 21  # what was given is left alone


def test_joined_captions_by_seed():
    texts = list("abcdefgh")
    made = joined(texts, 3, 50, seed=4)
    assert made == joined(texts, 3, 60, seed=4)[:50] and made != joined(texts, 3, 50, seed=5)
    assert all(len(set(text.split())) == 3 and set(text.split()) <= set(texts) for text in made)
    assert len(set(made)) > 30
    assert [len(text.split()) for text in joined(texts[:2], 3, 5, seed=0)] == [3] * 5


def listing(tmp_path, text):
    path = tmp_path / "list.csv"
    path.write_text(text)
    return path


def test_held_back_share_by_seed_and_video(tmp_path):
    lines = [f"{i // 2}.mp4,caption {i}" for i in range(20)]  # each video twice
    items = read_captions(listing(tmp_path, "\n".join(["video,caption", *lines])), videos=True)
    train, held = hold_back(items, 0.3, seed=0)
    assert sorted(item.row for item in train + held) == list(range(1, 21))
    assert len({item.name for item in held}) == 3 and len(held) == 6
    assert hold_back(items, 0.3, seed=0) == (train, held) and hold_back(items, 0.3, seed=1)[1] != held
    assert hold_back(items, 0, seed=0) == (items, [])
    assert len(hold_back(items, 0.001, seed=0)[1]) == 2
    with pytest.raises(UserError, match=r"valid\.share=0\.99: of 10 captions none would be left"):
        hold_back(items, 0.99, seed=0)


@pytest.mark.parametrize(
    "text, videos, words",
    [
        ("video\na.mp4\n", True, "has no column 'caption'"),
        ("video\na.mp4\n", False, "has no column 'caption'"),
        ("caption\nhello\n", True, "has no column 'video'"),
        ("video,caption\na.mp4,one\nb.mp4,\n", True, "row 2: column 'caption' is empty"),
        ("video,caption\na.mp4,one\nb.mp4,\n", False, "row 2: column 'caption' is empty"),
        ("caption\n", False, "lists no clips"),
    ],
)
def test_bad_lists(tmp_path, text, videos, words):
    with pytest.raises(UserError, match=words):
        read_captions(listing(tmp_path, text), videos)


def test_missing_list_is_named(tmp_path):
    with pytest.raises(UserError, match=r"csv_path: .*none/list\.csv is not a file"):
        read_captions(tmp_path / "none" / "list.csv", False)


def caption_rows(count, groups=None, first=0):
    tokens = np.repeat(np.arange(first, first + count, dtype=np.int32)[:, None], 4, 1)
    return CaptionRows(tokens, tokens >= 0, np.float32(tokens[:, :2]), groups)


def test_batches_are_pure_functions_of_seed_and_index():
    def source(seed=0):
        return LongCaptionBatches(caption_rows(10), caption_rows(10, first=100), 4, 3, seed)

    batches = [source().batch(index) for index in range(6)]
    again = source()
    for index in reversed(range(6)):
        for name, values in again.batch(index).items():
            np.testing.assert_array_equal(values, batches[index][name])
    firsts = [list(batch["tokens"][:, 0]) for batch in batches]
    assert len(set(map(tuple, firsts))) == 6 and list(source(1).batch(0)["tokens"][:, 0]) != firsts[0]
    for batch, first in zip(batches, firsts, strict=True):
        assert all(x < 10 for x in first[:4]) and all(x >= 100 for x in first[4:]) and len(set(first)) == 7
        np.testing.assert_array_equal(batch["target"][:, 0], first)  # a row's own target
    assert {str(values.dtype) for values in batches[0].values()} == {"int32", "float32"}


def test_no_two_captions_of_a_picture_in_a_batch():
    rows = caption_rows(9, groups=[[0, 1, 2], [3, 4, 5], [6], [7, 8]])
    drawn = np.stack([rows.draw(stream(0, "test", i), 4) for i in range(60)])
    owner = np.array([0, 0, 0, 1, 1, 1, 2, 3, 3])
    assert (np.sort(owner[drawn], 1) == np.arange(4)).all()
    assert set(drawn.ravel()) == set(range(9))  # every caption has its turn
    assert set(caption_rows(2).draw(stream(0, "test"), 40)) == {0, 1}  # too few: with repetitions


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_pictures_are_read_by_name_in_order_and_scaled(tmp_path, suffix):
    path = tmp_path / f"images{suffix}"
    vectors = {"a/x.mp4": np.float32([3, 4]), "b.mp4": np.float32([0, 2]), "other": np.float32([1, 1, 1])}
    write_weights(path, vectors) if suffix == ".safetensors" else np.savez(path, **vectors)
    got = read_image_embeddings(path, ["b.mp4", "a/x.mp4", "b.mp4"], 2)
    np.testing.assert_allclose(got, [[0, 1], [0.6, 0.8], [0, 1]], rtol=1e-6)
    with pytest.raises(UserError, match="has no vector for 'c.mp4'"):
        read_image_embeddings(path, ["b.mp4", "c.mp4"], 2)
    with pytest.raises(UserError, match=r"'other' is \(3,\) instead of \(2,\)"):
        read_image_embeddings(path, ["other"], 2)


def test_unusable_pictures(tmp_path):
    path = tmp_path / "images.npz"
    np.savez(path, zero=np.zeros(2), nan=np.float32([1, np.nan]), pickled=np.array([{}], dtype=object))
    for name in ("zero", "nan"):
        with pytest.raises(UserError, match=f"'{name}' is zero or not finite"):
            read_image_embeddings(path, [name], 2)
    with pytest.raises(UserError, match=r"images\.npz: cannot be read"):
        read_image_embeddings(path, ["pickled"], 2)
    (tmp_path / "cut.npz").write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"cut\.npz: cannot be read"):
        read_image_embeddings(tmp_path / "cut.npz", ["zero"], 2)
    with pytest.raises(UserError, match="is not a file"):
        read_image_embeddings(tmp_path / "none.npz", ["zero"], 2)
    with pytest.raises(UserError, match=r"give a \.safetensors or \.npz"):
        read_image_embeddings(tmp_path / "x.bin", ["zero"], 2)

"""Embeddings of one prompt as a file: the keys the reference reads, and every kind of damage."""

import zipfile

import numpy as np
import pytest

from mg.dataset.text_npz import read_text_npz, write_text_npz
from mg.errors import UserError
from mg.models.text_encoders.features import TextFeatures


@pytest.fixture
def given():
    random = np.random.default_rng(0)
    mask = np.array([[True, True, False, False]])
    return TextFeatures(
        random.standard_normal((1, 4, 5), np.float32), mask, random.integers(0, 99, (1, 4), dtype=np.int32)
    )


def test_round_trip(given, tmp_path):
    write_text_npz(tmp_path / "sub/a.npz", given, "0123")
    features, fingerprint = read_text_npz(tmp_path / "sub/a.npz")
    assert fingerprint == "0123"
    for name in ("embeddings", "mask", "tokens"):
        np.testing.assert_array_equal(getattr(features, name), getattr(given, name))
        assert getattr(features, name).dtype == getattr(given, name).dtype
    write_text_npz(tmp_path / "b.npz", given, "0123")
    assert (tmp_path / "b.npz").read_bytes() == (tmp_path / "sub/a.npz").read_bytes()


@pytest.mark.parametrize("half, dtype", [(False, np.float32), (True, np.float16)])
def test_numpy_reads_three_keys_of_full_length(given, tmp_path, half, dtype):
    write_text_npz(tmp_path / "a.npz", given, "0123", half)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as stored:
        assert sorted(stored.files) == ["mask", "text_emb", "tokens"]
        assert stored["text_emb"].dtype == dtype
        np.testing.assert_array_equal(stored["text_emb"], given.embeddings[0].astype(dtype))
        np.testing.assert_array_equal(stored["mask"], given.mask[0])
        np.testing.assert_array_equal(stored["tokens"], given.tokens[0])


def test_a_file_of_the_reference(given, tmp_path):
    with open(tmp_path / "a.npz", "wb") as file:
        np.savez(
            file,
            mask=given.mask[0].astype(np.int64),
            text_emb=given.embeddings[0],
            tokens=given.tokens[0].astype(np.int64),
        )
    features, fingerprint = read_text_npz(tmp_path / "a.npz")
    assert fingerprint == ""
    np.testing.assert_array_equal(features.embeddings, given.embeddings)
    assert features.mask.dtype == bool and features.tokens.dtype == np.int32
    np.testing.assert_array_equal(features.mask, given.mask)


def test_damage_anywhere_is_one_line(given, tmp_path):
    path = tmp_path / "a.npz"
    write_text_npz(path, given, "0123")
    whole = path.read_bytes()
    place = whole.index(given.embeddings.tobytes())
    damaged = [b"", b"text", whole[:-5], whole[: len(whole) // 2], whole[:place] + bytes(8) + whole[place + 8 :]]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            read_text_npz(path)
        assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)
    path.write_bytes(whole[:-1])  # the last bytes are the fingerprint's: without them it is no longer this encoder's
    assert read_text_npz(path)[1] == "012"


def test_no_flipped_byte_goes_unnoticed(given, tmp_path):
    path = tmp_path / "a.npz"
    write_text_npz(path, given, "0123")
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            features, fingerprint = read_text_npz(path)
        except UserError:
            continue
        # What nobody reads (times, attributes) may differ, and the comment is checked by who knows the encoder.
        np.testing.assert_array_equal(features.embeddings, given.embeddings)
        np.testing.assert_array_equal(features.tokens, given.tokens)


@pytest.mark.parametrize(
    "arrays",
    [
        {"text_emb": np.zeros((4, 5))},
        {"text_emb": np.zeros((4, 5)), "mask": np.ones(3), "tokens": np.ones(3)},
        {"text_emb": np.zeros(4), "mask": np.ones(4), "tokens": np.ones(4)},
        {"text_emb": np.array([None]), "mask": np.ones(4), "tokens": np.ones(4)},
    ],
)
def test_other_archives(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match="encode its prompt again"):
        read_text_npz(tmp_path / "a.npz")


def test_missing_file_and_encrypted_archive(given, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_text_npz(tmp_path / "none.npz")
    write_text_npz(tmp_path / "a.npz", given, "")
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        for info in archive.filelist:
            info.flag_bits |= 1
        archive.comment = b"changed"  # so that the directory is written again
    with pytest.raises(UserError, match="damaged, or no text embeddings"):
        read_text_npz(tmp_path / "a.npz")

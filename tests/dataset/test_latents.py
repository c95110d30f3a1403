"""Latents on disk: the reference's arrays, who made them, and every way a file can be bad."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mg.dataset.latents import (
    Latent,
    LatentRecord,
    Origin,
    check_folder,
    latent_file,
    latent_shape,
    read_latent,
    write_latent,
)
from mg.errors import BadClip, UserError

RECORD = LatentRecord("0123456789abcdef", 1.5305, 0.0609, 16, 8, 8)
ORIGIN = Origin(RECORD.tae, "a.mp4 7 1", 9, 24, 40, 23.976)


def latent(seed=0, shape=(16, 2, 3, 5), origin=ORIGIN):
    draw = np.random.default_rng(seed)
    return Latent(draw.standard_normal(shape, np.float32), draw.random(shape, np.float32), origin)


def test_what_the_reference_reads(tmp_path):
    one = latent()
    write_latent(tmp_path / "sub/a.npz", one)
    with np.load(tmp_path / "sub/a.npz") as file:  # as any other program does
        assert set(file.files) == {"latent_mean", "latent_std"}
        np.testing.assert_array_equal(file["latent_mean"], one.mean.transpose(1, 0, 2, 3))  # (t, c, h, w)
        np.testing.assert_array_equal(file["latent_std"], one.std.transpose(1, 0, 2, 3))
        assert file["latent_mean"].dtype == np.float32
    back = read_latent(tmp_path / "sub/a.npz")
    np.testing.assert_array_equal(back.mean, one.mean)
    np.testing.assert_array_equal(back.std, one.std)
    assert back.origin == ORIGIN
    assert latent_shape(tmp_path / "sub/a.npz") == ((16, 2, 3, 5), ORIGIN)


def test_what_the_reference_writes(tmp_path):
    mean = np.random.default_rng(1).standard_normal((4, 16, 2, 3)).astype(np.float32)  # (t, c, h, w)
    np.savez(tmp_path / "b.npz", latent_mean=mean, latent_std=np.ones_like(mean))
    found = read_latent(tmp_path / "b.npz")
    np.testing.assert_array_equal(found.mean, mean.transpose(1, 0, 2, 3))
    assert found.origin is None and latent_shape(tmp_path / "b.npz") == ((16, 4, 2, 3), None)


def test_equal_latents_are_equal_files(tmp_path):
    for name in ("a", "b"):
        write_latent(tmp_path / f"{name}.npz", latent())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def write_arrays(path, mean, std):
    np.savez(path, latent_mean=mean, latent_std=std)


GOOD = np.ones((2, 16, 3, 5), np.float32)
NAN = np.where(np.arange(GOOD.size).reshape(GOOD.shape) == 7, np.nan, GOOD)
DAMAGE = {
    "missing": (lambda path: None, "no latents of this video"),
    "empty": (lambda path: path.write_bytes(b""), "damaged"),
    "text": (lambda path: path.write_text("I am no archive\n"), "damaged"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-200]), "damaged"),
    "flipped": (lambda path: flip(path, 3000), "damaged"),
    "other": (lambda path: np.savez(path, text_emb=GOOD), "damaged, or no latents"),
    "pickled": (lambda path: np.savez(path, latent_mean=np.array([{}]), latent_std=GOOD), "damaged, or no latents"),
    "flat": (lambda path: write_arrays(path, GOOD[0], GOOD[0]), "are no latents"),
    "unequal": (lambda path: write_arrays(path, GOOD, GOOD[:1]), "are no latents"),
    "integers": (lambda path: write_arrays(path, GOOD.astype(int), GOOD.astype(int)), "are no latents"),
    "nan": (lambda path: write_arrays(path, NAN, GOOD), "NaN"),
    "negative": (lambda path: write_arrays(path, GOOD, -GOOD), "negative"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
}


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 255
    path.write_bytes(data)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_bad_file_is_named_with_its_reason(tmp_path, kind):
    path = tmp_path / "clip.npz"
    if kind != "missing":
        write_latent(path, latent())
    damage, words = DAMAGE[kind]
    damage(path)
    with pytest.raises(BadClip, match=words) as error:
        read_latent(path)
    assert error.value.path == str(path) and "\n" not in str(error.value)


def test_a_comment_of_others_is_none_of_ours(tmp_path):
    write_latent(tmp_path / "a.npz", latent())
    for comment in (b"made by hand", b"{}", b"\xff\xfe"):
        with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
            archive.comment = comment
        assert read_latent(tmp_path / "a.npz").origin is None


def test_names():
    assert latent_file("sub/ünï 1.mp4") == ("sub/ünï 1.npz", None)
    assert latent_file("a.b.mov") == ("a.b.npz", None)
    for name in ("/etc/a.mp4", "../a.mp4", "sub/../../a.mp4", "", "x" * 300 + ".mp4"):
        assert latent_file(name)[1]


def test_a_folder_belongs_to_one_autoencoder(tmp_path):
    assert check_folder(tmp_path) is None and LatentRecord.read(tmp_path) is None
    RECORD.write(tmp_path)
    assert check_folder(tmp_path, RECORD.tae) == check_folder(tmp_path) == RECORD
    with pytest.raises(UserError, match="0123456789abcdef, not by fedcba") as error:
        check_folder(tmp_path, "fedcba")
    assert str(tmp_path) in str(error.value)
    with pytest.raises(UserError, match="is not a folder"):
        check_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"tae": "x"}', json.dumps({**vars(RECORD), "channels": "16"}), "null", '{"tae": 1}']
)
def test_a_damaged_record(tmp_path, text):
    Path(tmp_path / "latents.json").write_text(text)
    with pytest.raises(UserError, match=r"latents\.json"):
        LatentRecord.read(tmp_path)


def test_a_record_with_more_in_it(tmp_path):
    values = {**vars(replace(RECORD, scaling_factor=1)), "made_by": "a later version"}
    (tmp_path / "latents.json").write_text(json.dumps(values))
    assert LatentRecord.read(tmp_path).scaling_factor == 1

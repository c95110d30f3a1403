"""The cache of text embeddings: what comes back, what survives, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mg.dataset.text_cache import EncoderRecord, TextCache, TextCacheWriter, caption_key
from mg.errors import UserError
from mg.models.text_encoders.features import TextFeatures
from mg.weights import open_weights

RECORD = EncoderRecord("ul2", "0123456789abcdef", width=3, max_length=6, dtype="fp32", text="all")


def features(lengths, seed=0):
    """Random features of captions of these lengths, with rubbish where there is padding."""
    random = np.random.default_rng(seed)
    mask = np.arange(RECORD.max_length) < np.array(lengths)[:, None]
    embeddings = random.standard_normal((*mask.shape, RECORD.width), np.float32)
    return TextFeatures(embeddings, mask, random.integers(1, 99, mask.shape, np.int32))


def padded_with_zeros(given, length=RECORD.max_length):
    mask = given.mask[:, :length]
    embeddings = np.where(mask[..., None], given.embeddings[:, :length], 0)
    return TextFeatures(embeddings, mask, np.where(mask, given.tokens[:, :length], 0))


def assert_equal(one, other):
    for name in ("embeddings", "mask", "tokens"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype == getattr(other, name).dtype


def fill(root, texts, given, **options):
    with TextCacheWriter(root, RECORD, **options) as writer:
        writer.append(texts, given)
    return writer.folder


def test_what_is_written_comes_back_without_its_padding(tmp_path):
    texts = ["a dog", "", "naïve 犬 🐕", "a longer caption"]
    given = features([2, 0, 6, 4])
    folder = fill(tmp_path, texts, given, captions=3)
    assert folder == tmp_path / "ul2-0123456789abcdef"
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    assert shards == ["shard-0of1-000000.safetensors", "shard-0of1-000001.safetensors"]
    assert open_weights(folder / shards[0]).shapes["embeddings"] == (8, 3)

    cache = TextCache.open(tmp_path, "ul2", RECORD.fingerprint)
    assert (len(cache), cache.record) == (4, RECORD)
    assert_equal(cache.get(texts), padded_with_zeros(given))
    order = [3, 0, 0, 2, 1]
    shuffled = TextFeatures(given.embeddings[order], given.mask[order], given.tokens[order])
    assert_equal(cache.get([texts[i] for i in order]), padded_with_zeros(shuffled))
    short = TextFeatures(given.embeddings[:2], given.mask[:2], given.tokens[:2])
    assert_equal(cache.get(texts[:2], max_length=4), padded_with_zeros(short, 4))
    assert cache.get([]).mask.shape == (0, 6)


def test_captions_are_found_by_their_cleaned_text_alone(tmp_path):
    fill(tmp_path, ["a  dog\n"], features([2]))
    cache = TextCache.open(tmp_path, "ul2")
    assert "a dog" in cache and " a\0 dog " in cache and "a cat" not in cache and "" not in cache
    assert caption_key("a dog") == caption_key("a\tdog") != caption_key("A dog")


def test_keys_that_end_in_zero_bytes(tmp_path, monkeypatch):
    keys = {"a": b"x" * 31 + b"\0", "b": b"x" * 31 + b"\1", "c": b"x" * 30 + b"\0\0", "d": b"\0" * 32, "e": b"x" * 32}
    monkeypatch.setattr("mg.dataset.text_cache.caption_key", keys.get)
    given = features([1, 2, 3, 4])
    fill(tmp_path, "abcd", given)
    cache = TextCache.open(tmp_path, "ul2")
    assert cache.get("dcba").mask.sum(1).tolist() == [4, 3, 2, 1] and "e" not in cache


def test_thousands_of_captions_over_shards_and_writers(tmp_path):
    texts = [f"caption number {i}" for i in range(3000)]
    given = features([i % 7 for i in range(3000)])
    for part in range(3):
        rows = slice(part, None, 3)
        own = TextFeatures(given.embeddings[rows], given.mask[rows], given.tokens[rows])
        fill(tmp_path, texts[rows], own, captions=100, part=(part, 3))
    cache = TextCache.open(tmp_path, "ul2")
    assert len(list(cache.folder.glob("shard-2of3-*"))) == 10
    assert all(text in cache for text in texts[::37])
    order = np.random.default_rng(0).permutation(3000)[:200]
    wanted = TextFeatures(given.embeddings[order], given.mask[order], given.tokens[order])
    assert_equal(cache.get([texts[i] for i in order]), padded_with_zeros(wanted))


def test_what_was_flushed_survives_and_a_later_writer_goes_on(tmp_path):
    killed = TextCacheWriter(tmp_path, RECORD)
    killed.append(["one"], features([3], seed=1))
    killed.flush()
    killed.append(["two"], features([4], seed=2))  # and no close
    assert [text in TextCache.open(tmp_path, "ul2") for text in ("one", "two")] == [True, False]
    fill(tmp_path, ["two"], features([4], seed=3))
    cache = TextCache.open(tmp_path, "ul2")
    assert_equal(cache.get(["one"]), padded_with_zeros(features([3], seed=1)))
    assert_equal(cache.get(["two"]), padded_with_zeros(features([4], seed=3)))


def test_a_block_that_fails_keeps_what_was_appended(tmp_path):
    with pytest.raises(KeyboardInterrupt), TextCacheWriter(tmp_path, RECORD) as writer:
        writer.append(["one"], features([3]))
        raise KeyboardInterrupt
    assert "one" in TextCache.open(tmp_path, "ul2")


def test_a_shard_is_full_by_bytes_too(tmp_path):
    folder = fill(tmp_path, list("abcd"), features([6, 6, 6, 6]), size=2 * 6 * 3 * 4)
    assert [len(open_weights(path)["keys"]) for path in sorted(folder.glob("*.safetensors"))] == [2, 2]


@pytest.mark.parametrize("dtype, name, error", [("fp16", "F16", 2**-11), ("bf16", "BF16", 2**-8)])
def test_half_the_size(tmp_path, dtype, name, error):
    given = features([6, 5])
    folder = fill(tmp_path, ["a", "b"], given, dtype=dtype)
    (path,) = folder.glob("*.safetensors")
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["embeddings"]["dtype"] == name
    stored, wanted = TextCache.open(tmp_path, "ul2").get(["a", "b"]), padded_with_zeros(given)
    np.testing.assert_array_equal(stored.tokens, wanted.tokens)
    assert stored.embeddings.dtype == np.float32 and (stored.embeddings != wanted.embeddings).any()
    np.testing.assert_allclose(stored.embeddings, wanted.embeddings, rtol=error, atol=0)


def test_a_value_that_fp16_cannot_hold_is_refused_once(tmp_path):
    given = features([2])
    given.embeddings[0, 0, 0] = 1e6
    with pytest.raises(UserError, match="beyond 65504"), TextCacheWriter(tmp_path, RECORD, dtype="fp16") as writer:
        writer.append(["a"], given)
        writer.flush()
    assert not list(writer.folder.glob("*.safetensors"))


def test_padding_before_tokens_and_another_width_are_defects(tmp_path):
    given = features([2])
    with TextCacheWriter(tmp_path, RECORD) as writer:
        with pytest.raises(ValueError, match="padding"):
            writer.append(["a"], replace(given, mask=given.mask[:, ::-1]))
        with pytest.raises(ValueError, match="of 2 values, not of 3"):
            writer.append(["a"], replace(given, embeddings=given.embeddings[..., :2]))


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_captions_are_named_with_the_command(tmp_path):
    fill(tmp_path, ["a dog"], features([2]))
    with pytest.raises(UserError) as error:
        TextCache.open(tmp_path, "ul2").get(["a dog", "a\ncat", "a bird"])
    line = one_line(error)
    assert "'a\\ncat' is not in it, and 1 more of 3" in line
    assert "inference_text_enc.py" in line and f"--output_path {tmp_path}" in line


def test_another_encoder_never_meets_the_cache(tmp_path):
    fill(tmp_path, ["a dog"], features([2]))
    for kind, fingerprint in (("ul2", "f" * 16), ("byt5", RECORD.fingerprint), ("byt5", None), ("ul", None)):
        with pytest.raises(UserError, match="there is ul2-0123456789abcdef") as error:
            TextCache.open(tmp_path, kind, fingerprint)
        assert f"no text cache {kind}-" in one_line(error)
    with pytest.raises(UserError, match="there is none at all"):
        TextCache.open(tmp_path / "nowhere", "ul2")
    with TextCacheWriter(tmp_path, replace(RECORD, fingerprint="f" * 16)):
        pass
    with pytest.raises(UserError, match="ul2-0123456789abcdef, ul2-ffffffffffffffff; give the fingerprint"):
        TextCache.open(tmp_path, "ul2")
    assert len(TextCache.open(tmp_path, "ul2", "f" * 16)) == 0
    with pytest.raises(UserError, match="is not in it"):
        TextCache.open(tmp_path, "ul2", "f" * 16).get(["a dog"])


def test_a_shard_of_another_encoder_is_refused(tmp_path):
    folder = fill(tmp_path, ["a dog"], features([2]))
    with TextCacheWriter(tmp_path, replace(RECORD, fingerprint="f" * 16)) as other:
        other.append(["a cat"], features([3]))
    (other.folder / "shard-0of1-000000.safetensors").rename(folder / "shard-0of1-000007.safetensors")
    with pytest.raises(UserError, match="000007.safetensors: not a shard of this cache; delete this file"):
        TextCache.open(tmp_path, "ul2", RECORD.fingerprint)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "no shard", "offsets"])
def test_damaged_shards(tmp_path, damage):
    folder = fill(tmp_path, ["a dog", "a cat"], features([2, 3]))
    path = folder / "shard-0of1-000000.safetensors"
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[:-5])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_bytes(b"no tensors" * 10)
    elif damage == "no shard":
        path.write_bytes(content.replace(b'"tokens"', b'"tikens"'))
    else:
        offsets = np.array([0, 2, 5], "<i8").tobytes()
        assert content.count(offsets) == 1
        path.write_bytes(content.replace(offsets, np.array([0, 7, 5], "<i8").tobytes()))
    with pytest.raises(UserError) as error:
        TextCache.open(tmp_path, "ul2")
    line = one_line(error)
    assert line.startswith(f"{path}: ") and "delete this file and encode its captions again" in line


def test_a_shard_that_is_cut_while_it_is_open(tmp_path):
    folder = fill(tmp_path, ["a dog"], features([6]))
    cache = TextCache.open(tmp_path, "ul2")
    path = folder / "shard-0of1-000000.safetensors"
    path.write_bytes(path.read_bytes()[:-90])
    with pytest.raises(UserError, match="has become shorter"):
        cache.get(["a dog"])
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        cache.get(["a dog"])


def test_more_tokens_than_asked_for(tmp_path):
    fill(tmp_path, ["a dog"], features([5]))
    cache = TextCache.open(tmp_path, "ul2")
    assert cache.get(["a dog"], max_length=5).mask.all()
    with pytest.raises(UserError, match="has 5 tokens, more than max_length=4"):
        cache.get(["a dog"], max_length=4)


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "ul2"}', "", '{"colour": 1}'])
def test_a_damaged_record(tmp_path, text):
    folder = fill(tmp_path, ["a dog"], features([5]))
    (folder / "encoder.json").write_text(text)
    for call in (lambda: TextCache.open(tmp_path, "ul2"), lambda: TextCacheWriter(tmp_path, RECORD)):
        with pytest.raises(UserError) as error:
            call()
        assert one_line(error).startswith(f"{folder / 'encoder.json'}: ")


def test_a_record_that_tells_otherwise(tmp_path):
    folder = fill(tmp_path, ["a dog"], features([5]))
    values = json.loads((folder / "encoder.json").read_text())
    (folder / "encoder.json").write_text(json.dumps({**values, "width": "3"}))
    with pytest.raises(UserError, match="width is '3'"):
        TextCache.open(tmp_path, "ul2")
    for fps in ("24", -1, True, [24]):
        (folder / "encoder.json").write_text(json.dumps({**values, "fps": fps}))
        with pytest.raises(UserError, match="fps is"):
            TextCache.open(tmp_path, "ul2")
    (folder / "encoder.json").write_text(json.dumps({**values, "kind": "byt5"}))
    with pytest.raises(UserError, match="describes another encoder"):
        TextCache.open(tmp_path, "ul2")
    with pytest.raises(UserError, match="describes another encoder"):
        TextCacheWriter(tmp_path, RECORD)

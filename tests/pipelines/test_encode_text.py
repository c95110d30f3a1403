"""Encoding lists of prompts with an encoder whose values can be foretold: files, cache, resuming, memory."""

import hashlib
import json
import os
import tracemalloc
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from mg.config.encode_text import EncodeTextConfig
from mg.dataset.text_cache import EncoderRecord, TextCache
from mg.dataset.text_npz import read_text_npz
from mg.errors import NoGoodClip, UserError
from mg.models.text_encoders.features import TextFeatures
from mg.pipelines.encode_text import encode_prompts


class Fake:
    """One token per word: its length and a hash of it; the embedding of a token depends on all tokens before it."""

    kind, width, max_length, dtype = "ul2", 3, 8, "fp32"
    processor = SimpleNamespace(config=SimpleNamespace(text="all"))

    def __init__(self, fingerprint="0123456789abcdef", fail_after=None, values=1.0):
        self.fingerprint, self.fail_after, self.values = fingerprint, fail_after, values
        self.batches, self.trims = [], set()

    def tokenize(self, texts):
        tokens = np.zeros((len(texts), self.max_length), np.int32)
        mask = np.zeros(tokens.shape, bool)
        for row, text in enumerate(texts):
            words = text.split()[: self.max_length]
            tokens[row, : len(words)] = [int(hashlib.sha256(word.encode()).hexdigest()[:7], 16) for word in words]
            mask[row, : len(words)] = True
        return tokens, mask

    def encode_tokens(self, tokens, mask, trim=False):
        if self.fail_after is not None and len(self.batches) == self.fail_after:
            raise KeyboardInterrupt
        self.batches.append(len(tokens))
        self.trims.add(trim)
        sums = np.cumsum(tokens, axis=1)[..., None]
        embeddings = self.values * np.sin(sums * np.arange(1.0, 4.0))
        return TextFeatures(embeddings.astype(np.float32), mask, tokens)

    def of(self, text):
        return self.encode_tokens(*self.tokenize([text]))


def listed(folder, rows, name="list.csv"):
    path = folder / name
    if name.endswith(".csv"):
        rows = ["video,caption", *(f'{video},"{caption}"' for video, caption in rows)]
    path.write_text("\n".join(rows) + "\n", "utf-8")
    return path


def config(tmp_path, prompts, **options):
    options = {"output_path": str(tmp_path / "out"), "batch_size": 3, **options}
    return EncodeTextConfig(prompts_file=str(prompts), **options)


def counts(report):
    return tuple(report[name] for name in ("rows", "encoded", "duplicates", "reused", "skipped"))


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.npz")}


def assert_file(path, encoder, text):
    features, fingerprint = read_text_npz(path)
    wanted = encoder.of(text)
    assert fingerprint == encoder.fingerprint
    np.testing.assert_array_equal(features.embeddings, wanted.embeddings)
    np.testing.assert_array_equal(features.mask, wanted.mask)
    np.testing.assert_array_equal(features.tokens, wanted.tokens)


CLIPS = [("a.mp4", "a red dog"), ("sub/b.mp4", "two cats"), ("c.mov", ""), ("d.png", "a  red dog "), ("e.mp4", "end")]


@pytest.fixture
def clips(tmp_path):
    return listed(tmp_path, CLIPS)


def test_a_csv_becomes_a_file_per_row(tmp_path, clips):
    encoder = Fake()
    report = encode_prompts(config(tmp_path, clips), encoder)
    assert counts(report) == (5, 4, 1, 0, 0)
    assert (encoder.batches, encoder.trims) == ([3, 1], {False})
    assert set(contents(tmp_path / "out")) == {"a.npz", "sub/b.npz", "c.npz", "d.npz", "e.npz"}
    for video, caption in CLIPS:
        assert_file((tmp_path / "out" / video).with_suffix(".npz"), encoder, caption)
    assert json.loads((tmp_path / "out/summary.json").read_text()) == json.loads(json.dumps(report))
    record = json.loads((tmp_path / "out/encoder.json").read_text())
    assert record == {
        "kind": "ul2", "fingerprint": "0123456789abcdef", "width": 3, "max_length": 8, "dtype": "fp32", "text": "all",
        "fps": "none",
    }  # fmt: skip
    assert not [path for path in (tmp_path / "out").rglob(".*")]


def test_a_text_file(tmp_path):
    prompts = listed(tmp_path, ["a cat", "", "v2.0 ready/set", "a cat", ""], "list.txt")
    encoder = Fake()
    report = encode_prompts(config(tmp_path, prompts, fps=29.97), encoder)
    assert counts(report) == (5, 3, 2, 0, 0)
    files = ["000-a-cat.npz", "001-.npz", "002-v2.0-ready_set.npz", "003-a-cat.npz", "004-.npz"]
    assert sorted(contents(tmp_path / "out")) == files
    for name, text in zip(files, ["FPS-30 a cat", "FPS-30", "FPS-30 v2.0 ready/set"], strict=False):
        assert_file(tmp_path / "out" / name, encoder, text)
    assert json.loads((tmp_path / "out/encoder.json").read_text())["fps"] == 29.97


def test_a_folder_has_one_rule_of_frame_rates(tmp_path):
    prompts, record = listed(tmp_path, ["a cat"], "list.txt"), tmp_path / "out/encoder.json"
    encode_prompts(config(tmp_path, prompts, fps=24.0), Fake())
    other = listed(tmp_path, ["a dog"], "other.txt")
    with pytest.raises(UserError, match="its captions were encoded with --fps 24.0, not --fps none; .*--overwrite"):
        encode_prompts(config(tmp_path, other), Fake())
    assert set(contents(tmp_path / "out")) == {"000-a-cat.npz"}
    encode_prompts(config(tmp_path, prompts, overwrite=True), Fake())
    assert json.loads(record.read_text())["fps"] == "none"
    assert_file(tmp_path / "out/000-a-cat.npz", Fake(), "a cat")
    # A record of before rates were noted gets the rule; the files are judged by their tokens, as ever.
    values = json.loads(record.read_text())
    del values["fps"]
    record.write_text(json.dumps(values))
    assert counts(encode_prompts(config(tmp_path, prompts), Fake())) == (1, 0, 0, 1, 0)
    assert json.loads(record.read_text())["fps"] == "none"


@pytest.mark.parametrize("dtype, stored", [("fp32", np.float32), ("fp16", np.float16), ("bf16", np.float32)])
def test_types_of_the_files(tmp_path, clips, dtype, stored):
    encode_prompts(config(tmp_path, clips, dtype=dtype), Fake())
    with np.load(tmp_path / "out/a.npz") as arrays:
        assert arrays["text_emb"].dtype == stored


def test_a_second_run_reuses_what_is_whole_and_right(tmp_path, clips):
    encode_prompts(config(tmp_path, clips), Fake())
    out = tmp_path / "out"
    before = contents(out)
    encoder = Fake()
    assert counts(encode_prompts(config(tmp_path, clips), encoder)) == (5, 0, 0, 5, 0)
    assert encoder.batches == [] and contents(out) == before

    (out / "a.npz").write_bytes(before["a.npz"][:-30])
    (out / "c.npz").write_bytes(b"")
    (out / "d.npz").unlink()  # the same text as a.npz
    listed(tmp_path, [*CLIPS[:4], ("e.mp4", "another end")])
    encoder = Fake()
    assert counts(encode_prompts(config(tmp_path, clips), encoder)) == (5, 3, 1, 1, 0)
    assert_file(out / "e.npz", encoder, "another end")
    after = contents(out)
    assert after.pop("e.npz") != before.pop("e.npz") and after == before


def test_a_missing_duplicate_is_copied_from_a_reused_file(tmp_path, clips):
    encode_prompts(config(tmp_path, clips), Fake())
    before = contents(tmp_path / "out")
    (tmp_path / "out/d.npz").unlink()
    encoder = Fake()
    assert counts(encode_prompts(config(tmp_path, clips), encoder)) == (5, 0, 1, 4, 0)
    assert encoder.batches == [] and contents(tmp_path / "out") == before


def test_a_folder_of_another_encoder_is_refused_until_overwritten(tmp_path, clips):
    encode_prompts(config(tmp_path, clips), Fake())
    before = contents(tmp_path / "out")
    other = Fake("f" * 16, values=2.0)
    with pytest.raises(UserError, match="ul2-0123456789abcdef and not ul2-ffffffffffffffff; choose another folder"):
        encode_prompts(config(tmp_path, clips), other)
    assert contents(tmp_path / "out") == before and other.batches == []

    # Broken off after the first batch: what the old encoder wrote is not taken for the new one's work.
    with pytest.raises(KeyboardInterrupt):
        encode_prompts(config(tmp_path, clips, overwrite=True), Fake("f" * 16, fail_after=1, values=2.0))
    assert len([name for name, content in contents(tmp_path / "out").items() if content != before[name]]) == 4
    assert counts(encode_prompts(config(tmp_path, clips), other)) == (5, 1, 0, 4, 0)
    for video, caption in CLIPS:
        assert_file((tmp_path / "out" / video).with_suffix(".npz"), other, caption)


def test_files_of_another_program_are_not_replaced(tmp_path, clips):
    (tmp_path / "out").mkdir()
    np.savez(tmp_path / "out/a.npz", text_emb=np.zeros((8, 3)))
    with pytest.raises(UserError, match="it holds a.npz, which this program did not write"):
        encode_prompts(config(tmp_path, clips), Fake())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.npz"]


def many(count):
    return [(f"{i}.mp4", f"caption {i * i % 7} of {'x' * (i % 5)}") for i in range(count)]


def test_broken_off_and_resumed_gives_the_same_files(tmp_path):
    prompts = listed(tmp_path, many(20))
    whole = config(tmp_path, prompts, output_path=str(tmp_path / "whole"))
    encode_prompts(whole, Fake())
    with pytest.raises(KeyboardInterrupt):
        encode_prompts(config(tmp_path, prompts), Fake(fail_after=2))
    finished = contents(tmp_path / "out")
    assert 6 <= len(finished) < 20 and not (tmp_path / "out/summary.json").exists()
    report = encode_prompts(config(tmp_path, prompts), Fake())
    assert report["reused"] == len(finished) and report["rows"] == 20
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_shards_do_everything_once(tmp_path):
    prompts = listed(tmp_path, many(13))
    encode_prompts(config(tmp_path, prompts, output_path=str(tmp_path / "whole")), Fake())
    reports = [encode_prompts(config(tmp_path, prompts, shard=f"{i}/2"), Fake()) for i in range(2)]
    assert [report["rows"] for report in reports] == [7, 6]
    assert [report["reused"] for report in reports] == [0, 0]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    names = {path.name for path in (tmp_path / "out").glob("*.json")}
    assert names == {"encoder.json", "summary-0of2.json", "summary-1of2.json"}
    assert counts(encode_prompts(config(tmp_path, prompts, shard="20/21"), Fake())) == (0, 0, 0, 0, 0)


def test_bad_rows_are_listed_and_the_rest_done(tmp_path, clips):
    rows = ["a.mp4,one", "b.mp4", "../c.mp4,x", "d.mp4,1,2", "a.mp4,one", "a.mov,other", "b.mp4,two", "e.mp4,five"]
    clips.write_text("\n".join(["video,caption", *rows]))
    report = encode_prompts(config(tmp_path, clips), Fake())
    assert counts(report) == (8, 3, 1, 0, 4)
    assert [(bad["row"], bad["name"]) for bad in report["bad"]] == [
        (2, "b.mp4"), (3, "../c.mp4"), (4, "d.mp4"), (6, "a.mov"),
    ]  # fmt: skip
    assert report["bad"][3]["error"] == "has the file a.npz in common with row 1"
    assert set(contents(tmp_path / "out")) == {"a.npz", "b.npz", "e.npz"}
    assert_file(tmp_path / "out/a.npz", Fake(), "one")
    # The same rows are bad for every process.
    found = [encode_prompts(config(tmp_path, clips, shard=f"{i}/2"), Fake())["bad"] for i in range(2)]
    assert sorted(bad["row"] for part in found for bad in part) == [2, 3, 4, 6]


def test_nothing_but_bad_rows(tmp_path, clips):
    clips.write_text("video,caption\n/a.mp4,one\nb.mp4\n")
    with pytest.raises(NoGoodClip, match="none of the 2 rows .*row 1 names /a.mp4, which leaves.*summary.json"):
        encode_prompts(config(tmp_path, clips), Fake())
    assert json.loads((tmp_path / "out/summary.json").read_text())["skipped"] == 2


def test_a_list_that_cannot_be_read_to_its_end_writes_nothing(tmp_path, clips):
    clips.write_bytes(clips.read_bytes() + b"z.mp4,\xff\n")
    with pytest.raises(UserError, match="not a UTF-8 CSV"):
        encode_prompts(config(tmp_path, clips), Fake())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["npz", "cache"])
def test_nan_is_told_with_the_row(tmp_path, clips, format):
    with pytest.raises(UserError, match=r"row 1 \(a.mp4\): the encoder gives NaN"):
        encode_prompts(config(tmp_path, clips, format=format), Fake(values=np.nan))
    assert not list((tmp_path / "out").rglob("*.npz")) and not list((tmp_path / "out").rglob("*.safetensors"))


def test_nan_in_padding_alone_is_no_harm(tmp_path, clips):
    class Padded(Fake):
        def encode_tokens(self, tokens, mask, trim=False):
            given = super().encode_tokens(tokens, mask, trim)
            return TextFeatures(np.where(mask[..., None], given.embeddings, np.nan), mask, tokens)

    assert encode_prompts(config(tmp_path, clips), Padded())["encoded"] == 4


def test_one_caption_a_thousand_times_stays_a_small_batch(tmp_path):
    prompts = listed(tmp_path, [(f"{i}.mp4", "the same") for i in range(2000)])
    encoder = Fake()
    report = encode_prompts(config(tmp_path, prompts, format="cache"), encoder)
    assert counts(report) == (2000, 1, 1999, 0, 0) and encoder.batches == [1]
    assert len(TextCache.open(tmp_path / "out", "ul2")) == 1


def test_cache_holds_every_caption_once(tmp_path):
    prompts = listed(tmp_path, many(100))
    encoder = Fake()
    report = encode_prompts(config(tmp_path, prompts, format="cache"), encoder)
    texts = {caption for _, caption in many(100)}
    assert report["encoded"] == len(texts) == 100 - report["duplicates"] and encoder.trims == {True}
    cache = TextCache.open(tmp_path / "out", "ul2", encoder.fingerprint)
    assert len(cache) == len(texts) and cache.record == EncoderRecord.of(encoder)
    for text in texts:
        wanted = encoder.of(text)
        stored = cache.get([text])
        np.testing.assert_array_equal(stored.mask, wanted.mask)
        np.testing.assert_array_equal(stored.tokens, wanted.tokens)
        np.testing.assert_array_equal(stored.embeddings, np.where(wanted.mask[..., None], wanted.embeddings, 0))


def test_cache_resumes_and_another_encoder_has_its_own(tmp_path):
    prompts = listed(tmp_path, many(40))
    with pytest.raises(KeyboardInterrupt):
        encode_prompts(config(tmp_path, prompts, format="cache"), Fake(fail_after=3))
    assert len(TextCache.open(tmp_path / "out", "ul2")) == 9
    report = encode_prompts(config(tmp_path, prompts, format="cache"), Fake())
    texts = {caption for _, caption in many(40)}
    assert report["encoded"] == len(texts) - 9 and len(TextCache.open(tmp_path / "out", "ul2")) == len(texts)
    other = Fake("f" * 16, values=2.0)
    assert encode_prompts(config(tmp_path, prompts, format="cache"), other)["encoded"] == len(texts)
    stored = TextCache.open(tmp_path / "out", "ul2", "f" * 16).get(["caption 0 of"])
    np.testing.assert_array_equal(stored.embeddings[0, :3], other.of("caption 0 of").embeddings[0, :3])


def test_cache_written_by_two_processes(tmp_path):
    prompts = listed(tmp_path, many(30))
    for i in range(2):
        encode_prompts(config(tmp_path, prompts, format="cache", shard=f"{i}/2", dtype="bf16"), Fake())
    cache = TextCache.open(tmp_path / "out", "ul2")
    assert all(caption in cache for _, caption in many(30))
    assert {path.name.split("-")[1] for path in cache.folder.glob("shard-*")} == {"0of2", "1of2"}


def test_rates_of_videos(tmp_path, clip):
    folder = tmp_path / "videos"
    clip(folder / "film.mp4", t=5, rate=Fraction(24000, 1001))
    clip(folder / "slow.mp4", t=5, rate=Fraction(12))
    (folder / "bad.mp4").write_text("no video")
    rows = [("film.mp4", "a dog"), ("slow.mp4", "FPS-24 a dog"), ("bad.mp4", "x"), ("still.png", "a dog")]
    prompts = listed(tmp_path, [*rows, ("no.mp4", "")])
    encoder = Fake()
    report = encode_prompts(config(tmp_path, prompts, fps="video", video_folder=str(folder)), encoder)
    assert counts(report) == (5, 3, 0, 0, 2)
    assert [bad["name"] for bad in report["bad"]] == ["bad.mp4", "no.mp4"]
    assert "not a video" in report["bad"][0]["error"]
    for name, text in (("film", "FPS-24 a dog"), ("slow", "FPS-12 a dog"), ("still", "a dog")):
        assert_file(tmp_path / f"out/{name}.npz", encoder, text)
    with pytest.raises(UserError, match="--video_folder nowhere is not a folder"):
        encode_prompts(config(tmp_path, prompts, fps="video", video_folder="nowhere"), encoder)


def peak(tmp_path, count):
    """Bytes that Python held at most while encoding so many different captions, each with two equal ones."""
    prompts = tmp_path / f"{count}.csv"
    with prompts.open("w") as file:
        file.write("video,caption\n")
        file.writelines(f"{i}.mp4,caption number {i // 2}\n" for i in range(count))
    options = config(tmp_path, prompts, format="cache", batch_size=16, output_path=str(tmp_path / str(count)))
    tracemalloc.start()
    try:
        report = encode_prompts(options, Fake())
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert counts(report) == (count, count // 2, count // 2, 0, 0)
    return most


@pytest.mark.slow
def test_memory_does_not_grow_with_the_list(tmp_path):
    small, large = peak(tmp_path, 3_000), peak(tmp_path, 15_000)
    assert large < small + 200_000  # 6,000 captions more; a dictionary of their keys alone would be 0.8 MB


def test_an_output_that_cannot_be_written(tmp_path, clips):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="--output_path: cannot write"):
        encode_prompts(config(tmp_path, clips), Fake())
    os.truncate(tmp_path / "out", 0)
    with pytest.raises(UserError, match="--output_path: cannot write"):
        encode_prompts(config(tmp_path, clips, format="cache"), Fake())

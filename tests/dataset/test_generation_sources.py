"""Caches, files and lists that the batches of the transformer's training come from, and what is wrong with them."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from generation_toy import CAPTIONED, CAPTIONS, ITEMS, LENGTHS, RECORD, equal, features, item, settings, store
from PIL import Image

from mg.config.generation import TextFolders
from mg.config.prompt_dropout import PromptDropout
from mg.dataset.cuts import Cut
from mg.dataset.generation import GenerationSource
from mg.dataset.latent_sources import LatentFolder, OnlineLatents
from mg.dataset.latents import Latent, Origin, write_latent
from mg.dataset.manifest import Item
from mg.dataset.text_sources import CachedTexts, NpzTexts, OnlineTexts, open_texts
from mg.dataset.transforms import to_tensor
from mg.dataset.video_writer import write_video
from mg.errors import NoGoodClip, TooManyBadClips, UserError
from mg.models.text_encoders.features import TextFeatures


def test_bad_latents_are_named_and_left_out(folder, caplog):
    (folder / "wide3.npz").write_bytes((folder / "wide3.npz").read_bytes()[:-300])
    source = GenerationSource(ITEMS, settings(folder))
    assert list(source.bad) == [str(folder / "wide3.npz")] and "wide3.npz: damaged" in caplog.text
    assert "wide3.mp4" not in {name for index in range(40) for name in source.batch(index)["names"]}
    (folder / "wide4.npz").unlink()
    with pytest.raises(TooManyBadClips, match=r"2 of 16 files are bad, more than max_bad=0\.1.*wide3\.npz") as error:
        GenerationSource(ITEMS, settings(folder))
    assert error.value.exit_code == 5 and "row 4, " in caplog.text
    assert len(GenerationSource(ITEMS, settings(folder, max_bad=0.2)).bad) == 2
    with pytest.raises(NoGoodClip, match="none of the 1 rows is usable.*encode it by"):
        GenerationSource([ITEMS[4]], settings(folder))


def test_a_file_that_goes_bad_during_the_run_is_replaced(folder, caplog, tmp_path):
    listed = tmp_path / "run" / "bad_videos.jsonl"
    option = settings(folder, in_memory=False, max_bad=0.3)
    source = GenerationSource(ITEMS, option, bad_list=listed)
    for i in range(3):
        (folder / f"tall{i}.npz").rename(folder / f"tall{i}.away")
        (folder / f"tall{i}.npz").write_text("gone")
    ran = [source.batch(index) for index in range(30)]
    names = Counter(name for batch in ran if batch["bucket"] == "16x32x16" for name in batch["names"])
    assert set(names) == {"tall3.mp4"} and len(source.bad) == 3
    assert sum("skipping a bad clip" in record.getMessage() for record in caplog.records) == 3
    entries = [json.loads(line) for line in listed.read_text().splitlines()]
    assert {entry["name"] for entry in entries} == {f"tall{i}.mp4" for i in range(3)}
    for i in range(3):  # they are there again: a resumed run goes on as it began, a new one takes them
        (folder / f"tall{i}.away").rename(folder / f"tall{i}.npz")
    resumed = GenerationSource(ITEMS, option, bad_list=listed)
    assert all(equal(resumed.batch(index), ran[index]) for index in range(11, 30))
    fresh = GenerationSource(ITEMS, option)
    assert "tall0.mp4" in {name for index in range(30) for name in fresh.batch(index)["names"]}
    for i in range(4):
        (folder / f"tall{i}.npz").unlink()
    with pytest.raises(NoGoodClip, match="nothing of the size 16x32x16 is readable"):
        for index in range(30):
            source.batch(index)


def test_too_many_that_go_bad_during_the_run_end_it(folder):
    source = GenerationSource(ITEMS, settings(folder, in_memory=False, max_bad=0.2))
    for i in range(4):
        (folder / f"wide{i}.npz").write_text("gone")
    with pytest.raises(TooManyBadClips, match=r"4 of 16 files are bad, more than max_bad=0\.2"):
        for index in range(30):
            source.batch(index)


def test_folders_of_other_models_are_refused(tmp_path, folder, texts):
    with pytest.raises(UserError, match="0123456789abcdef, not by f00d"):
        LatentFolder(folder, tae="f00d")
    store(folder, "wide0.mp4", tae="f00d")  # an --overwrite by another one that was broken off
    source = GenerationSource(ITEMS, settings(folder))
    assert "autoencoder f00d" in source.bad[str(folder / "wide0.npz")]
    with pytest.raises(UserError, match=r"text\.metaclip: .*embeddings of ul2"):
        open_texts(settings(folder, text=TextFolders(metaclip=texts[0].ul2)))
    with pytest.raises(UserError, match=r"text\.ul2: .*no text cache ul2-.*byt5-b5"):
        open_texts(settings(folder, text=TextFolders(ul2=texts[0].byt5)))
    with pytest.raises(UserError, match=r"text\.ul2: .*is not a folder"):
        open_texts(settings(folder, text=TextFolders(ul2=str(tmp_path / "nowhere"))))
    with pytest.raises(UserError, match=r"text\.byt5: .*attend_padding=false"):
        open_texts(settings(folder, text=TextFolders(byt5=texts[0].byt5), attend_padding=True))
    with pytest.raises(UserError, match="tae_latent_folder is missing"):
        GenerationSource(ITEMS, replace(settings(folder), tae_latent_folder=None))


def test_missing_texts_are_named(folder, texts):
    strangers = [replace(CAPTIONED[0], caption="nobody encoded this"), *CAPTIONED[1:]]
    source = GenerationSource(strangers, settings(folder, text=TextFolders(byt5=texts[0].byt5)))
    assert "'nobody encoded this' is not in" in source.bad["/videos/wide0.mp4"]
    Path(texts[0].ul2, "wide1.npz").write_bytes(b"PK")
    source = GenerationSource(CAPTIONED, settings(folder, text=TextFolders(ul2=texts[0].ul2)))
    assert "damaged" in source.bad[str(Path(texts[0].ul2, "wide1.npz"))]
    silent = [replace(one, caption=None) for one in CAPTIONED]
    with pytest.raises(NoGoodClip, match="row 1 has no caption"):
        GenerationSource(silent, settings(folder, text=TextFolders(byt5=texts[0].byt5)))


def test_a_cache_may_be_named_by_its_own_folder(folder, texts):
    inside = next(Path(texts[0].byt5).iterdir())
    opened = open_texts(settings(folder, text=TextFolders(byt5=str(inside))))["byt5"]
    assert isinstance(opened, CachedTexts) and opened.fingerprint == "b5"
    assert isinstance(open_texts(settings(folder, text=texts[0]))["ul2"], NpzTexts)


def test_folders_of_the_reference_have_no_records(tmp_path):
    mean = np.random.default_rng(0).standard_normal((2, 16, 3, 5)).astype(np.float32)  # (t, c, h, w)
    (tmp_path / "l").mkdir()
    np.savez(tmp_path / "l/a.npz", latent_mean=mean, latent_std=np.zeros_like(mean))
    batch = GenerationSource([item("a.mp4")], settings(tmp_path / "l", batch_size=1)).batch(0)
    np.testing.assert_allclose(batch["latent"][0], (mean.transpose(1, 0, 2, 3) - 0.0609) * 1.5305, rtol=1e-5, atol=1e-6)
    assert batch["bucket"] == "16x24x40"


class Words:
    """A text encoder as far as `OnlineTexts` looks at one."""

    kind, width, fingerprint = "byt5", 6, "b5"
    processor = SimpleNamespace(config=SimpleNamespace(text="quoted"))

    def __init__(self):
        self.encoded = []

    def encode(self, texts, trim=False):
        assert trim
        self.encoded += texts
        parts = [features(text, 6, padded_to=9) for text in texts]
        return TextFeatures(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("embeddings", "mask", "tokens")))


def test_online_is_the_same_source(tmp_path, texts):
    """Videos and captions encoded on the way give what their caches give, batch by batch."""
    videos, latents = tmp_path / "videos", tmp_path / "l"
    videos.mkdir()
    RECORD.write(latents)
    draw = np.random.default_rng(0)
    cut = Cut(((16, 32),), frames=16)

    def encode(frames):
        x = to_tensor(frames)  # (3, t, h, w)
        small = x.reshape(3, -1, min(8, x.shape[1]), x.shape[2] // 8, 8, x.shape[3] // 8, 8).mean((2, 4, 6))
        return np.concatenate([small, small[:1]]), np.full((4, *small.shape[1:]), 0.3, np.float32)

    items = []
    for number, caption in enumerate(CAPTIONS[:4]):
        path = videos / (f"{number}.png" if number == 3 else f"{number}.mp4")
        frames = draw.integers(0, 256, (16, 40, 72, 3), dtype=np.uint8)
        Image.fromarray(frames[0]).save(path) if number == 3 else write_video(path, frames, 16)
        items.append(Item(path, path.name, caption, number + 1))
        mean, std = encode(cut.read(items[-1], cut.bucket(items[-1])))
        origin = Origin(RECORD.tae, "", 1 if number == 3 else 16, 16, 32, 0.0 if number == 3 else 16.0)
        write_latent(latents / f"{number}.npz", Latent(mean, std, origin))
    option = settings(latents, text=TextFolders(byt5=texts[0].byt5), text_lengths=LENGTHS, image_ratio=0.5)
    option = replace(option, batch_size=2, dropout=PromptDropout(all=0.3))
    words = Words()
    online = GenerationSource(
        items, option, OnlineLatents(encode, RECORD, cut), {"byt5": OnlineTexts(words, LENGTHS.byt5)}
    )
    cached = GenerationSource(items, option)
    assert online.online and not cached.online and online.buckets == cached.buckets == {"16x16x32": 2, "1x16x32": 2}
    for index in range(10):
        a, b = online.batch(index), cached.batch(index)
        assert a.keys() == b.keys()
        for key in a:
            if isinstance(a[key], np.ndarray):
                np.testing.assert_allclose(a[key], b[key], atol=1e-6)
            else:
                assert a[key] == b[key]
    assert Counter(words.encoded) == Counter({*CAPTIONS[:4], ""})  # each text once


@pytest.mark.parametrize("ratio, missing", [(0.5, "pictures"), (1.0, "pictures"), (0.5, "videos")])
def test_a_ratio_needs_both_kinds(folder, ratio, missing):
    only = [one for one in ITEMS if one.is_image == (missing == "videos")]
    with pytest.raises(UserError, match=f"image_ratio={ratio}: there are no {missing}"):
        GenerationSource(only, settings(folder, image_ratio=ratio))

"""Batches of the transformer's training: what is drawn, from where, and how often."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from generation_toy import (
    BYT5,
    CAPTIONED,
    CAPTIONS,
    ITEMS,
    LENGTHS,
    NAMES,
    RECORD,
    TALL,
    WIDE,
    embedding,
    equal,
    expected,
    features,
    item,
    settings,
    store,
)

from mg.config.generation import EmptyTexts, TextFolders, TextLengths
from mg.config.prompt_dropout import PromptDropout
from mg.dataset import latent_sources
from mg.dataset.clips import rank_rows
from mg.dataset.generation import GenerationSource
from mg.dataset.text_cache import TextCacheWriter
from mg.dataset.text_sources import open_texts
from mg.errors import NoGoodClip, UserError
from mg.schedulers.timesteps import sample_timesteps


def test_a_batch_is_a_pure_function_of_its_index(folder):
    one = GenerationSource(ITEMS, settings(folder, image_ratio=0.3))
    batches = [one.batch(index) for index in range(12)]
    other = GenerationSource(ITEMS, settings(folder, image_ratio=0.3, in_memory=False))
    for index in (11, 3, 7, 3, 0):  # any order, another process, read from disk
        assert equal(other.batch(index), batches[index])
    assert not any(equal(batches[i], batches[j]) for i in range(12) for j in range(i))
    different = GenerationSource(ITEMS, settings(folder, image_ratio=0.3, seed=1))
    assert not any(equal(different.batch(index), batches[index]) for index in range(12))


def test_latents_are_drawn_and_scaled_and_all_draws_are_independent(tmp_path):
    folder = tmp_path / "l"
    RECORD.write(folder)
    mean = store(folder, "a.mp4", (4, 6, 6), std=0.5)
    source = GenerationSource([item("a.mp4")], settings(folder, batch_size=1))
    batches = [source.batch(index) for index in range(200)]
    z = np.stack([batch["latent"][0] for batch in batches]) / RECORD.scaling_factor + RECORD.shift_factor
    deviation = (z - mean) / 0.5  # standard normal, if z ~ N(mean, 0.5)
    count = deviation.size
    assert abs(deviation.mean()) < 5 / count**0.5 and abs(deviation.std() - 1) < 5 / (2 * count) ** 0.5
    noise = np.stack([batch["noise"][0] for batch in batches])
    assert abs(noise.mean()) < 5 / count**0.5 and abs(noise.std() - 1) < 5 / (2 * count) ** 0.5
    assert abs((noise * deviation).mean()) < 5 / count**0.5
    assert batches[0]["latent"].dtype == batches[0]["noise"].dtype == np.float32
    exact = GenerationSource([item("a.mp4")], settings(folder, batch_size=1, sample_latents=False)).batch(5)
    np.testing.assert_allclose(exact["latent"][0], (mean - 0.25) * 2.0, rtol=1e-6)


def test_noise_levels_have_the_distribution_that_was_asked_for(folder):
    for kind in ("logit-normal", "uniform", "discrete-uniform"):
        source = GenerationSource(ITEMS, settings(folder, timesteps=kind, batch_size=50))
        found = np.sort(np.concatenate([source.batch(index)["timestep"] for index in range(40)]))
        wanted = np.sort(sample_timesteps(np.random.default_rng(0), 2000, kind))
        assert found.dtype == np.float32 and 0 < found[0] and found[-1] <= 1000
        assert np.abs(found - wanted).max() < 80  # two samples' quantiles
    whole = GenerationSource(ITEMS, settings(folder, timestep_integer=True, batch_size=50)).batch(0)["timestep"]
    assert (whole == np.round(whole)).all()


def test_a_batch_has_one_bucket_and_pictures_are_videos_of_one_frame(folder):
    source = GenerationSource(ITEMS, settings(folder, image_batch_size=2))
    assert source.buckets == {"16x16x32": 3, "16x32x16": 3, "1x16x32": 2}
    sizes = {"16x16x32": (3, 4, *WIDE), "16x32x16": (3, 4, *TALL), "1x16x32": (2, 4, 1, 2, 4)}
    seen = set()
    for index in range(30):
        batch = source.batch(index)
        assert batch["latent"].shape == batch["noise"].shape == sizes[batch["bucket"]]
        prefix = {"16x16x32": "wide", "16x32x16": "tall", "1x16x32": "picture"}[batch["bucket"]]
        assert all(name.startswith(prefix) for name in batch["names"])
        seen.add(batch["bucket"])
    assert seen == set(sizes)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 1 / 3, 1.0])
def test_the_share_of_pictures_is_exact(folder, ratio):
    source = GenerationSource(ITEMS, settings(folder, image_ratio=ratio, batch_size=1))
    kinds = [source.is_image(index) for index in range(1000)]
    assert [source.batch(index)["latent"].shape[2] == 1 for index in range(30)] == kinds[:30]
    assert abs(sum(kinds) - 1000 * ratio) <= 1  # one of 1,000; 2 % were allowed
    for start in (0, 137, 800):
        assert abs(sum(kinds[start : start + 100]) - 100 * ratio) <= 1


def test_without_a_ratio_every_item_counts_alike(folder):
    source = GenerationSource(ITEMS, settings(folder))
    assert source.batches_per_epoch == pytest.approx(16 / 3)
    used = Counter(name for index in range(16 * 10) for name in source.batch(index)["names"])  # 30 passes
    assert set(used) == set(NAMES) and max(used.values()) - min(used.values()) <= 2 and sum(used.values()) == 480


def test_long_videos_are_cut_to_the_buckets(tmp_path):
    folder = tmp_path / "l"
    RECORD.write(folder)
    long = store(folder, "long.mp4", (6, 2, 2), frames=48, std=0.0)
    store(folder, "short.mp4", (1, 2, 2), frames=8)
    store(folder, "middle.mp4", (3, 2, 2), frames=20)
    items = [item("long.mp4"), item("short.mp4"), item("middle.mp4")]
    source = GenerationSource(items, settings(folder, batch_size=4, frames=(1, 16, 32), batch_sizes={32: 2}))
    assert source.buckets == {"32x16x16": 2, "16x16x16": 4} and [one.name for one in source.items] == [
        "long.mp4",
        "middle.mp4",
    ]
    batches = [source.batch(index) for index in range(40)]
    starts = Counter()
    for batch in (batch for batch in batches if batch["bucket"] == "32x16x16"):
        for clip in batch["latent"]:
            windows = [np.allclose(clip, (long[:, s : s + 4] - 0.25) * 2, atol=1e-6) for s in range(3)]
            assert sum(windows) == 1
            starts[windows.index(True)] += 1
    assert set(starts) == {0, 1, 2}
    with pytest.raises(UserError, match="frames="):
        GenerationSource(items, settings(folder, frames=(64,)))


@pytest.mark.parametrize("in_memory", [None, True, False])
def test_texts_are_cut_padded_and_masked(folder, texts, in_memory):
    options = {"text": texts[0], "empty_text": texts[1], "text_lengths": LENGTHS, "in_memory": in_memory}
    source = GenerationSource(CAPTIONED, settings(folder, **options))
    assert list(source.texts) == ["ul2", "byt5"]
    assert [s.fingerprint for s in source.texts.values()] == ["u2", "b5"]
    for index in range(6):
        batch = source.batch(index)
        assert batch["ul2"].shape == (3, 6, 5) and batch["byt5"].shape == (3, 5, 6) and batch["mask"].shape == (3, 11)
        for row, name in enumerate(batch["names"]):
            text = CAPTIONS[NAMES.index(name)]
            ul2, ul2_mask = expected(text, 5, 6)
            byt5, byt5_mask = expected(text, 6, 5)
            np.testing.assert_array_equal(batch["ul2"][row], ul2)
            np.testing.assert_array_equal(batch["byt5"][row], byt5)
            np.testing.assert_array_equal(batch["mask"][row], [*ul2_mask, *byt5_mask])


@pytest.mark.parametrize("ranks", [1, 3])
def test_the_rows_of_all_ranks_are_the_global_batch(folder, texts, ranks):
    options = {"text": texts[0], "empty_text": texts[1], "text_lengths": LENGTHS, "image_ratio": 0.3}
    option = settings(folder, **options | {"dropout": PromptDropout(all=0.4)})
    whole, part = GenerationSource(CAPTIONED, option), GenerationSource(CAPTIONED, option)
    for index in range(8):
        want = whole.batch(index)
        for rank in range(ranks):
            got = part.batch(index, rank_rows(3, rank, ranks))
            cut = {name: value if name == "bucket" else value[rank::ranks] for name, value in want.items()}
            assert equal(got, cut)


def test_single_videos_as_for_validation_come_once_each(folder):
    source = GenerationSource(ITEMS, settings(folder, batch_size=1, image_ratio=None))
    names = [name for index in range(len(NAMES)) for name in source.batch(index)["names"]]
    assert sorted(names) == sorted(NAMES) and source.samples_per_epoch == len(NAMES)


def test_padding_is_seen_only_when_asked_for(folder, texts):
    options = {"text": TextFolders(ul2=texts[0].ul2), "text_lengths": TextLengths(ul2=7), "attend_padding": True}
    batch = GenerationSource(CAPTIONED, settings(folder, **options)).batch(0)
    assert (batch["mask"] == 1).all()
    for row, name in enumerate(batch["names"]):
        np.testing.assert_array_equal(batch["ul2"][row], features(CAPTIONS[NAMES.index(name)], 5, 8).embeddings[0, :7])


@pytest.mark.parametrize("known", [True, False])
def test_dropped_prompts_are_the_empty_prompt(folder, texts, known, caplog):
    # With no file of the empty prompt, UL2's are masked out; the cache knows "" itself.
    options = {"text": texts[0], "empty_text": texts[1] if known else EmptyTexts(), "text_lengths": LENGTHS}
    dropout = PromptDropout(all=0.2, each=0.1, seed=4)
    source = GenerationSource(CAPTIONED, settings(folder, batch_size=20, dropout=dropout, **options))
    kept = GenerationSource(CAPTIONED, settings(folder, batch_size=20, **options))
    assert source.null_prompts == {"ul2": known, "byt5": True}
    assert ("empty prompt" in caplog.text) != known
    empty = {"ul2": expected("", 5, 6), "byt5": expected("", 6, 5)}
    if not known:
        empty["ul2"] = (np.zeros((6, 5)), np.zeros(6))
    rates = Counter()
    for index in range(60):
        batch, whole = source.batch(index), kept.batch(index)
        assert batch["names"] == whole["names"] and np.array_equal(batch["latent"], whole["latent"])
        masks = {"ul2": slice(0, 6), "byt5": slice(6, 11)}
        for row in range(20):
            lost = []
            for kind, (null, mask) in empty.items():
                if np.array_equal(batch["mask"][row, masks[kind]], mask):
                    lost.append(kind)
                    np.testing.assert_array_equal(batch[kind][row], null)
                else:
                    np.testing.assert_array_equal(batch[kind][row], whole[kind][row])
                    np.testing.assert_array_equal(batch["mask"][row, masks[kind]], whole["mask"][row, masks[kind]])
            rates["+".join(lost)] += 1
    share = {key: count / 1200 for key, count in rates.items()}
    one = 0.8 * 0.1 * 0.9  # by itself, the other one not
    assert share["ul2+byt5"] == pytest.approx(0.2 + 0.8 * 0.01, abs=0.03)
    assert share["ul2"] == pytest.approx(one, abs=0.02) and share["byt5"] == pytest.approx(one, abs=0.02)


def test_equal_texts_are_in_memory_once(folder, texts):
    for kind in ("ul2", "byt5"):
        opened = open_texts(settings(folder, text=texts[0]))[kind]
        keys = {opened.key(one, None) for one in CAPTIONED}
        assert len(keys) == 3 and len(opened._store._kept) == 3
    whole = sum(embedding(text, 6).nbytes for text in set(CAPTIONS))
    assert opened._store._used == whole


@pytest.mark.parametrize("memory, latents, captions", [(600, 1, 3), (100, 0, 1)])
def test_what_does_not_fit_into_memory_is_read_when_needed(folder, texts, monkeypatch, memory, latents, captions):
    options = {"text": texts[0], "empty_text": texts[1], "text_lengths": LENGTHS}
    whole = GenerationSource(CAPTIONED, settings(folder, **options))
    monkeypatch.setattr(latent_sources, "MEMORY", memory)  # a latent takes 512 bytes, UL2's texts 80, 120 and 40
    small = GenerationSource(CAPTIONED, settings(folder, **options))
    assert len(small.latents._kept) == latents and len(whole.latents._kept) == 16
    assert len(small.texts["ul2"]._store._kept) == captions
    assert all(equal(small.batch(index), whole.batch(index)) for index in range(8))


def test_frame_rates_in_front_of_captions(tmp_path, folder):
    with TextCacheWriter(tmp_path / "t", BYT5) as writer:
        for text in ("FPS-16 fog", "FPS-24 fog", "fog"):
            writer.append([text], features(text + " " + text[4:6], 6))
    items = [replace(one, caption="fog") for one in (ITEMS[0], ITEMS[-1])]  # a video of 16 frames per second, a picture
    for fps, wanted in (("none", ["fog", "fog"]), (24, ["FPS-24 fog"] * 2), ("video", ["FPS-16 fog", "fog"])):
        option = settings(folder, text=TextFolders(byt5=str(tmp_path / "t")), fps=fps)
        source = GenerationSource(items, option)
        assert [keys[0] for keys in source._keys.values()] == wanted


@pytest.mark.parametrize("ratio", [None, 0.25])
def test_lists_are_mixed_by_weight_within_videos_and_pictures(folder, ratio):
    lists = {"a.csv": ITEMS[:3] + ITEMS[11:12], "b.csv": ITEMS[3:11] + ITEMS[12:]}
    weights = {"a.csv": 3, "b.csv": 1}
    option = settings(folder, image_ratio=ratio, image_batch_size=2)
    source = GenerationSource(lists, option, weights=weights)
    of = {one.name: name for name, members in lists.items() for one in members}
    counts, drawn = Counter(), {}
    for index in range(1200):
        before = source._images_before(index)
        which = (source._images, before) if source.is_image(index) else (source._videos, index - before)
        _, numbers = which[0].batch(which[1])
        names = [source._items[number].name for number in numbers]
        assert len({of[name] for name in names}) == 1  # a batch is of one list
        counts.update(of[name] for name in names)
        for name in names:
            drawn.setdefault((of[name], name.endswith("png")), Counter())[name] += 1
    total = counts.total()
    assert counts["a.csv"] / total == pytest.approx(0.75, rel=0.01) and source.drawn(1200) == counts
    for (name, _), each in drawn.items():  # equally often within a list, whatever the bucket
        assert max(each.values()) - min(each.values()) <= 0.06 * max(each.values()) + 2, name
    renamed = {"x.csv": lists["a.csv"], "y.csv": lists["b.csv"]}
    again = GenerationSource(renamed, option, weights={"x.csv": 3, "y.csv": 1})
    assert equal(again.batch(700), source.batch(700))  # what the lists are called does not matter
    assert source.batch(5)["bucket"] in ("16x16x32", "16x32x16", "1x16x32", "1x16x16")
    with pytest.raises(NoGoodClip, match="empty"):
        GenerationSource({"a.csv": ITEMS, "b.csv": []}, option, weights=weights)

"""Training batches: the order, the mix, every alteration, bad clips, and the threads that build ahead."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mg.config.clips import ClipSettings
from mg.dataset.clips import ClipSource, latent_mask
from mg.dataset.frames import VideoFiles
from mg.dataset.manifest import Item, read_manifest
from mg.dataset.transforms import crop_resize, to_tensor
from mg.dataset.video import read_video
from mg.dataset.video_writer import write_video
from mg.errors import NoGoodClip, TooManyBadClips, UserError
from mg.log import get_logger

CLIPS = Path(__file__).parents[2] / "assets" / "clips"
PLAIN = ClipSettings(size=(16, 24), num_frames=4, batch_size=2, random_crop=False, flip=False)
EVERYTHING = ClipSettings(
    size=(32, 32), num_frames=6, batch_size=2, image_ratio=0.25, min_scale=0.4, time_flip=True, max_stride=3,
    transpose=True, grayscale_prob=0.3, color_jitter=0.2, frame_lengths=(2, 6), seed=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def real():
    return read_manifest(CLIPS / "train.csv", CLIPS)[:4]


def item(path):
    return Item(path=path, name=path.name, caption=None, row=1)


def gray_clip(folder, name, num_frames=24, size=(32, 48), halves=False):
    """A clip whose frame k is a plain grey of 20 + 9 k; with `halves` the right half is black."""
    frames = np.empty((num_frames, *size, 3), np.uint8)
    frames[:] = (20 + 9 * np.arange(num_frames, dtype=np.uint8))[:, None, None, None]
    if halves:
        frames[:, :, size[1] // 2 :] = 0
    write_video(folder / name, frames, 24, crf=5)
    return item(folder / name)


def numbers(clip):
    """Which frames of a grey clip these are; (3, t, h, w) in [-1, 1] -> list."""
    return np.rint(((clip.mean(axis=(0, 2, 3)) + 1) * 127.5 - 20) / 9).astype(int).tolist()


def same(a, b):
    arrays = ("video", "mask", "fps")
    return a["ids"] == b["ids"] and all(np.array_equal(a[name], b[name]) for name in arrays)


# ---------------------------------------------------------------------------------------------- a pure function


def test_a_batch_depends_on_seed_and_index_only(real):
    first = ClipSource(real, EVERYTHING)
    forward = [first.batch(index) for index in range(8)]
    backward = ClipSource(real, EVERYTHING, reader=VideoFiles(memory=0))
    assert all(same(backward.batch(index), forward[index]) for index in reversed(range(8)))
    tiny_cache = ClipSource(real, EVERYTHING, reader=VideoFiles(memory=30_000_000))
    assert all(same(tiny_cache.batch(index), forward[index]) for index in range(8))
    other = ClipSource(real, replace(EVERYTHING, seed=6))
    assert not any(same(other.batch(index), forward[index]) for index in range(8))


def test_shapes_ranges_and_masks(real):
    source = ClipSource(real, EVERYTHING)
    for index in range(12):
        batch = source.batch(index)
        length = 1 if source.is_image(index) else 6
        assert batch["video"].shape == (2, 3, length, 32, 32) and batch["video"].dtype == np.float32
        assert batch["mask"].shape == (2, length) and batch["mask"].dtype == np.float32
        assert -1 <= batch["video"].min() < batch["video"].max() <= 1
        assert set(batch["mask"].sum(axis=1)) <= ({1} if length == 1 else {2, 6})


def test_without_alterations_a_sample_is_a_stretch_of_the_clip(real):
    batch = ClipSource(real, PLAIN).batch(3)
    for clip, name in zip(batch["video"], batch["ids"], strict=True):
        whole = to_tensor(crop_resize(read_video(CLIPS / name), (16, 24)))
        starts = [t for t in range(whole.shape[1] - 3) if np.array_equal(whole[:, t : t + 4], clip)]
        assert len(starts) >= 1


def test_each_pass_takes_each_clip_once_in_a_new_order(tmp_path):
    items = [gray_clip(tmp_path, f"{n}.mp4", 6) for n in range(5)]
    source = ClipSource(items, replace(PLAIN, batch_size=3, image_ratio=0.4))
    names = [name for index in range(10) for name in source.batch(index)["ids"]]  # 30 samples, 6 passes
    passes = [names[start : start + 5] for start in range(0, 30, 5)]
    assert all(sorted(one) == [f"{n}.mp4" for n in range(5)] for one in passes)
    assert len({tuple(one) for one in passes}) > 3


# ---------------------------------------------------------------------------------------------- images and videos


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 1 / 3, 0.9, 1.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_share_of_images_is_exact_at_any_point(tmp_path, ratio, seed):
    source = ClipSource([item(tmp_path / "a.mp4")], replace(PLAIN, image_ratio=ratio, seed=seed))
    realised = np.cumsum([source.is_image(index) for index in range(1000)])
    assert np.abs(realised - ratio * np.arange(1, 1001)).max() < 1 + 1e-9


def test_pictures_fill_image_batches_only(tmp_path):
    videos = [gray_clip(tmp_path, f"{n}.mp4", 6) for n in range(3)]
    for n in range(3):
        Image.fromarray(np.full((40, 40, 3), 50 * n, np.uint8)).save(tmp_path / f"{n}.png")
    pictures = [item(tmp_path / f"{n}.png") for n in range(3)]
    source = ClipSource([*pictures, *videos], replace(PLAIN, batch_size=3, image_ratio=0.5))
    for index in range(8):
        suffix = ".png" if source.is_image(index) else ".mp4"
        batch = source.batch(index)
        assert sorted(batch["ids"]) == [f"{n}{suffix}" for n in range(3)]
        if suffix == ".png":
            levels = [50 * int(name[0]) / 127.5 - 1 for name in batch["ids"]]
            np.testing.assert_allclose(batch["video"].mean(axis=(1, 2, 3, 4)), levels, atol=1e-5)


# ---------------------------------------------------------------------------------------------- alterations


def batches(source, count):
    return [clip for index in range(count) for clip in source.batch(index)["video"]]


def test_strides_are_drawn_evenly_and_starts_cover_the_clip(tmp_path):
    source = ClipSource([gray_clip(tmp_path, "a.mp4", 13)], replace(PLAIN, max_stride=9))
    runs = [numbers(clip) for clip in batches(source, 100)]
    steps = [np.diff(run) for run in runs]
    assert all(len(set(step)) == 1 for step in steps)
    counts = Counter(step[0] for step in steps)
    assert set(counts) == {1, 2, 3, 4}  # (13 - 1) // (4 - 1): larger strides do not fit
    assert min(counts.values()) > 25
    assert {run[0] for run in runs} == set(range(10)) and max(run[-1] for run in runs) == 12


def test_time_flip_reverses_half(tmp_path):
    source = ClipSource([gray_clip(tmp_path, "a.mp4")], replace(PLAIN, time_flip=True))
    steps = [tuple(np.diff(numbers(clip))) for clip in batches(source, 100)]
    assert set(steps) == {(1, 1, 1), (-1, -1, -1)} and 70 < steps.count((1, 1, 1)) < 130


def test_flip_mirrors_half(tmp_path):
    source = ClipSource([gray_clip(tmp_path, "a.mp4", halves=True)], replace(PLAIN, flip=True))
    bright_left = [clip[..., :8].mean() > clip[..., -8:].mean() for clip in batches(source, 100)]
    assert 70 < sum(bright_left) < 130


def test_transpose_turns_by_quarters(tmp_path):
    settings = replace(PLAIN, size=(16, 16), transpose=True, random_crop=False)
    source = ClipSource([gray_clip(tmp_path, "a.mp4", halves=True)], settings)
    bright = Counter()
    for clip in batches(source, 60):
        picture = clip.mean(axis=(0, 1))  # (h, w)
        sides = [picture[:5].mean(), picture[-5:].mean(), picture[:, :5].mean(), picture[:, -5:].mean()]
        bright["top bottom left right".split()[int(np.argmax(sides))]] += 1
    assert set(bright) == {"top", "bottom", "left", "right"} and min(bright.values()) > 15


@pytest.mark.parametrize(("min_scale", "low"), [(1.0, 64), (0.5, 32), (0.1, 16)])
def test_min_scale_bounds_the_window(tmp_path, min_scale, low):
    ramp = np.zeros((64, 64, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.mgrid[:64, :64] * 3
    Image.fromarray(ramp).save(tmp_path / "a.png")
    settings = replace(PLAIN, size=(16, 16), random_crop=True, min_scale=min_scale, image_ratio=1.0)
    pictures = np.stack(batches(ClipSource([item(tmp_path / "a.png")], settings), 100))[:, :2, 0]  # (n, 2, 16, 16)
    pixels = (pictures + 1) * 127.5 / 3
    windows = (pixels[:, 0, -1, 0] - pixels[:, 0, 0, 0]) * 16 / 15  # source pixels that 16 rows span
    assert windows.min() == pytest.approx(low, abs=2.5) and windows.max() == pytest.approx(64, abs=2.5)
    if min_scale < 1:  # the crop moves in both directions
        assert pixels[:, 0, 0, 0].max() > 20 and pixels[:, 1, 0, 0].max() > 20


def test_colour_jitter_is_one_change_per_clip(real):
    plain, jittered = (ClipSource(real, replace(PLAIN, color_jitter=c)).batch(0)["video"] for c in (0.0, 0.2))
    luma = np.array([0.299, 0.587, 0.114]).reshape(3, 1, 1, 1)
    for before, after in zip(plain, jittered, strict=True):
        free = np.abs(after).max(axis=0) < 0.999  # not clipped
        gray_before, gray_after = (before * luma).sum(axis=0)[free], (after * luma).sum(axis=0)[free]
        contrast, brightness = np.polyfit(gray_before, gray_after, 1)
        np.testing.assert_allclose(gray_after, contrast * gray_before + brightness, atol=1e-5)
        assert 0.8 <= contrast <= 1.2 and -0.2 <= brightness <= 0.2 and not np.allclose(before, after)


def test_grayscale_is_luma(real):
    plain, gray = (ClipSource(real, replace(PLAIN, grayscale_prob=p)).batch(1)["video"] for p in (0.0, 1.0))
    luma = np.tensordot([0.299, 0.587, 0.114], plain, axes=(0, 1))  # (b, t, h, w)
    for channel in range(3):
        np.testing.assert_allclose(gray[:, channel], luma, atol=1e-6)


def test_one_alteration_does_not_shift_another(real):
    a, b = (ClipSource(real, replace(PLAIN, flip=True, grayscale_prob=p)).batch(2) for p in (0.0, 1e-12))
    assert same(a, b)
    flipped, plain = (ClipSource(real, replace(PLAIN, flip=f)).batch(2)["video"] for f in (True, False))
    assert all(np.array_equal(x, y) or np.array_equal(x[..., ::-1], y) for x, y in zip(flipped, plain, strict=True))


def test_short_clips_and_drawn_lengths_are_padded_with_the_last_frame(tmp_path):
    short = ClipSource([gray_clip(tmp_path, "short.mp4", 3)], replace(PLAIN, num_frames=5, max_stride=4))
    batch = short.batch(0)
    assert batch["mask"].tolist() == [[1, 1, 1, 0, 0]] * 2 and numbers(batch["video"][0]) == [0, 1, 2, 2, 2]
    drawn = ClipSource([gray_clip(tmp_path, "long.mp4")], replace(PLAIN, frame_lengths=(1, 3)))
    lengths = Counter()
    for index in range(50):
        batch = drawn.batch(index)
        for clip, mask in zip(batch["video"], batch["mask"], strict=True):
            valid = int(mask.sum())
            lengths[valid] += 1
            first = numbers(clip)[0]
            assert numbers(clip) == [first + min(t, valid - 1) for t in range(4)]
            assert mask.tolist() == [1.0] * valid + [0.0] * (4 - valid)
    assert set(lengths) == {1, 3} and min(lengths.values()) > 30


# ---------------------------------------------------------------------------------------------- memory, bad clips


def test_a_bad_clip_is_replaced_reported_once_and_counted(tmp_path, caplog):
    good = [gray_clip(tmp_path, f"{n}.mp4", 6) for n in range(3)]
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    items = [*good, item(tmp_path / "bad.mp4"), item(tmp_path / "gone.mp4")]
    settings = replace(PLAIN, max_bad=0.5)
    source = ClipSource(items, settings)
    logger = get_logger()
    logger.addHandler(caplog.handler)
    try:
        ran = [source.batch(index) for index in range(10)]
    finally:
        logger.removeHandler(caplog.handler)
    assert source.bad == {
        str(tmp_path / "bad.mp4"): "is not a video file, or is damaged from the start",
        str(tmp_path / "gone.mp4"): "file not found",
    }
    assert {name for batch in ran for name in batch["ids"]} == {"0.mp4", "1.mp4", "2.mp4"}
    for name in ("bad.mp4", "gone.mp4"):
        assert sum(name in record.getMessage() for record in set(caplog.records)) == 1
    fresh = ClipSource(items, settings)
    assert all(same(fresh.batch(index), ran[index]) for index in reversed(range(10)))


def test_too_many_bad_clips_end_the_run_and_their_list_is_believed_on_resume(tmp_path):
    good = [gray_clip(tmp_path, f"{n}.mp4", 6) for n in range(8)]
    for n in range(2):
        (tmp_path / f"bad{n}.mp4").write_bytes(b"no video")
    items = [*good[:4], item(tmp_path / "bad0.mp4"), *good[4:], item(tmp_path / "bad1.mp4")]
    listed = tmp_path / "run" / "bad_videos.jsonl"
    with pytest.raises(TooManyBadClips, match=r"^2 of 10 files are bad, more than max_bad=0\.1 allows") as error:
        source = ClipSource(items, replace(PLAIN, max_bad=0.1), bad_list=listed)
        for index in range(5):
            source.batch(index)
    assert error.value.exit_code == 5 and "\n" not in str(error.value)
    reason = "is not a video file, or is damaged from the start"
    lines = [json.loads(line) for line in listed.read_text().splitlines()]
    assert sorted(lines, key=str) == [{"path": str(tmp_path / f"bad{n}.mp4"), "reason": reason} for n in range(2)]

    straight = ClipSource(items, replace(PLAIN, max_bad=0.2))
    want = [straight.batch(index) for index in range(10)]
    (tmp_path / "bad0.mp4").write_bytes(good[0].path.read_bytes())  # repaired meanwhile: the run goes on as it began
    resumed = ClipSource(items, replace(PLAIN, max_bad=0.2), bad_list=listed)
    assert all(same(resumed.batch(index), want[index]) for index in range(4, 10))
    with pytest.raises(TooManyBadClips, match="3 of 9 .*file not found"):
        ClipSource([*good[:6], *(item(tmp_path / f"gone{n}.mp4") for n in range(3))], PLAIN)


def test_nothing_to_train_on(tmp_path):
    for n in range(3):
        (tmp_path / f"{n}.mp4").write_bytes(b"no video")
    with pytest.raises(NoGoodClip, match="none of the 3 clips") as error:
        ClipSource([item(tmp_path / f"{n}.mp4") for n in range(3)], replace(PLAIN, max_bad=1.0)).batch(0)
    assert error.value.exit_code == 5 and "not a video" in str(error.value)
    with pytest.raises(NoGoodClip, match="empty"):
        ClipSource([], PLAIN)
    with pytest.raises(NoGoodClip, match="image_ratio: 0.5"):
        ClipSource([item(tmp_path / "a.png")], replace(PLAIN, image_ratio=0.5))


@pytest.mark.parametrize("change", [
    {"size": (0, 8)}, {"size": (8, 8, 8)}, {"num_frames": 0}, {"batch_size": 0}, {"image_ratio": 1.5}, {"seed": -1},
    {"min_scale": 0.0}, {"min_scale": 1.1}, {"max_stride": 0}, {"transpose": True}, {"grayscale_prob": -0.1},
    {"color_jitter": 2.0}, {"frame_lengths": ()}, {"frame_lengths": (5,)}, {"cache_short_side": 0},
    {"shuffle_files": 0}, {"cache_gb": -1.0}, {"max_bad": 1.1}, {"fps": 0.0}, {"max_pixels": 0},
    {"max_seconds": float("nan")}, {"coverage": "all", "max_stride": 2}, {"coverage": "all", "frame_lengths": (2,)},
])  # fmt: skip
def test_settings_out_of_range_are_named(change):
    with pytest.raises(UserError, match=next(iter(change))):
        replace(PLAIN, **change)


def test_a_latent_frame_is_valid_if_one_of_its_frames_is():
    mask = np.zeros((4, 17), np.float32)
    mask[0, :8] = mask[1, :9] = mask[2, 16:] = 1
    np.testing.assert_array_equal(latent_mask(mask, 8), [[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(latent_mask(mask[:, :8], 8), [[1], [1], [0], [0]])
    np.testing.assert_array_equal(latent_mask(mask[2:3], 4), [[0, 0, 0, 0, 1]])
    np.testing.assert_array_equal(latent_mask(mask[:, :1], 8), [[1], [1], [0], [0]])
    assert latent_mask(mask, 1).dtype == np.float32

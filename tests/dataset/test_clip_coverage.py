"""Coverage, mixing, frame rates and ranks of the autoencoder's batches, with clips whose frames say who they are."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mg.config.clips import ClipSettings
from mg.dataset.clips import ClipSource, rank_rows
from mg.dataset.frames import VideoFiles
from mg.dataset.manifest import Item
from mg.dataset.prefetch import Prefetcher
from mg.dataset.video_writer import write_video
from mg.errors import NoGoodClip

WHOLE = ClipSettings(
    size=(16, 16), num_frames=4, batch_size=3, random_crop=False, flip=False, coverage="all", shuffle_files=3
)
LENGTHS = (3, 4, 9, 17, 23, 10, 12)


def item(path):
    return Item(path=path, name=path.name, caption=None, row=1)


def numbered(path, count, fps=24):
    """A clip whose frame k is a grey of 10 + 9 k."""
    frames = np.empty((count, 16, 16, 3), np.uint8)
    frames[:] = (10 + 9 * np.arange(count, dtype=np.uint8))[:, None, None, None]
    write_video(path, frames, fps, crf=5)
    return item(path)


def frames_of(batch):
    """(name, numbers of the real frames) of every clip in a batch."""
    for clip, mask, name in zip(batch["video"], batch["mask"], batch["ids"], strict=True):
        levels = np.rint(((clip.mean(axis=(0, 2, 3)) + 1) * 127.5 - 10) / 9).astype(int)
        yield name, levels[mask == 1].tolist()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return [numbered(folder / f"{n}.mp4", count) for n, count in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for n in range(4):
        Image.fromarray(np.full((16, 16, 3), 30 * n, np.uint8)).save(folder / f"{n}.png")
    return [item(folder / f"{n}.png") for n in range(4)]


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_every_frame_lands_in_a_sample_of_the_epoch_and_each_file_is_decoded_once(clips):
    source = ClipSource(clips, WHOLE)
    samples = [sample for index in range(40) for sample in frames_of(source.batch(index))]
    number, grids = 0, []
    for _ in range(4):  # a pass ends with the windows of its last file
        todo = {(item.name, frame) for item, count in zip(clips, LENGTHS, strict=True) for frame in range(count)}
        starts = set()
        while todo:
            name, frames = samples[number]
            assert frames == list(range(frames[0], frames[0] + min(4, LENGTHS[int(name[0])])))
            todo -= {(name, frame) for frame in frames}
            starts.add((name, frames[0]))
            number += 1
        grids.append(frozenset(starts))
    assert len(set(grids)) == 4  # the grid is shifted from pass to pass
    assert number / 4 == pytest.approx(source.samples_per_epoch, rel=0.15)
    assert source.samples_per_epoch < 1.7 * sum(max(1, count / 4) for count in LENGTHS)
    assert source.batches_per_epoch == source.samples_per_epoch / 3

    # With memory for two groups of files, decodings are fewer by the number of clips per file.
    largest = sorted(LENGTHS)[-6:]
    reader = VideoFiles(memory=sum(largest) * 16 * 16 * 3)
    source = ClipSource(clips, WHOLE, reader=reader)
    per_pass = source._videos.passes[0]._begins
    source._place(39, 2, False)
    ends = [end for end in per_pass if end <= 120]
    for index in range(ends[-1] // 3):
        source.batch(index)
    decoded = reader.decodes / len(ends[1:])
    assert decoded <= len(clips)
    assert ends[-1] / len(ends[1:]) > 3 * decoded
    every = VideoFiles(memory=0)
    source = ClipSource(clips, WHOLE, reader=every)
    for index in range(10):
        source.batch(index)
    assert every.decodes == 30


def test_image_batches_do_not_take_windows_away(clips, pictures):
    for members in (clips, [*clips, *pictures]):
        source = ClipSource(members, replace(WHOLE, image_ratio=0.5))
        todo = {(item.name, frame) for item, count in zip(clips, LENGTHS, strict=True) for frame in range(count)}
        used = Counter()
        for index in range(60):
            batch = source.batch(index)
            assert batch["video"].shape[2] == (1 if source.is_image(index) else 4)
            if source.is_image(index):
                used.update(batch["ids"])
                assert batch["fps"].tolist() == [0.0] * 3
            else:
                todo -= {(name, frame) for name, frames in frames_of(batch) for frame in frames}
        assert not todo
        wanted = {one.name for one in (pictures if len(members) > len(clips) else clips)}
        assert set(used) == wanted and max(used.values()) - min(used.values()) <= 1
        assert source.batches_per_epoch == source.samples_per_epoch / 3 * 2


@pytest.mark.parametrize("coverage", ["random", "all"])
def test_batches_do_not_depend_on_workers_or_on_where_a_run_resumes(clips, pictures, coverage):
    settings = replace(WHOLE, coverage=coverage, image_ratio=0.25, flip=True, color_jitter=0.3, seed=3)
    plain = ClipSource([*clips, *pictures], settings)
    want = [plain.batch(index) for index in range(24)]
    for workers in (0, 1, 4):
        fresh = ClipSource([*clips, *pictures], settings)
        for start in (0, 17):  # again from the middle of a pass, as after a restart
            with Prefetcher(fresh, start, depth=3, workers=workers) as ahead:
                assert all(same(next(ahead), want[index]) for index in range(start, start + 7))


def test_four_workers_decode_no_file_twice(clips):
    source = ClipSource(clips, WHOLE)
    with Prefetcher(source, depth=8, workers=4) as ahead:
        for _ in range(30):
            next(ahead)
    assert source._reader.decodes == len(clips)


def test_bad_files_keep_the_windows_of_the_others(clips, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(clips[4].path.read_bytes()[:-900])  # the header promises 23 frames
    (tmp_path / "text.mp4").write_text("no video")
    members = [*clips, item(tmp_path / "bad.mp4"), item(tmp_path / "text.mp4"), item(tmp_path / "gone.mp4")]
    settings = replace(WHOLE, max_bad=0.4)
    first = ClipSource(members, settings, bad_list=tmp_path / "bad_videos.jsonl")
    want = [first.batch(index) for index in range(30)]
    assert {name for batch in want for name in batch["ids"]} == {one.name for one in clips}
    todo = {(one.name, frame) for one, count in zip(clips, LENGTHS, strict=True) for frame in range(count)}
    assert not todo - {(name, frame) for batch in want for name, frames in frames_of(batch) for frame in frames}
    assert len(first.bad) == 3
    resumed = ClipSource(members, settings, bad_list=tmp_path / "bad_videos.jsonl")
    assert resumed.fingerprint == first.fingerprint != ClipSource(clips, settings).fingerprint
    with Prefetcher(resumed, start=11, workers=3) as ahead:
        assert all(same(next(ahead), want[index]) for index in range(11, 30))


# ---------------------------------------------------------------------------------------------- several lists


def test_lists_are_mixed_by_weight_each_in_passes_of_its_own(clips, pictures):
    sets = {"long": clips[3:], "short": [*clips[:3], *pictures[:1]], "stills": pictures[1:]}
    weights = {"long": 0.2, "short": 0.6, "stills": 0.2}
    settings = replace(WHOLE, coverage="random", image_ratio=0.3)
    source = ClipSource(sets, settings, weights=weights)
    of = {one.name: name for name, members in sets.items() for one in members}
    order = {True: [], False: []}
    streams = {}
    for index in range(200):
        batch = source.batch(index)
        for name in batch["ids"]:
            order[source.is_image(index)].append(of[name])
            streams.setdefault((of[name], source.is_image(index)), []).append(name)
        if index in (0, 77, 199):
            assert source.drawn(index + 1) == {name: (order[True] + order[False]).count(name) for name in sets}
    assert (len(order[False]), len(order[True])) == (420, 180)
    for end in range(100, 401, 100):  # 0.2 : 0.6 of the lists that have videos, exact after every hundred
        assert Counter(order[False][:end]) == {"long": end // 4, "short": end * 3 // 4}
    assert Counter(order[True][:100]) == {"short": 75, "stills": 25}
    for (name, _), stream in streams.items():
        size = len(set(stream))
        passes = [stream[start : start + size] for start in range(0, len(stream) - size + 1, size)]
        assert all(len(set(one)) == size for one in passes), name
        assert size == 1 or len({tuple(one) for one in passes}) > 1
    far = 10**8
    assert same(source.batch(far), ClipSource(sets, settings, weights=weights).batch(far))
    every = {name: members for name, members in sets.items() if name != "stills"}
    whole = ClipSource(every, WHOLE, weights=weights)
    assert whole.samples_per_epoch > sum(LENGTHS) / 4
    with pytest.raises(NoGoodClip, match="empty"):
        ClipSource({"a": clips, "b": []}, settings, weights={"a": 1, "b": 1})


# ---------------------------------------------------------------------------------------------- rates, ranks


def test_clips_of_equal_duration_at_one_rate_whatever_the_file_has(tmp_path):
    """The same second and a half at 30 and at 15 frames per second."""
    fast, slow = numbered(tmp_path / "30.mp4", 24, 30), numbered(tmp_path / "15.mp4", 12, 15)
    plain = replace(WHOLE, coverage="random", batch_size=1)
    for one, rate in ((fast, 30.0), (slow, 15.0)):
        batch = ClipSource([one], plain).batch(0)
        assert batch["fps"].tolist() == [rate]  # its own
        ((_, frames),) = frames_of(batch)
        assert np.diff(frames).tolist() == [1, 1, 1]
    for one, step in ((fast, 2), (slow, 1)):
        source = ClipSource([one], replace(plain, fps=15.0))
        for index in range(10):
            batch = source.batch(index)
            assert batch["fps"].tolist() == [15.0]
            ((_, frames),) = frames_of(batch)
            assert np.diff(frames).tolist() == [step] * 3  # 4 / 15 s of both
        whole = ClipSource([one], replace(WHOLE, batch_size=1, fps=15.0))
        seen = {frame for index in range(5) for _, frames in frames_of(whole.batch(index)) for frame in frames}
        assert seen == set(range(0, 24, 2)) if step == 2 else seen == set(range(12))
    strided = ClipSource([fast], replace(plain, max_stride=3))
    for index in range(20):
        batch = strided.batch(index)
        ((_, frames),) = frames_of(batch)
        assert batch["fps"][0] == pytest.approx(30 / (frames[1] - frames[0]))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_rows_of_all_ranks_are_the_global_batch(clips, pictures, ranks):
    settings = replace(WHOLE, batch_size=4, image_ratio=0.25, flip=True)
    whole = ClipSource([*clips, *pictures], settings)
    parts = [ClipSource([*clips, *pictures], settings) for _ in range(ranks)]
    for index in range(6):
        want = whole.batch(index)
        for rank, part in enumerate(parts):
            got = part.batch(index, rank_rows(4, rank, ranks))
            assert got["ids"] == want["ids"][rank::ranks]
            assert all(np.array_equal(got[name], want[name][rank::ranks]) for name in ("video", "mask", "fps"))
    for rank, count in ((0, 3), (2, 2), (-1, 2)):
        with pytest.raises(ValueError, match="of 4 rows"):
            rank_rows(4, rank, count)

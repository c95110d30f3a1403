"""Chunks of decoded clips: the batches that files give, resumable to the byte, damage named."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from mg.config.clips import ClipSettings
from mg.dataset import chunks as room
from mg.dataset.chunks import INDEX, ChunkedClips, ChunkWriter
from mg.dataset.clips import ClipSource
from mg.dataset.headers import Limits
from mg.dataset.manifest import scan_folder
from mg.dataset.prefetch import Prefetcher
from mg.dataset.video import read_video
from mg.dataset.video_writer import write_video
from mg.errors import BadClip, NoGoodClip, UserError

SETTINGS = ClipSettings(
    size=(16, 16), num_frames=4, batch_size=3, image_ratio=0.3, min_scale=0.5, max_stride=2, color_jitter=0.2,
    cache_short_side=24, max_bad=0.5,
)  # fmt: skip
LIMIT = 24 * 32 * 3 * 14  # bytes: about 14 frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven videos, two pictures and three bad files, one of which has a header that promises frames."""
    folder = tmp_path_factory.mktemp("videos")
    draw = np.random.default_rng(0)
    for n, count in enumerate((9, 4, 1, 13, 25, 7, 8)):
        small = draw.integers(0, 255, (count, 6, 8, 3), np.uint8)
        write_video(folder / f"{n}.mp4", small.repeat(8, 1).repeat(8, 2), 24 + n)  # 48 x 64
    for n in range(2):
        Image.fromarray(draw.integers(0, 255, (40, 50 + n, 3), np.uint8)).save(folder / f"p{n}.png")
    whole = (folder / "4.mp4").read_bytes()
    middle = whole.index(b"mdat") + 2000
    (folder / "5x.mp4").write_bytes(whole[:middle] + bytes(200) + whole[middle + 200 :])
    (folder / "4x.mp4").write_text("no video")
    (folder / "q.png").touch()
    return folder


def make(folder, target, **options):
    options = {"short_side": 24, "shard_bytes": LIMIT, "workers": 2} | options
    return ChunkWriter(target, scan_folder(folder), **options)


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("chunks")
    make(folder, target).write()
    return target


def content(target):
    return {path.name: path.read_bytes() for path in sorted(target.iterdir())}


def test_shards_and_index_say_what_is_in_them(folder, made):
    index = json.loads((made / INDEX).read_text())
    shards = sorted(made.glob("shard-*"))
    assert len(shards) > 4 and [shard["file"] for shard in index["shards"]] == [path.name for path in shards]
    assert [shard["bytes"] for shard in index["shards"]] == [path.stat().st_size for path in shards]
    assert [clip["name"] for clip in index["clips"]] == [item.name for item in scan_folder(folder)]
    bad = {clip["name"]: clip["reason"] for clip in index["clips"] if clip["reason"]}
    assert set(bad) == {"4x.mp4", "5x.mp4", "q.png"} and "is damaged" in bad["5x.mp4"]
    sizes = {}
    for clip in index["clips"]:
        if clip["reason"] is None:
            stored = load_file(shards[clip["shard"]])[f"frames.{clip['number']}"]
            np.testing.assert_array_equal(stored, read_video(folder / clip["name"], short_side=24))
            sizes.setdefault(clip["shard"], []).append(stored.nbytes)
    assert all(sum(size) <= LIMIT or len(size) == 1 for size in sizes.values())


@pytest.mark.parametrize("coverage", ["random", "all"])
@pytest.mark.parametrize("fps", [None, 20.0])
def test_batches_are_those_of_the_files_to_the_bit(folder, made, coverage, fps):
    settings = replace(SETTINGS, coverage=coverage, fps=fps, max_stride=1 if coverage == "all" else 2)
    files = ClipSource(scan_folder(folder), settings)
    chunked = ClipSource(scan_folder(folder), replace(settings, chunks=str(made)))
    assert chunked.fingerprint == files.fingerprint and chunked.samples_per_epoch == files.samples_per_epoch
    with Prefetcher(chunked, workers=3) as ahead:
        for index in range(30):
            want, got = files.batch(index), next(ahead)
            assert got["ids"] == want["ids"]
            assert all(np.array_equal(got[name], want[name]) for name in ("video", "mask", "fps"))
    assert files.bad == chunked.bad and files._reader.decodes > 0
    assert replace(settings, chunks=str(made)).of_batches == settings.of_batches


@pytest.mark.parametrize("stops_after", range(0, 6, 2))
@pytest.mark.parametrize("workers", [0, 3])
def test_a_job_that_was_broken_off_ends_with_the_same_bytes(folder, made, tmp_path, stops_after, workers, monkeypatch):
    written = []

    def breaking(path, data):
        if len(written) == stops_after:
            raise KeyboardInterrupt
        written.append(path)
        path.write_bytes(data)

    monkeypatch.setattr(room, "write_bytes", breaking)
    with pytest.raises(KeyboardInterrupt):
        make(folder, tmp_path, workers=workers).write()
    assert not (tmp_path / INDEX).exists() and len(list(tmp_path.iterdir())) == stops_after
    with pytest.raises(UserError, match="index.json is not there; run tools/make_chunks.py, to its end"):
        ChunkedClips(tmp_path)
    monkeypatch.undo()
    done = []
    make(folder, tmp_path, workers=workers).write(done.append)
    assert content(tmp_path) == content(made)
    assert done == sorted(done) and done[-1] == 12


def test_a_shard_that_is_gone_or_broken_is_made_anew_and_no_other(folder, made, tmp_path, monkeypatch):
    for name, data in content(made).items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "shard-00002.safetensors").unlink()
    (tmp_path / "shard-00000.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match=r"shard-00000.safetensors has 100 bytes instead of \d+; delete it and run"):
        ChunkedClips(tmp_path, 24)
    written, real = [], room.write_bytes
    monkeypatch.setattr(room, "write_bytes", lambda path, data: written.append(path.name) or real(path, data))
    make(folder, tmp_path).write()
    assert written == ["shard-00000.safetensors", "shard-00002.safetensors"]
    assert content(tmp_path) == content(made)
    make(folder, tmp_path).write()
    assert len(written) == 2  # again: nothing to do


def test_other_lists_settings_and_files_are_refused(folder, made, tmp_path):
    with pytest.raises(UserError, match="shard-00000.* with other settings; choose another folder"):
        make(folder, made, short_side=16).write()
    with pytest.raises(UserError, match="of another list"):
        ChunkWriter(made, scan_folder(folder)[1:], 24, LIMIT, 1).write()
    with pytest.raises(UserError, match="short side 24, cache_short_side is None"):
        ChunkedClips(made)
    other = replace(SETTINGS, chunks=str(made))
    (tmp_path / "new.mp4").write_bytes((folder / "1.mp4").read_bytes())
    with pytest.raises(UserError, match="has no new.mp4; make chunks of this list"):
        ClipSource(scan_folder(tmp_path), other)
    with pytest.raises(NoGoodClip, match="none of the 1 clips can be decoded"):
        (tmp_path / "new.mp4").write_text("no video")
        make(tmp_path, tmp_path / "c").write()


def test_damage_is_named_by_clip_and_shard_and_only_that_clip_is_lost(folder, made, tmp_path):
    for name, data in content(made).items():
        (tmp_path / name).write_bytes(data)
    reader = ChunkedClips(tmp_path, 24)
    assert list(reader.damaged()) == []
    entry = next(entry for entry in reader.entries.values() if entry.shape and entry.shape[0] == 13)
    path = tmp_path / f"shard-{entry.shard:05d}.safetensors"
    data = bytearray(path.read_bytes())
    start, end = room._layout(path)[0][f"frames.{entry.number}"]
    data[(start + end) // 2] ^= 4
    path.write_bytes(data)
    (line,) = ChunkedClips(tmp_path, 24).damaged()
    assert line.startswith(f"{entry.name}: its frames in {path} are damaged; run tools/make_chunks.py again")
    source = ClipSource(scan_folder(folder), replace(SETTINGS, chunks=str(tmp_path)))
    names = {name for index in range(30) for name in source.batch(index)["ids"]}
    assert entry.name not in names and len(names) == 8 and str(path) in source.bad[str(folder / entry.name)]


def copied(made, target):
    for name, data in content(made).items():
        (target / name).write_bytes(data)
    return target


def test_flipped_bits_are_found_when_the_job_goes_on_and_that_shard_alone_is_made_anew(
    folder, made, tmp_path, monkeypatch, caplog
):
    copied(made, tmp_path)
    path = tmp_path / "shard-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-50] ^= 1
    path.write_bytes(data)
    written, real = [], room.write_bytes
    monkeypatch.setattr(room, "write_bytes", lambda path, data: written.append(path.name) or real(path, data))
    make(folder, tmp_path).write()
    assert written == [path.name] and content(tmp_path) == content(made)
    assert f"{path} is made anew: the frames of " in caplog.text


@pytest.mark.parametrize("size", ["same", "other"])
def test_a_file_that_has_changed_is_named_and_its_shard_can_be_made_anew(folder, tmp_path, size):
    videos = tmp_path / "videos"
    shutil.copytree(folder, videos)
    make(videos, tmp_path / "c").write()
    first = ChunkedClips(tmp_path / "c", 24).entries["3.mp4"]
    image = np.random.default_rng(1).integers(0, 255, (40, 50, 3), np.uint8)
    if size == "same":  # the bytes of another video of this size: one bit, in what follows the frames
        changed = bytearray((videos / "3.mp4").read_bytes())
        changed[-1] ^= 1
        (videos / "3.mp4").write_bytes(changed)
    else:
        write_video(videos / "3.mp4", image[None].repeat(3, 0), 24)
    shard = tmp_path / "c" / f"shard-{first.shard:05d}.safetensors"
    with pytest.raises(UserError, match=f"3.mp4 has changed since {shard} was written; delete that"):
        make(videos, tmp_path / "c").write()
    shard.unlink()
    entries = make(videos, tmp_path / "c").write()
    assert entries[[entry.name for entry in entries].index("3.mp4")].source != first.source
    reader = ChunkedClips(tmp_path / "c", 24)
    assert list(reader.damaged()) == []
    for item in scan_folder(videos):
        if reader.entries[item.name].reason is None:
            stored = reader.read(item, range(reader.entries[item.name].shape[0]))
            np.testing.assert_array_equal(stored, read_video(item.path, short_side=24))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_tried_again_and_taken_once_it_is_mended(folder, tmp_path, workers, monkeypatch, caplog):
    videos = tmp_path / "videos"
    shutil.copytree(folder, videos)
    make(videos, tmp_path / "c", workers=workers).write()
    written, real = [], room.write_bytes
    monkeypatch.setattr(room, "write_bytes", lambda path, data: written.append(path.name) or real(path, data))
    (videos / "4x.mp4").write_text("still no video")
    make(videos, tmp_path / "c", workers=workers).write()
    assert not written
    (videos / "4x.mp4").write_bytes((folder / "1.mp4").read_bytes())  # fits where the bad one stood
    (videos / "5x.mp4").write_bytes((folder / "3.mp4").read_bytes())  # moves what is behind it
    entries = make(videos, tmp_path / "c", workers=workers).write()
    assert [entry.name for entry in entries if entry.reason] == ["q.png"]
    assert "4x.mp4 was bad (is not a video file" in caplog.text
    make(videos, tmp_path / "fresh").write()
    assert content(tmp_path / "c") == content(tmp_path / "fresh")


def test_limits_hold_for_chunks_as_for_files(folder, made):
    item = scan_folder(folder)[4]
    assert item.name == "4.mp4"
    with pytest.raises(BadClip, match="above max_seconds"):
        ChunkedClips(made, 24, Limits(max_seconds=0.5)).check(item)
    for changes in ({"max_seconds": 0.5}, {"max_pixels": 2050, "image_ratio": 1.0}):  # no video is that small
        settings = replace(SETTINGS, max_bad=1.0, **changes)
        files = ClipSource(scan_folder(folder), settings)
        chunked = ClipSource(scan_folder(folder), replace(settings, chunks=str(made)))
        assert all(files.batch(index)["ids"] == chunked.batch(index)["ids"] for index in range(20))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "mg.clip_chunks.9", "shards": []}'])
def test_an_index_that_is_none_is_refused(tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(UserError, match="^chunks: .*index.json is (damaged|of format)"):
        ChunkedClips(tmp_path)


def held():
    """Bytes of memory that are the process's own: pages of mapped files are the system's to drop."""
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_ten_thousand_samples_are_streamed_in_flat_memory(tmp_path):
    frame = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 3), np.uint8)
    for n in range(3):
        write_video(tmp_path / f"{n}.mp4", np.repeat(frame, 600, 0), 24)
    ChunkWriter(tmp_path / "c", scan_folder(tmp_path), None, 10**7, 1).write()
    assert sum(path.stat().st_size for path in (tmp_path / "c").glob("shard-*")) > 22e6
    settings = replace(SETTINGS, cache_short_side=None, size=(8, 8), batch_size=25, chunks=str(tmp_path / "c"))
    source = ClipSource(scan_folder(tmp_path), replace(settings, image_ratio=0.9))
    for index in range(20):
        source.batch(index)
    before = held()
    for index in range(20, 420):
        source.batch(index)
    assert held() - before < 5e6

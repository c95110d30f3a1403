"""Decoding for training: each file once while there is memory, the same frames without, limits, threads."""

import threading
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from mg.dataset import frames as room
from mg.dataset.frames import VideoFiles
from mg.dataset.headers import Header, Limits, peek
from mg.dataset.manifest import Item
from mg.dataset.video import probe, read_video, read_whole
from mg.dataset.video_writer import write_video
from mg.errors import BadClip


def item(path):
    return Item(path=path, name=path.name, caption=None, row=1)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    draw = np.random.default_rng(0)
    for n in range(3):
        small = draw.integers(0, 255, (10 + n, 6, 8, 3), np.uint8)
        write_video(folder / f"{n}.mp4", small.repeat(8, 1).repeat(8, 2), 24 + n)  # 10 + n frames of 48 x 64
    Image.fromarray(draw.integers(0, 255, (40, 50, 3), np.uint8)).save(folder / "p.png")
    return [*(item(folder / f"{n}.mp4") for n in range(3)), item(folder / "p.png")]


def test_reading_whole_is_reading_and_probing(clips):
    for clip in clips[:3]:
        frames, info = read_whole(clip.path, 24)
        np.testing.assert_array_equal(frames, read_video(clip.path, short_side=24))
        assert frames.shape[1] == 24 and info == probe(clip.path)


@pytest.mark.parametrize("memory", [0, 200_000, 10**9])
@pytest.mark.parametrize("short_side", [None, 24])
def test_frames_are_those_of_the_file_with_and_without_memory(clips, memory, short_side):
    reader = VideoFiles(memory, short_side)
    for clip in [*clips, *clips]:
        whole = read_video(clip.path, short_side=short_side)
        assert len(reader.times(clip)) == len(whole)
        for indices in (range(len(whole)), [len(whole) - 1, 0], range(0, len(whole), 2)):
            np.testing.assert_array_equal(reader.read(clip, indices), whole[list(indices)])
        if not clip.is_image:
            info = probe(clip.path)
            assert reader.times(clip) == info.times and reader.fps(clip) == float(info.fps)
            assert reader.header(clip).num_frames == info.num_frames
            assert reader.header(clip).seconds == pytest.approx(info.duration, abs=0.05)
    assert reader._cache.used <= memory
    assert reader.fps(clips[3]) == 0.0 and reader.header(clips[3]) == Header(1, 40, 50, 0.0)


def test_a_file_is_decoded_once_while_there_is_room(clips):
    reader = VideoFiles(10**9)
    for clip in [*clips, *reversed(clips)] * 3:
        reader.read(clip, range(1))
    assert reader.decodes == 4
    size = read_video(clips[0].path).nbytes
    one_fits = VideoFiles(int(size * 1.5))
    for clip in clips[:2] * 3:
        one_fits.read(clip, range(1))
        assert one_fits._cache.used <= size * 1.5
    assert one_fits.decodes == 6


def test_a_file_larger_than_its_header_says_is_not_decoded_whole_again(clips, monkeypatch):
    monkeypatch.setattr(room, "peek", lambda path: Header(1, 48, 64, 0.1))
    reader = VideoFiles(48 * 64 * 3 * 2)
    for _ in range(4):
        assert len(reader.times(clips[0])) == 10 and reader.read(clips[0], range(2)).shape[0] == 2
    assert reader.decodes == 1 + 4  # whole for the first times, then as far as needed


def test_threads_that_want_one_file_share_one_decoding(clips, monkeypatch):
    decodes, everyone = Counter(), threading.Barrier(4)

    def slow(path, *args):
        decodes[str(path)] += 1
        threading.Event().wait(0.05)
        return read_whole(path, *args)

    monkeypatch.setattr(room, "read_whole", slow)
    reader = VideoFiles(10**9)
    found = []

    def work():
        everyone.wait()
        found.extend(reader.read(clip, range(3)) for clip in clips[:3])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert decodes == {str(clip.path): 1 for clip in clips[:3]} and reader.decodes == 3 and len(found) == 12


def test_threads_that_want_a_bad_file_are_all_told(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    reader, told = VideoFiles(10**9), []

    def work():
        try:
            reader.times(item(tmp_path / "bad.mp4"))
        except BadClip as error:
            told.append(error.reason)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == ["is not a video file, or is damaged from the start"] * 4
    with pytest.raises(BadClip, match="not found"):
        reader.check(item(tmp_path / "gone.mp4"))
    with pytest.raises(BadClip, match="not found"):
        reader.check(item(tmp_path / ("x" * 300 + ".mp4")))


@pytest.mark.parametrize(("limits", "reason"), [
    (Limits(max_pixels=48 * 64 - 1), "has frames of 48x64 pixels, above max_pixels"),
    (Limits(max_seconds=0.3), "lasts 0.4 s, above max_seconds"),
    (Limits(max_pixels=48 * 64, max_seconds=1.0), None),
])  # fmt: skip
def test_files_beyond_the_limits_are_bad_before_they_are_decoded(clips, limits, reason):
    reader = VideoFiles(10**9, limits=limits)
    if reason is None:
        assert len(reader.times(clips[0])) == 10
        return
    with pytest.raises(BadClip, match=reason):
        reader.read(clips[0], range(2))
    assert reader.decodes == 0


def test_headers(clips, tmp_path):
    header = peek(clips[1].path)
    assert (header.num_frames, header.height, header.width) == (11, 48, 64)
    assert header.memory() == 11 * 48 * 64 * 3 and header.memory(24) == 11 * 24 * 32 * 3 == header.memory() // 4
    assert peek(clips[3].path).num_frames == 1
    (tmp_path / "text.png").write_text("no picture")
    for path in (tmp_path / "text.png", tmp_path / "gone.mp4"):
        with pytest.raises(BadClip):
            peek(path)

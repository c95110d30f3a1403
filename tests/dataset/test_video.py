"""Reading and writing video files: values against PyAV and decord, and every kind of broken file."""

import errno
import io
import resource
import struct
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import mindspore  # noqa: F401 - must be loaded before decord
import numpy as np
import pytest
from PIL import Image

from mg.dataset.video import probe, read_image, read_video
from mg.dataset.video_writer import write_video
from mg.errors import BadClip, UserError
from mg.metrics import psnr

CLIPS = Path(__file__).parents[2] / "assets" / "clips"
ALL = sorted(path.name for path in CLIPS.glob("*.mp4"))
REAL = CLIPS / "flower_open.mp4"  # 65 frames, 456x256, 30000/1001


def moving(t, h, w):
    """Smooth pictures that differ from frame to frame, easy on the encoder."""
    time, y, x = np.mgrid[:t, :h, :w]
    planes = [(20 + 9 * time + y) % 256, 128 + 100 * np.sin(x / 9 + time / 3), 200 - y + time]
    return np.stack([np.clip(plane, 0, 255) for plane in planes], axis=-1).astype(np.uint8)


def encode(path, frames, *, pts=None, rate=Fraction(25), pix_fmt="yuv420p", codec="libx264", time_base=None):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        if time_base is not None:
            stream.codec_context.time_base = time_base
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if pts is not None:
                picture.pts, picture.time_base = pts[number], time_base
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def remux(source, target, skip=0):
    """The same stream in another container, with an edit list that hides the first `skip` ticks of its clock."""
    options = {"avoid_negative_ts": "disabled"} if skip else {}
    with av.open(str(source)) as given, av.open(str(target), "w", options=options) as out:
        stream = out.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                packet.pts, packet.dts = packet.pts - skip, packet.dts - skip
                out.mux(packet)
    return target


def both(path, indices=None):
    return [read_video(path, indices, reader) for reader in ("pyav", "decord")]


@pytest.mark.parametrize("name", ALL)
def test_readers_agree_on_every_bundled_clip(name):
    by_pyav, by_decord = both(CLIPS / name)
    np.testing.assert_array_equal(by_pyav, by_decord)
    info = probe(CLIPS / name)
    assert by_pyav.shape == (info.num_frames, info.height, info.width, 3)


def test_facts_of_a_real_clip():
    info = probe(REAL)
    assert (info.num_frames, info.height, info.width, info.fps) == (65, 256, 456, Fraction(30000, 1001))
    assert info.times == pytest.approx(np.arange(65) * 1001 / 30000, abs=1e-9)
    assert info.duration == pytest.approx(65 * 1001 / 30000)


@pytest.mark.parametrize("reader", ["auto", "pyav", "decord"])
def test_indices_in_any_order_with_repetitions(reader):
    whole = read_video(REAL, reader="pyav")
    indices = [*np.random.default_rng(0).integers(0, 65, 20), 64, 0, 0, 64, 3]
    np.testing.assert_array_equal(read_video(REAL, indices, reader), whole[indices])
    assert read_video(REAL, [], reader).shape == (0, 256, 456, 3)


@pytest.mark.parametrize("reader", ["pyav", "decord"])
@pytest.mark.parametrize("index", [65, -1])
def test_frames_that_are_not_there(reader, index):
    with pytest.raises(BadClip, match=f"has 65 frames, frame {index} was asked for"):
        read_video(REAL, [0, index], reader)


@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_shrinking_while_reading(reader):
    small = read_video(REAL, range(5), reader, short_side=64)
    assert small.shape == (5, 64, 114, 3)
    blocks = read_video(REAL, range(5))[:, :256, :456].reshape(5, 64, 4, 114, 4, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(small, blocks, atol=0.51)


def test_frames_come_back_in_place(tmp_path):
    frames = moving(12, 64, 96)
    path = encode(tmp_path / "a.mp4", frames)
    for read in both(path):
        assert psnr(read, frames, 255) > 30
        distance = np.abs(read[:, None].astype(int) - frames[None].astype(int)).mean(axis=(2, 3, 4))  # (t, t)
        assert distance.argmin(axis=1).tolist() == list(range(12))


def test_variable_frame_rate(tmp_path):
    pts = [0, 40, 80, 200, 240, 600]
    path = encode(tmp_path / "vfr.mp4", moving(6, 64, 64), pts=pts, time_base=Fraction(1, 1000))
    info = probe(path)
    assert info.times == pytest.approx([tick / 1000 for tick in pts], abs=1e-6)
    assert info.fps == Fraction(5, 1) / Fraction(600, 1000)
    np.testing.assert_array_equal(*both(path))


def test_rates_survive_coarse_clocks(tmp_path):
    path = remux(REAL, tmp_path / "a.mkv")  # counts whole milliseconds
    assert probe(path).fps == Fraction(30000, 1001)
    np.testing.assert_array_equal(read_video(path), read_video(REAL))


@pytest.mark.parametrize(("turns", "matrix"), [
    (3, (0, 1, -1, 0)), (2, (-1, 0, 0, -1)), (1, (0, -1, 1, 0)),
])  # fmt: skip
def test_rotation_noted_in_the_file_is_applied(tmp_path, turns, matrix):
    frames = moving(4, 64, 96)
    path = encode(tmp_path / "plain.mp4", frames)
    plain = read_video(path)
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 4 + 5 * 4 + 16  # version and flags, five 32-bit fields, layer to reserved
    assert struct.unpack_from(">9i", data, place) == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">9i", data, place, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(data)
    expected = np.rot90(plain, turns, axes=(1, 2))
    for read in both(turned):
        np.testing.assert_array_equal(read, expected)
    assert (probe(turned).height, probe(turned).width) == expected.shape[1:3]


def test_frames_hidden_by_an_edit_list_stay_hidden(tmp_path):
    path = remux(REAL, tmp_path / "trimmed.mp4", skip=10 * 1001)
    assert probe(path).num_frames == 55
    for indices in (None, range(55)):
        np.testing.assert_array_equal(read_video(path, indices), read_video(REAL)[10:])
    with pytest.raises(BadClip, match="decord sees 65 of its 55 frames; use pyav"):
        read_video(path, reader="decord")


def test_auto_reads_what_decord_cannot(tmp_path):
    path = encode(tmp_path / "a.gif", moving(6, 32, 32), codec="gif", pix_fmt="rgb8")
    whole = read_video(path)
    assert psnr(whole, moving(6, 32, 32), 255) > 15  # 256 colours
    np.testing.assert_array_equal(read_video(path, [4, 1]), whole[[4, 1]])
    with pytest.raises(BadClip, match="decord cannot read it"):
        read_video(path, [4, 1], reader="decord")


def test_odd_sizes_are_read(tmp_path):
    frames = moving(5, 63, 97)
    path = encode(tmp_path / "odd.mp4", frames, pix_fmt="yuv444p")
    by_pyav, by_decord = both(path)
    assert by_pyav.shape == frames.shape and psnr(by_pyav, frames, 255) > 30
    np.testing.assert_array_equal(by_pyav, by_decord)


def test_one_frame(tmp_path):
    path = tmp_path / "one.mp4"
    write_video(path, moving(1, 32, 32), 24)
    info = probe(path)
    assert (info.num_frames, info.fps, info.duration) == (1, 24, pytest.approx(1 / 24))
    for read in both(path):
        assert read.shape == (1, 32, 32, 3)


def test_spaces_and_unicode_in_the_path(tmp_path):
    path = tmp_path / "a folder \u00fc" / "\u4f60\u597d clip.mp4"
    write_video(path, moving(3, 32, 32), 24)
    np.testing.assert_array_equal(*both(path))


def audio_only(path, codec="aac", container_format="mp4", step=1024):
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=16000)
        for start in range(0, 16000, step):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, step), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def with_cover(path):
    """A sound file whose only picture is its cover."""
    audio_only(path, "mp3", "mp3", 576)
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(picture, "png")
    body = b"\0image/png\0\3\0" + picture.getvalue()
    cover = b"APIC" + struct.pack(">IH", len(body), 0) + body
    size = bytes(len(cover) >> shift & 127 for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\3\0\0" + size + cover + path.read_bytes())


def broken(kind, folder):
    path = folder / f"{kind}.mp4"
    data = REAL.read_bytes()
    if kind == "missing":
        return path
    if kind == "folder":
        path.mkdir()
    elif kind == "sound":
        audio_only(path)
    elif kind == "cover":
        with_cover(path)
    elif kind.startswith("cut"):  # the header stands first in this clip, so that the file still opens
        assert data.index(b"moov") < data.index(b"mdat")
        path.write_bytes(data[: len(data) * int(kind[3:]) // 100])
    elif kind == "headless":
        path.write_bytes(data[:1000])
    elif kind == "zeros":
        path.write_bytes(data[:60000] + bytes(3000) + data[63000:])
    elif kind == "flipped":
        path.write_bytes(data[:60000] + bytes([data[60000] ^ 16]) + data[60001:])
    elif kind == "playlist":
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{REAL.name}\n#EXT-X-ENDLIST\n")
    else:
        path.write_bytes({"empty": b"", "text": b"this is no video\n" * 200, "null": bytes(5000)}[kind])
    return path


BROKEN = [
    ("missing", "not found"), ("folder", "is a folder"), ("empty", "not a video"), ("text", "not a video"),
    ("null", "not a video"), ("sound", "no video stream"), ("cover", "no video stream"),
    ("cut30", "cut off"), ("cut60", "cut off"),
    ("cut90", "cut off"), ("cut99", "cut off"), ("headless", "not a video"), ("zeros", "is damaged"),
    ("flipped", "is damaged"), ("playlist", "not a video"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "reason"), BROKEN)
@pytest.mark.parametrize("reader", ["probe", "pyav", "decord"])
def test_broken_files_are_named_with_a_reason(tmp_path, kind, reason, reader):
    path = broken(kind, tmp_path)
    with pytest.raises(BadClip, match=reason) as error:
        probe(path) if reader == "probe" else read_video(path, [0], reader)  # frame 0 itself may be intact
    assert error.value.path == str(path) and str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("percent", [5, 30, 60, 90, 99])
def test_matroska_cut_off(tmp_path, percent):
    whole = remux(REAL, tmp_path / "whole.mkv").read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(whole[: len(whole) * percent // 100])
    with pytest.raises(BadClip, match="is cut off: its last"):
        read_video(path)


def test_no_frames(tmp_path):
    path = tmp_path / "none.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height = stream.width = 32
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    with pytest.raises(BadClip, match="none.mp4"):
        probe(path)


def test_probe_notices_a_changed_file(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, moving(3, 32, 32), 24)
    assert probe(path).num_frames == 3
    write_video(path, moving(5, 32, 32), 24)
    assert probe(path).num_frames == 5


def test_pictures(tmp_path):
    frame = moving(1, 21, 33)
    Image.fromarray(frame[0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), frame)
    np.testing.assert_array_equal(read_video(tmp_path / "a.png", [0, 0]), frame.repeat(2, axis=0))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise
    Image.fromarray(frame[0]).save(tmp_path / "b.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "b.png")[0], np.rot90(frame[0], -1))
    with pytest.raises(BadClip, match="has 1 frames, frame 1"):
        read_video(tmp_path / "a.png", [1])


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_damaged_pictures(tmp_path, suffix, share):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(BadClip, match="no picture, or a damaged one"):
        read_image(path)


@pytest.mark.parametrize("fps", [Fraction(24000, 1001), Fraction(30), Fraction(50, 3), 29.97002997002997, 12.5])
def test_round_trip(tmp_path, fps):
    frames = read_video(REAL, range(17))
    path = tmp_path / "new folder" / "out.mp4"
    write_video(path, frames, fps)
    info = probe(path)
    assert info.fps == Fraction(fps).limit_denominator(1001) and info.num_frames == 17
    for read in both(path):
        assert read.shape == frames.shape and psnr(read, frames, 255) > 35
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt, codec.colorspace) == ("h264", "yuv420p", 1)


def test_colours_survive(tmp_path):
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [200, 120, 40]], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (6, 32, 32, 3))
    write_video(tmp_path / "a.mp4", frames, 10, crf=5)
    np.testing.assert_allclose(read_video(tmp_path / "a.mp4").astype(int), frames.astype(int), atol=6)


def test_frames_may_come_one_by_one(tmp_path):
    frames = moving(4, 32, 48)
    write_video(tmp_path / "a.mp4", frames, 24)
    write_video(tmp_path / "b.mp4", (frame for frame in frames), 24)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize(("h", "w"), [(33, 48), (32, 47), (31, 45), (1, 1)])
def test_odd_sizes_repeat_the_last_row_or_column(tmp_path, h, w):
    frames = moving(3, h, w)
    write_video(tmp_path / "odd.mp4", frames, 24, crf=5)
    padded = np.pad(frames, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    read = read_video(tmp_path / "odd.mp4")
    assert read.shape == padded.shape and psnr(read, padded, 255) > 30


@contextmanager
def disk_full_after(size):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_nothing_is_left_when_the_disk_is_full(tmp_path):
    path = tmp_path / "out.mp4"
    with pytest.raises(UserError, match="out.mp4") as error, disk_full_after(500):
        write_video(path, moving(8, 64, 64), 24)
    assert error.value.__cause__ is None or error.value.__cause__.errno in (errno.EFBIG, errno.ENOSPC)
    assert list(tmp_path.iterdir()) == []


def test_output_that_cannot_be_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        write_video(tmp_path / "file" / "out.mp4", moving(2, 32, 32), 24)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failure_keeps_the_old_file(tmp_path):
    path = tmp_path / "out.mp4"
    path.write_bytes(b"old")

    def frames():
        yield moving(1, 32, 32)[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(path, frames(), 24)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 2000])
def test_bad_rates_are_refused(tmp_path, fps):
    with pytest.raises(UserError, match="fps"):
        write_video(tmp_path / "a.mp4", moving(1, 32, 32), fps)


@pytest.mark.parametrize(
    ("frames", "text"),
    [
        (np.zeros((0, 8, 8, 3), np.uint8), "no frames"),
        (np.zeros((2, 8, 8, 3), np.float32), "uint8"),
        (np.zeros((2, 8, 8), np.uint8), "uint8"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 10, 3), np.uint8)], "a frame is"),
    ],
)
def test_wrong_frames_are_refused(tmp_path, frames, text):
    with pytest.raises(ValueError, match=text):
        write_video(tmp_path / "a.mp4", frames, 24)
    assert list(tmp_path.iterdir()) == []

"""The one seam to video and image files: probe and read; `mg.dataset.video_writer` writes.

Frames are uint8 (t, h, w, 3) in RGB order, upright (the rotation a phone notes in the file is applied) and in the
colours the file is tagged with. Pixels are taken as square. A file that is damaged or cut off raises `BadClip`: a
reader never hands out fewer frames than the file promises.
"""

import functools
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.stream import Disposition
from PIL import Image, ImageOps

from mg.dataset.manifest import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from mg.dataset.transforms import shrink_short_side
from mg.errors import BadClip

__all__ = [
    "IMAGE_SUFFIXES", "OPEN_OPTIONS", "VIDEO_SUFFIXES", "VideoInfo", "probe", "read_image", "read_video", "read_whole",
    "reason_of",
]  # fmt: skip

Reader = Literal["auto", "pyav", "decord"]

OPEN_OPTIONS = {"protocol_whitelist": "file"}
"""A "video" may be a playlist in disguise: nothing but local files is ever opened."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds, found by decoding it.

    Attributes:
        path: the file.
        num_frames: how many frames decode.
        height: pixels, after rotation.
        width: pixels, after rotation.
        fps: mean frame rate; the container's own figure where the presentation times bear it out.
        times: presentation time of every frame in seconds, as the file has it (the first need not be 0).
        duration: seconds, num_frames / fps.
    """

    path: str
    num_frames: int
    height: int
    width: int
    fps: Fraction
    times: tuple[float, ...]
    duration: float


def probe(path: str | Path) -> VideoInfo:
    """Decode a video once and say exactly what is in it; the answer is kept until the file changes.

    Raises:
        BadClip: the file is missing, no video, empty, damaged or cut off.
    """
    path = Path(path)
    try:
        stat = path.stat()
    except OSError as error:
        raise BadClip(str(path), reason_of(error)) from error
    return _probe(str(path), stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=4096)
def _probe(path: str, mtime_ns: int, size: int) -> VideoInfo:
    scan = _Scan(path)
    for _ in scan:
        pass
    return scan.info()


def read_video(
    path: str | Path, indices: Sequence[int] | None = None, reader: Reader = "auto", short_side: int | None = None
) -> np.ndarray:
    """Read frames of a video, or a picture as a video of one frame.

    Args:
        path: the file.
        indices: the frames wanted, in any order, with repetitions if need be; None means all of them.
        reader: "pyav", "decord", or "auto", which picks frames with decord where that is installed, safe to load and
            able to read the file, and uses PyAV otherwise. The frames are the same.
        short_side: shrink each frame to at most this short side (pixels) while reading, to save memory.

    Returns:
        uint8 (t, h, w, 3), t = len(indices).

    Raises:
        BadClip: the file is missing, no video, damaged, cut off, or has no frame with one of the indices.
    """
    path = Path(path)
    indices = None if indices is None else [int(index) for index in indices]
    if path.suffix.lower() in IMAGE_SUFFIXES:
        frames = read_image(path)
        _check_indices(path, indices or (0,), 1)
        frames = frames if indices is None else np.repeat(frames, len(indices), axis=0)
        return frames if short_side is None else shrink_short_side(frames, short_side)
    if reader == "decord":
        return _read_decord(path, indices, short_side)
    if reader == "auto" and indices is not None and _decord_is_safe():
        try:
            return _read_decord(path, indices, short_side)
        except _DecordFails:
            pass
    return _read_pyav(path, indices, short_side)


def read_whole(path: str | Path, short_side: int | None = None) -> tuple[np.ndarray, VideoInfo]:
    """Read every frame of a video and say what is in it, with one decoding.

    Args:
        path: a video file.
        short_side: as for `read_video`.

    Returns:
        uint8 (t, h, w, 3), and what `probe` says; its height and width are those of the file.

    Raises:
        BadClip: the file is missing, no video, empty, damaged or cut off.
    """
    scan = _Scan(str(path))
    frames = []
    for frame in scan:
        rgb = scan.upright(frame.to_ndarray(format="rgb24"))[None]  # (1, h, w, 3)
        frames.append(rgb if short_side is None else shrink_short_side(rgb, short_side))
    info = scan.info()  # raises where there are no frames
    return np.concatenate(frames), info


class _DecordFails(BadClip):
    """The file is good, but decord does not manage it."""


def _decord_is_safe() -> bool:
    # MindSpore aborts the process when it is imported after decord, so decord must not come first.
    return "mindspore" in sys.modules and importlib.util.find_spec("decord") is not None


def _check_indices(path: Path, indices: Sequence[int], num_frames: int) -> None:
    wrong = [index for index in indices if not 0 <= index < num_frames]
    if wrong:
        raise BadClip(str(path), f"has {num_frames} frames, frame {wrong[0]} was asked for (the first is 0)")


def _read_pyav(path: Path, indices: Sequence[int] | None, short_side: int | None) -> np.ndarray:
    if indices is not None:
        info = probe(path)  # damage behind the last frame wanted counts, too
        _check_indices(path, indices, info.num_frames)
        if not indices:
            return np.empty((0, info.height, info.width, 3), dtype=np.uint8)
    wanted = None if indices is None else set(indices)
    found: dict[int, np.ndarray] = {}
    scan = _Scan(str(path))
    for number, frame in enumerate(scan):
        if wanted is None or number in wanted:
            rgb = scan.upright(frame.to_ndarray(format="rgb24"))[None]  # (1, h, w, 3)
            found[number] = rgb if short_side is None else shrink_short_side(rgb, short_side)
        if wanted is not None and len(found) == len(wanted):
            break
    return np.concatenate([found[number] for number in (range(len(found)) if indices is None else indices)])


def _read_decord(path: Path, indices: Sequence[int] | None, short_side: int | None) -> np.ndarray:
    import decord

    info = probe(path)  # decord conceals damage, so it never judges a file
    order = list(range(info.num_frames)) if indices is None else indices
    _check_indices(path, order, info.num_frames)
    if not len(order):
        return np.empty((0, info.height, info.width, 3), dtype=np.uint8)
    decord.logging.set_level(decord.logging.QUIET)
    try:
        video = decord.VideoReader(str(path.absolute()), ctx=decord.cpu(0), num_threads=1)
        if len(video) != info.num_frames:  # it also shows the frames that an edit list hides
            raise _DecordFails(str(path), f"decord sees {len(video)} of its {info.num_frames} frames; use pyav")
        chunks = []
        for start in range(0, len(order), 32):
            frames = video.get_batch(order[start : start + 32]).asnumpy()
            chunks.append(frames if short_side is None else shrink_short_side(frames, short_side))
    except (decord.DECORDError, RuntimeError) as error:
        raise _DecordFails(str(path), f"decord cannot read it ({_first_line(error)}); use pyav") from error
    return np.concatenate(chunks)


def read_image(path: str | Path) -> np.ndarray:
    """Read a picture, upright.

    Returns:
        uint8 (1, h, w, 3).

    Raises:
        BadClip: the file is missing, no picture, or damaged.
    """
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))[None]  # (1, h, w, 3)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow reports a damaged PNG as SyntaxError
        raise BadClip(str(path), reason_of(error, "no picture, or a damaged one")) from error


class _Scan:
    """Decodes one video from start to end, notes times and sizes, and raises BadClip for whatever is wrong with it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._ticks: list[int | None] = []  # presentation times in units of the stream's time base
        self._quarter_turns = 0
        self._size = (0, 0)  # (height, width) as coded
        self._hidden = 0  # packets the file itself says not to show

    def __iter__(self) -> Iterator[av.VideoFrame]:
        try:
            _check_matroska(self.path)
            with av.open(os.path.abspath(self.path), options=OPEN_OPTIONS) as container:
                stream = container.streams.best("video")
                if stream is None or stream.disposition & Disposition.attached_pic:  # sound, perhaps with a cover
                    raise BadClip(self.path, "has no video stream")
                stream.thread_type = "AUTO"
                for packet in container.demux(stream):
                    if packet.is_corrupt:
                        raise BadClip(self.path, f"is damaged or cut off after frame {len(self._ticks)}")
                    self._hidden += packet.is_discard
                    for frame in packet.decode():
                        self._note(frame)
                        yield frame
                self._close(stream)
        except (av.error.FFmpegError, OSError, EOFError) as error:
            raise BadClip(self.path, reason_of(error, self._where())) from error

    def _where(self) -> str:
        if self._ticks:
            return f"is damaged after frame {len(self._ticks)}"
        return "is not a video file, or is damaged from the start"

    def _note(self, frame: av.VideoFrame) -> None:
        if frame.is_corrupt:
            raise BadClip(self.path, f"is damaged at frame {len(self._ticks)}")
        if not self._ticks:
            self._size = (frame.height, frame.width)
            self._quarter_turns = round(frame.rotation / 90) % 4
        elif self._size != (frame.height, frame.width):
            raise BadClip(self.path, f"changes its frame size at frame {len(self._ticks)}")
        self._ticks.append(frame.pts)

    def upright(self, rgb: np.ndarray) -> np.ndarray:
        """Apply the rotation noted in the file to one frame (h, w, 3)."""
        return np.ascontiguousarray(np.rot90(rgb, self._quarter_turns)) if self._quarter_turns else rgb

    def _close(self, stream: av.VideoStream) -> None:
        """Compare what was decoded with what the container promised."""
        count = len(self._ticks)
        if count == 0:
            raise BadClip(self.path, "has no frames")
        promised = stream.frames - self._hidden
        if count < promised:
            raise BadClip(self.path, f"is damaged or cut off: {count} of {promised} frames can be decoded")
        self._rate = stream.average_rate or stream.guessed_rate or Fraction(0)
        self._time_base = stream.time_base

    def info(self) -> VideoInfo:
        """Sum up after the scan has run to its end."""
        ticks, count = self._ticks, len(self._ticks)
        rate, base = self._rate, self._time_base
        if None not in ticks and count > 1 and ticks[-1] > ticks[0]:
            measured = Fraction(count - 1) / ((ticks[-1] - ticks[0]) * base)
            # Times are rounded to ticks: at the container's rate the whole span may be off by one tick, not by more.
            agrees = rate > 0 and abs((count - 1) / rate - (ticks[-1] - ticks[0]) * base) <= base
            rate = rate if agrees else measured
        if rate <= 0:
            raise BadClip(self.path, "has neither a frame rate nor presentation times")
        if None in ticks:
            times = tuple(float(index / rate) for index in range(count))
        else:
            times = tuple(float(tick * base) for tick in ticks)
        height, width = self._size[:: -1 if self._quarter_turns % 2 else 1]
        return VideoInfo(self.path, count, height, width, Fraction(rate), times, float(count / rate))


def _check_matroska(path: str) -> None:
    """Raise BadClip if a Matroska or WebM file is shorter than it claims; FFmpeg takes such an end for a normal one."""
    with open(path, "rb") as file:
        head = file.read(4096) + bytes(16)  # room for the last size field of a file that ends early
    if head[:4] != b"\x1a\x45\xdf\xa3":  # not EBML
        return
    header, start = _ebml_size(head, 4)
    start += header
    if head[start : start + 4] != b"\x18\x53\x80\x67":  # no segment where it should be: FFmpeg shall judge
        return
    segment, start = _ebml_size(head, start + 4)
    missing = start + segment - os.path.getsize(path)
    if segment and missing > 0:
        raise BadClip(path, f"is cut off: its last {missing} bytes are missing")


def _ebml_size(data: bytes, start: int) -> tuple[int, int]:
    """Return the size field at `start` (0 if unknown, as in recordings of live streams) and the place after it."""
    length = 9 - data[start].bit_length()  # the leading zero bits of the first byte count the bytes that follow
    value = int.from_bytes(data[start : start + length], "big") & ((1 << 7 * length) - 1)
    return (0 if value == (1 << 7 * length) - 1 else value), start + length


def reason_of(error: Exception, what: str = "cannot be read") -> str:
    """Say in a few words why a file cannot be used; `what` where the error does not tell."""
    if isinstance(error, FileNotFoundError):
        return "file not found"
    if isinstance(error, IsADirectoryError):
        return "is a folder"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    return what


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

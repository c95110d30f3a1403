"""Where training clips take their frames from, and the memory that spares decoding a file twice."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from mg.dataset.headers import Header, Limits, peek
from mg.dataset.manifest import Item
from mg.dataset.video import probe, read_video, read_whole
from mg.errors import BadClip


@dataclass(frozen=True)
class Clip:
    """A decoded clip.

    Attributes:
        frames: RGB, upright.
        times: presentation time of every frame in seconds.
        fps: mean frame rate, 0 for a picture.
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    times: tuple[float, ...]
    fps: float


class FrameReader(Protocol):
    """Frames of the items of a list; safe to ask from several threads.

    Every method raises BadClip for an item that cannot be used.
    """

    def check(self, item: Item) -> None:
        """Find out, without decoding, whether an item is there at all."""

    def header(self, item: Item) -> Header:
        """Return what an item's file announces, without decoding it where that is possible."""

    def times(self, item: Item) -> Sequence[float]:
        """Return the presentation time of every frame in seconds."""

    def fps(self, item: Item) -> float:
        """Return the mean frame rate, 0 for a picture."""

    def read(self, item: Item, indices: Sequence[int]) -> UInt8[np.ndarray, "t h w 3"]:
        """Return frames of an item."""


def pick_frames(frames: UInt8[np.ndarray, "t h w 3"], indices: Sequence[int]) -> UInt8[np.ndarray, "k h w 3"]:
    """Take frames out of a clip; a rising range is a view, which costs nothing."""
    if isinstance(indices, range) and indices.step > 0:
        return frames[indices.start : indices.stop : indices.step]
    return frames[np.asarray(indices)]


class VideoFiles:
    """Decodes files whole and keeps them while there is room; several threads that want a file wait for one decoding.

    A file that says it is larger than the memory is not kept: each reading then decodes it as far as needed.

    Args:
        memory: bytes of decoded frames that are kept; 0 keeps none.
        short_side: shrink frames to this short side (pixels).
        limits: files beyond them are bad.

    Attributes:
        decodes: how many times a file was opened to be decoded.
    """

    def __init__(self, memory: int, short_side: int | None = None, limits: Limits | None = None) -> None:
        self.decodes = 0
        self._memory, self._short_side, self._limits = memory, short_side, limits or Limits()
        self._cache = _ClipCache(memory)
        self._pending: dict[str, Future[Clip]] = {}
        self._large: set[str] = set()
        self._lock = threading.Lock()

    def check(self, item: Item) -> None:
        """See `FrameReader`."""
        try:
            if item.path.is_file():
                return
        except OSError:  # a part of the path is longer than a name may be, or not ours to look into
            pass
        raise BadClip(item.path, "file not found")

    def header(self, item: Item) -> Header:
        """See `FrameReader`."""
        return peek(item.path)

    def times(self, item: Item) -> Sequence[float]:
        """See `FrameReader`."""
        clip = self._whole(item)
        return probe(item.path).times if clip is None else clip.times

    def fps(self, item: Item) -> float:
        """See `FrameReader`."""
        clip = self._whole(item)
        return float(probe(item.path).fps) if clip is None else clip.fps

    def read(self, item: Item, indices: Sequence[int]) -> np.ndarray:
        """See `FrameReader`."""
        clip = self._whole(item)
        if clip is not None:
            return pick_frames(clip.frames, indices)
        with self._lock:
            self.decodes += 1
        return read_video(item.path, indices, short_side=self._short_side)

    def _whole(self, item: Item) -> Clip | None:
        """Return all of a file, None if it is not for the memory."""
        path = str(item.path)
        with self._lock:
            clip = self._cache.get(path)
            if clip is not None or path in self._large:
                return clip
            pending = self._pending.get(path)
            if pending is None:
                mine = self._pending[path] = Future()
        if pending is not None:
            return pending.result()
        try:
            clip = self._decode(item, path)
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            mine.set_result(clip)
            return clip
        finally:
            with self._lock:
                if clip is not None:
                    self._cache.put(path, clip)
                del self._pending[path]

    def _decode(self, item: Item, path: str) -> Clip | None:
        self._limits.check(item.path)
        if not item.is_image and (self._memory == 0 or peek(path).memory(self._short_side) > self._memory):
            with self._lock:
                self._large.add(path)
            return None
        with self._lock:
            self.decodes += 1
        if item.is_image:
            return Clip(read_video(path, short_side=self._short_side), (0.0,), 0.0)
        frames, info = read_whole(path, self._short_side)
        if frames.nbytes > self._memory:  # its header said less
            with self._lock:
                self._large.add(path)
        return Clip(frames, info.times, float(info.fps))


class _ClipCache:
    """Decoded clips by path; the least recently used ones go when `limit` bytes are full."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.used = 0
        self._clips: OrderedDict[str, Clip] = OrderedDict()

    def get(self, path: str) -> Clip | None:
        if path in self._clips:
            self._clips.move_to_end(path)
        return self._clips.get(path)

    def put(self, path: str, clip: Clip) -> None:
        if clip.frames.nbytes > self._limit or path in self._clips:
            return
        self._clips[path] = clip
        self.used += clip.frames.nbytes
        while self.used > self._limit:
            self.used -= self._clips.popitem(last=False)[1].frames.nbytes

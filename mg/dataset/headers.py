"""What a video file says of itself before anything is decoded: quick, and not to be trusted to the last frame."""

import os
from dataclasses import dataclass
from pathlib import Path

import av
from PIL import Image

from mg.dataset.manifest import IMAGE_SUFFIXES
from mg.dataset.video import OPEN_OPTIONS, probe, reason_of
from mg.errors import BadClip

_DECODED = 3
"""Bytes of a decoded pixel."""


@dataclass(frozen=True)
class Header:
    """What a file announces.

    Attributes:
        num_frames: frames, at least 1.
        height: pixels as stored, before rotation.
        width: see height.
        seconds: duration; 0 for a picture.
    """

    num_frames: int
    height: int
    width: int
    seconds: float

    def memory(self, short_side: int | None = None) -> int:
        """Bytes that the decoded frames take, shrunk to a short side where one is given."""
        short = min(self.height, self.width)
        scale = 1.0 if short_side is None else min(1.0, short_side / short)
        return int(self.num_frames * self.height * self.width * _DECODED * scale * scale)


@dataclass(frozen=True)
class Limits:
    """How large a file may be that is decoded at all; None is no limit.

    Attributes:
        max_pixels: of a frame, height x width.
        max_seconds: of the whole file.
    """

    max_pixels: int | None = None
    max_seconds: float | None = None

    def check(self, path: str | Path) -> None:
        """Raise BadClip if a file says that it is larger, or cannot be opened."""
        if self.max_pixels is not None or self.max_seconds is not None:
            self.check_header(path, peek(path))

    def check_header(self, path: str | Path, header: Header) -> None:
        """Raise BadClip if a file whose header is known is larger."""
        pixels = header.height * header.width
        if self.max_pixels is not None and pixels > self.max_pixels:
            raise BadClip(path, f"has frames of {header.height}x{header.width} pixels, above max_pixels")
        if self.max_seconds is not None and header.seconds > self.max_seconds:
            raise BadClip(path, f"lasts {header.seconds:.1f} s, above max_seconds")


def peek(path: str | Path) -> Header:
    """Read a file's header; a video whose header does not tell its length is decoded once.

    Raises:
        BadClip: the file is missing, or neither a video nor a picture.
    """
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:
        return _peek_image(path)
    try:
        with av.open(os.path.abspath(path), options=OPEN_OPTIONS) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise BadClip(path, "has no video stream")
            rate = float(stream.average_rate or 0)
            seconds = (container.duration or 0) / av.time_base
            frames = stream.frames or round(seconds * rate)
            height, width = stream.height, stream.width
    except (av.error.FFmpegError, OSError, EOFError) as error:
        raise BadClip(path, reason_of(error, "is not a video file, or is damaged from the start")) from error
    if frames < 1 or height < 1 or width < 1:
        info = probe(path)
        return Header(info.num_frames, info.height, info.width, info.duration)
    return Header(frames, height, width, seconds)


def _peek_image(path: str | Path) -> Header:
    try:
        with Image.open(path) as image:
            return Header(1, image.height, image.width, 0.0)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadClip(path, reason_of(error, "no picture, or a damaged one")) from error

"""Write videos that every player shows."""

import io
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from mg import files
from mg.errors import UserError
from mg.log import get_logger

_BT709 = 1  # the number of this colour standard in H.264 and in FFmpeg


def write_video(
    path: str | Path, frames: np.ndarray | Iterable[np.ndarray], fps: Fraction | float, crf: int = 18
) -> None:
    """Write an mp4 with H.264 in yuv420p, which every player shows; colours are BT.709 and tagged as such.

    yuv420p stores colour for blocks of 2x2 pixels, and H.264 has no odd sizes in it: an odd height or width gets its
    last row or column once more, and a log line says so.

    Args:
        path: the file; it appears under its name only when complete.
        frames: uint8 (t, h, w, 3) with t >= 1, or an iterable of (h, w, 3).
        fps: frames per second, > 0; a Fraction such as 24000/1001 is kept exactly.
        crf: quality, 0 (lossless luma) to 51 (worst); 18 is visually close to lossless.

    Raises:
        UserError: the file cannot be written (disk full, no permission), fps or crf are out of range.
        ValueError: frames are not uint8 RGB, differ in size, or there are none.
    """
    rate = _exact_rate(fps)
    if not 0 <= crf <= 51:
        raise UserError(f"crf: {crf} is outside 0 to 51; 18 is close to lossless")
    # Encoded in memory: Python then does the writing, and its errors say what is wrong with the disk.
    buffer = io.BytesIO()
    size: tuple[int, int] | None = None
    with av.open(buffer, "w", format="mp4") as container:
        for frame in frames:
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
                raise ValueError(f"write_video: frames must be uint8 (h, w, 3), not {frame.dtype} {frame.shape}")
            if size is None:
                size = frame.shape[:2]
                stream = _open_stream(container, size, rate, crf)
            if frame.shape[:2] != size:
                raise ValueError(f"write_video: a frame is {frame.shape[:2]}, the first one is {size}")
            container.mux(stream.encode(_yuv(frame)))
        if size is None:
            raise ValueError(f"write_video: no frames for {path}")
        container.mux(stream.encode())
    if size[0] % 2 or size[1] % 2:
        even = (size[0] + size[0] % 2, size[1] + size[1] % 2)
        get_logger().info("%s: %dx%d written as %dx%d, yuv420p has even sizes only", path, *size[::-1], *even[::-1])
    files.write_bytes(path, buffer.getvalue())


def _exact_rate(fps: Fraction | float) -> Fraction:
    if not np.isfinite(float(fps)) or not 0 < fps <= 1000:
        raise UserError(f"fps: {fps} is not a frame rate; give a number above 0, up to 1000")
    # 1001 recovers 24000/1001 and its kin from a float; 65535 keeps any rate within what mp4 can count.
    return Fraction(fps).limit_denominator(65535 if isinstance(fps, Fraction) else 1001)


def _open_stream(
    container: av.container.OutputContainer, size: tuple[int, int], rate: Fraction, crf: int
) -> av.VideoStream:
    stream = container.add_stream("libx264", rate=rate)
    stream.height, stream.width = size[0] + size[0] % 2, size[1] + size[1] % 2
    stream.pix_fmt = "yuv420p"
    stream.options = {"crf": str(crf), "preset": "medium"}
    codec = stream.codec_context
    codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
    codec.color_range = ColorRange.MPEG
    return stream


def _yuv(frame: np.ndarray) -> av.VideoFrame:
    h, w = frame.shape[:2]
    if h % 2 or w % 2:
        frame = np.pad(frame, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
    return rgb.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)

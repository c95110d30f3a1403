"""Sizes that videos are cut to, so that a batch has one shape and the number of shapes stays small."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from mg.errors import UserError

ASPECT_RATIOS = ((1, 1), (5, 4), (4, 3), (16, 10), (16, 9), (2, 1), (21, 9))
"""Width to height; the tall ones are the same turned around, which makes 13."""

FRAMES = (1, 64, 128, 192, 256)
"""RGB frames of pictures and of the videos of the reference's second and third stage."""

UNIT = 16
"""Sides are multiples of it: 8 pixels per latent position times 2 positions per patch."""


@dataclass(frozen=True, order=True)
class Bucket:
    """One shape of video.

    Attributes:
        frames: RGB frames, 1 for pictures.
        height: pixels.
        width: pixels.
    """

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        """Write it as 64x256x256: frames, height, width."""
        return f"{self.frames}x{self.height}x{self.width}"


@functools.lru_cache(maxsize=64)
def bucket_sizes(side: int) -> tuple[tuple[int, int], ...]:
    """List (height, width) of every aspect ratio at the area of a square, each side rounded down to a multiple of 16.

    Args:
        side: of the square in pixels, at least 16; 256 and 768 are those of the paper's stages.

    Returns:
        13 sizes from the widest to the tallest; fewer where small sides fall together.

    Raises:
        UserError: the side is too small for the ratios' shorter sides.
    """
    sizes = set()
    for w, h in ASPECT_RATIOS:
        # isqrt of the floored square is the floor of the exact root, without rounding errors at 192 or 576.
        long, short = (math.isqrt(side * side * a // b) // UNIT * UNIT for a, b in ((w, h), (h, w)))
        if short < UNIT:
            raise UserError(f"size: {side}px is too small for pictures of {w}:{h}; give at least 25px")
        sizes |= {(short, long), (long, short)}
    return tuple(sorted(sizes, key=lambda size: (size[0] / size[1], size)))


def nearest_size(height: int, width: int, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Choose the (height, width) whose aspect ratio is nearest, so that least of the picture is cut off.

    Distances are those of the ratios' logarithms: twice as wide is as far as twice as tall. Of equally near sizes, the
    larger is taken.
    """
    ratio = math.log(height / width)
    return min(sizes, key=lambda size: (round(abs(math.log(size[0] / size[1]) - ratio), 9), -size[0] * size[1], size))


def nearest_frames(frames: int, counts: Sequence[int]) -> int | None:
    """Choose the largest frame count that a video of `frames` RGB frames fills, None if it fills none."""
    return max((count for count in counts if count <= frames), default=None)


def nearest_bucket(
    height: int, width: int, frames: int, *, side: int = 256, counts: Sequence[int] = FRAMES
) -> Bucket | None:
    """Choose the bucket of a video or a picture.

    Args:
        height: of the source in pixels.
        width: of the source in pixels.
        frames: RGB frames of the source, 1 for a picture.
        side: of the square with the buckets' area, in pixels.
        counts: RGB frames of the buckets.

    Returns:
        The nearest size with the most frames that the video fills; None if it is shorter than all of them.
    """
    count = nearest_frames(frames, counts)
    return None if count is None else Bucket(count, *nearest_size(height, width, bucket_sizes(side)))


def parse_size(size: tuple[int, int] | str) -> tuple[tuple[int, int], ...] | None:
    """Read a size option; sides are rounded down to multiples of 16, as those of the buckets are.

    Args:
        size: (H, W); "64" for a square of that side; "256px" for the buckets of that area; "source" for no scaling.

    Returns:
        The (height, width) to choose among, None for the video's own.

    Raises:
        UserError: none of these, or a side below 16.
    """
    if isinstance(size, str):
        text = size.strip().lower()
        if text == "source":
            return None
        number = text.removesuffix("px")
        if not number.isdecimal():
            raise UserError(f"size={size}: give height and width, one side, 256px (13 aspect ratios) or source")
        if number != text:
            return bucket_sizes(int(number))
        size = (int(number), int(number))
    if len(size) != 2 or min(size) < UNIT:
        raise UserError(f"size={size}: give height and width of at least {UNIT} pixels")
    return (tuple(side // UNIT * UNIT for side in size),)

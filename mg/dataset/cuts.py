"""Clips cut whole to the shapes that the autoencoder encodes, for latents on disk and for those made on the way."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from jaxtyping import UInt8

from mg.dataset.buckets import UNIT, Bucket, nearest_frames, nearest_size
from mg.dataset.manifest import Item
from mg.dataset.transforms import resize_cover_crop
from mg.dataset.video import probe, read_image, read_video
from mg.errors import BadClip


@dataclass(frozen=True)
class Cut:
    """How clips are cut; nothing here is random.

    Attributes:
        sizes: (height, width) to choose the nearest aspect ratio from; None: the clip's own, without scaling.
        frames: from the start of each clip, at most so many; None: all.
        stride: take every n-th frame.
        counts: keep the largest of these frame counts that the clip fills; None: any length.
    """

    sizes: tuple[tuple[int, int], ...] | None
    frames: int | None = None
    stride: int = 1
    counts: Sequence[int] | None = None

    def bucket(self, item: Item) -> Bucket:
        """Tell the shape that a clip is cut to; decodes a video once, to know exactly what is in it.

        Raises:
            BadClip: missing, unreadable, or too small or too short for any of the shapes.
        """
        if not _is_file(item):
            raise BadClip(item.path, "no such file")
        if item.is_image:
            total, (height, width) = 1, read_image(item.path).shape[1:3]
        else:
            info = probe(item.path)
            total, height, width = -(-info.num_frames // self.stride), info.height, info.width
        count = total if self.frames is None else min(self.frames, total)
        if self.counts is not None:
            kept = nearest_frames(count, self.counts)
            if kept is None:
                raise BadClip(item.path, f"has {count} frames, fewer than the shortest bucket, {min(self.counts)}")
            count = kept
        if self.sizes is not None:
            return Bucket(count, *nearest_size(height, width, self.sizes))
        if min(height, width) < UNIT:
            raise BadClip(item.path, f"is {height}x{width} pixels, below {UNIT} on a side")
        return Bucket(count, height // UNIT * UNIT, width // UNIT * UNIT)

    def read(self, item: Item, bucket: Bucket) -> UInt8[np.ndarray, "t h w 3"]:
        """Read a clip in the shape that `bucket` told.

        Raises:
            BadClip: unreadable.
        """
        if item.is_image:
            frames = read_image(item.path)
        else:
            frames = read_video(item.path, range(0, bucket.frames * self.stride, self.stride))
        if self.sizes is not None:
            return resize_cover_crop(frames, (bucket.height, bucket.width))
        top, left = (frames.shape[1] - bucket.height) // 2, (frames.shape[2] - bucket.width) // 2
        return np.ascontiguousarray(frames[:, top : top + bucket.height, left : left + bucket.width])

    def rate(self, item: Item) -> Fraction:
        """Tell the clip's frames per second as cut, 0 for a picture."""
        return Fraction(0) if item.is_image else probe(item.path).fps / self.stride


def _is_file(item: Item) -> bool:
    try:
        return item.path.is_file()
    except OSError:  # a part of the path is longer than a name may be, or not ours to look into
        return False

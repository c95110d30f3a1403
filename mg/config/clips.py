"""How training clips are cut and altered."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mg.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ClipSettings:
    """How training clips are cut and altered (Movie Gen, section 3.1.1 and appendix).

    Attributes:
        size: (H, W) of the result in pixels.
        num_frames: frames of a video clip.
        batch_size: clips per batch.
        image_ratio: share of the batches that are one-frame images, 0 to 1; 0.25 is the paper's 1 : 3.
        random_crop: cut anywhere; otherwise in the centre.
        min_scale: with max_scale: the short side is scaled to between `size / max_scale` and `size / min_scale` before
            the cut, never enlarged for it; 1.0 and 1.0 keep as much of the picture as fits.
        max_scale: see min_scale.
        flip: mirror half of the clips left to right.
        time_flip: play half of the clips backwards.
        max_stride: take every n-th frame, n from 1 to this (and no more than the clip is long enough for).
        transpose: turn clips by 0, 90, 180 or 270 degrees, for square sizes.
        grayscale_prob: share of the clips that lose their colour, 0 to 1.
        color_jitter: brightness, contrast and saturation change by up to this share, 0 to 1.
        frame_lengths: clip lengths to draw from; shorter ones are padded to num_frames. None: always num_frames.
        fps: frame rate that clips are brought to, by repeating or leaving out frames; None: each clip's own.
        coverage: random: each pass over the list cuts one clip out of each file, anywhere. all: each pass cuts every
            file into clips that leave out no frame; needs max_stride 1 and no frame_lengths.
        shuffle_files: files whose clips are shuffled among themselves with coverage all; so many should fit into
            cache_gb twice, for then each is decoded once per pass.
        cache_gb: memory for decoded clips, in 10^9 bytes; 0 decodes anew for each clip.
        cache_short_side: shrink clips to this short side (pixels) before they are kept in memory.
        chunks: folder that tools/make_chunks.py wrote from the same files; frames then come from there.
        max_bad: share of the files that may be missing or damaged, 0 to 1; more end the run. One always may, unless 0.
        max_pixels: files with larger frames (height x width) count as bad.
        max_seconds: files that last longer count as bad.
        seed: of the order and of everything drawn.

    Raises:
        UserError: a value is out of range.
    """

    size: tuple[int, int]
    num_frames: int
    batch_size: int
    image_ratio: float = 0.0
    random_crop: bool = True
    min_scale: float = 1.0
    max_scale: float = 1.0
    flip: bool = True
    time_flip: bool = False
    max_stride: int = 1
    transpose: bool = False
    grayscale_prob: float = 0.0
    color_jitter: float = 0.0
    frame_lengths: tuple[int, ...] | None = None
    fps: float | None = None
    coverage: Literal["random", "all"] = "random"
    shuffle_files: int = 16
    cache_gb: float = 4.0
    cache_short_side: int | None = None
    chunks: str | None = None
    max_bad: float = 0.01
    max_pixels: int | None = None
    max_seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every range."""
        if len(self.size) != 2:
            raise UserError(f"size: {self.size} must be two numbers, height and width in pixels")
        if min(self.size) < 1:
            raise UserError(f"size: {self.size} must be at least 1 in both directions")
        for name in ("num_frames", "batch_size", "max_stride", "cache_short_side", "shuffle_files", "max_pixels"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} must be at least 1")
        for name in ("image_ratio", "grayscale_prob", "color_jitter", "max_bad"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}: {getattr(self, name)} must be between 0 and 1")
        if self.seed < 0:
            raise UserError(f"seed: {self.seed} must be at least 0")
        for name in ("fps", "max_seconds"):
            if getattr(self, name) is not None and not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UserError(f"{name}: {getattr(self, name)} must be above 0")
        if not (math.isfinite(self.cache_gb) and self.cache_gb >= 0):
            raise UserError(f"cache_gb: {self.cache_gb} must be at least 0")
        if not 0 < self.min_scale <= self.max_scale <= 1:
            scales = f"{self.min_scale} and {self.max_scale}"
            raise UserError(f"min_scale and max_scale: {scales} must be above 0, at most 1 and in this order")
        if self.transpose and self.size[0] != self.size[1]:
            raise UserError(f"transpose: only square clips can be turned, size is {self.size}; switch it off")
        lengths = self.frame_lengths
        if lengths is not None and not (lengths and all(1 <= length <= self.num_frames for length in lengths)):
            raise UserError(f"frame_lengths: {lengths} must be lengths between 1 and num_frames ({self.num_frames})")
        if self.coverage == "all" and (self.max_stride > 1 or lengths is not None):
            raise UserError(
                f"coverage: all would leave frames out with max_stride {self.max_stride} and frame_lengths {lengths}; "
                "set them to 1 and null, or coverage to random"
            )

    @property
    def of_batches(self) -> dict[str, Any]:
        """The settings that decide what is in a batch: not where frames come from or how much memory they may take."""
        settings = asdict(self)
        for name in ("cache_gb", "chunks", "max_bad"):
            del settings[name]
        return settings

"""The world of shapes: its words, colours, sizes and outlines, and the configuration of `tools/make_shapes_dataset.py`.

A scene is one coloured shape that moves, or stands still, before a plain background: little enough that what a video
shows can be measured and compared with what a prompt asked for.
"""

from dataclasses import astuple, dataclass, fields

import numpy as np

from mg.errors import UserError

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (228, 36, 36),
    "green": (40, 186, 52),
    "blue": (42, 62, 226),
    "yellow": (234, 222, 36),
    "magenta": (222, 44, 218),
    "cyan": (36, 208, 220),
}
"""Name: mean RGB; the hues are 60 degrees apart."""
MOTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
"""Name: direction (x, y), y pointing down."""
SIZES = {"small": 0.3, "large": 0.5}
"""Name: mean extent, the longer side of the shape's box, as a share of the picture's side."""
BACKGROUNDS = {"black": 12, "grey": 128, "white": 243}
"""Name: mean grey level."""

MIN_TRAVEL, MAX_TRAVEL = 0.2, 0.35
"""Way of a moving shape over the whole clip, as a share of the picture's side."""


@dataclass(frozen=True, order=True)
class Scene:
    """What a clip shows, in words; raises UserError for a word that is not of this world."""

    shape: str
    colour: str
    motion: str
    size: str
    background: str

    def __post_init__(self) -> None:
        """Check every word."""
        for name, words in VOCABULARY.items():
            if getattr(self, name) not in words:
                raise UserError(f"{name}={getattr(self, name)!r}: give one of {', '.join(words)}")

    @property
    def combination(self) -> tuple[str, str, str]:
        """Shape, colour and motion: what is held out is held out as such a triple."""
        return astuple(self)[:3]


VOCABULARY = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "motion": tuple(MOTIONS),
    "size": tuple(SIZES),
    "background": tuple(BACKGROUNDS),
}
"""Attribute: its words."""
ATTRIBUTES = tuple(field.name for field in fields(Scene))


def inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return where points lie within a shape whose box is [-0.5, 0.5] in both directions.

    Args:
        shape: one of SHAPES; the triangle points up, the arms of the cross are a third of its box wide.
        x: to the right, broadcast against y.
        y: downwards.

    Returns:
        bool, of the broadcast shape.
    """
    if shape == "circle":
        return x**2 + y**2 <= 0.25
    across, along = np.abs(x), np.abs(y)
    if shape == "square":
        return np.maximum(across, along) <= 0.5
    if shape == "triangle":
        return (along <= 0.5) & (2 * across <= y + 0.5)
    return (np.maximum(across, along) <= 0.5) & (np.minimum(across, along) <= 1 / 6)


@dataclass(frozen=True, kw_only=True)
class ShapesConfig:
    """Clips of one moving shape, with captions."""

    output_path: str
    """Folder for videos/*.mp4 and the CSVs: new, empty, or of an interrupted run with the same options."""
    num_clips: int = 5000
    """Clips in train.csv, whose combinations of shape, colour and motion exclude the held-out ones."""
    num_test: int = 288
    """Clips in test.csv: combinations of train.csv, other positions, speeds and wording."""
    num_held_out: int = 288
    """Clips in held_out.csv, of the 24 combinations (a fifth of all) that train.csv never shows."""
    image_size: int = 64
    """Height and width in pixels, even, 32 or more."""
    num_frames: int = 16
    """Frames per clip, 2 or more; a moving shape covers about the same way whatever their number."""
    fps: float = 16.0
    """Frames per second."""
    crf: int = 8
    """Quality of the H.264 files, 0 (best) to 51."""
    seed: int = 0
    """Of everything that is drawn, 0 or greater."""
    num_workers: int = 2
    """Threads; the clips do not depend on their number."""

    def __post_init__(self) -> None:
        """Check ranges."""
        least = {"num_clips": 1, "num_test": 0, "num_held_out": 0, "num_frames": 2, "seed": 0, "num_workers": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise UserError(f"{name}={getattr(self, name)}: give at least {value}")
        if self.image_size < 32 or self.image_size % 2:
            raise UserError(f"image_size={self.image_size}: give an even number of at least 32")
        if not 0 < self.fps <= 1000:
            raise UserError(f"fps={self.fps}: give a number above 0, up to 1000")
        if not 0 <= self.crf <= 51:
            raise UserError(f"crf={self.crf}: give 0 (best) to 51")

"""Reading a clip of the world of shapes back into words, and how often the words are right.

Classical vision: the background is the median along the border, the colour is a hue, the motion is a straight line
through the centroids. For shape and size the frames are laid over each other, centroid on centroid, and compared with
outlines of every extent and blur: an autoencoder softens edges, which upsets areas and moments but not this comparison.
"""

import functools
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from mg.config.shapes import ATTRIBUTES, BACKGROUNDS, COLOURS, MIN_TRAVEL, MOTIONS, SHAPES, SIZES, Scene, inside

SIDE = 64
"""Frames are scaled to this short side before they are read; lengths below are pixels at this scale."""
_CANVAS = 60  # holds any shape with its blur
_EXTENTS = np.geomspace(0.14, 0.66, 36) * SIDE
_BLURS = (0.8, 1.2, 1.7, 2.3, 3.0)
_DENOISE = 0.8
_SMALLEST, _LARGE, _LARGEST = 0.2, float(np.sqrt(SIZES["small"] * SIZES["large"])), 0.65
_MIN_CONTRAST = 45.0  # RGB distance, of 442; the palest pair of this world has 130
_MIN_SATURATION = 40.0  # largest minus smallest channel
_MIN_PRESENCE = 0.75  # share of the frames
_MAX_CLUTTER = 0.3  # of the shape's own mass
_MIN_FIT = 0.95
_MIN_MOVE = MIN_TRAVEL / 2
_MAX_SLANT = 0.5


@dataclass(frozen=True)
class Reading:
    """What a clip shows; None where it shows nothing that can be named.

    Attributes:
        shape: one of SHAPES; None as well if other things than one shape are in the picture.
        colour: the nearest of six hues.
        motion: the main direction; None for a slanted way.
        size: small or large; None far off both.
        background: black, grey or white; None for a coloured one.
        extent: side of the shape's box, as a share of the picture's short side.
        travel: way of the centroid from the first to the last frame (x, y), as a share of the short side.
        fit: cosine similarity with the best outline, 0 to 1.
    """

    shape: str | None = None
    colour: str | None = None
    motion: str | None = None
    size: str | None = None
    background: str | None = None
    extent: float = 0.0
    travel: tuple[float, float] = (0.0, 0.0)
    fit: float = 0.0


def read_scene(frames: np.ndarray) -> Reading:
    """Read shape, colour, motion, size and background from a clip.

    Args:
        frames: uint8 (t, h, w, 3) RGB, t >= 2, of any size.

    Raises:
        ValueError: the array is not such a clip.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) < 2:
        raise ValueError(f"read_scene: {frames.dtype} {frames.shape} is not uint8 (t, h, w, 3) with t >= 2")
    video = _prepare(frames)
    backs = _border_medians(video)  # (t, 3)
    background = _name_background(np.median(backs, axis=0))
    contrast = video - backs[:, None, None]  # (t, h, w, 3)
    colour = _foreground(contrast)
    if colour is None:
        return Reading(background=background)
    cover = contrast @ (colour / (colour @ colour)).astype(np.float32)  # (t, h, w): 1 on the shape, 0 beside it
    masks, clutter = _main_objects(cover)
    present = np.array([mask.any() for mask in masks])
    if present.mean() < _MIN_PRESENCE or clutter > 1:  # there is no one main object
        return Reading(background=background)
    cover = np.where(masks, np.clip(cover, 0, 1.2), 0)[present]
    centroids = _centroids(cover)  # (t, 2)
    shape, extent, fit = _match(_overlay(cover, centroids))
    travel = _travel(np.flatnonzero(present), centroids, len(frames))
    return Reading(
        shape=shape if fit >= _MIN_FIT and clutter <= _MAX_CLUTTER else None,
        colour=_name_hue(colour + np.median(backs, axis=0)),
        motion=_name_motion(*travel),
        size=_name_size(extent / SIDE),
        background=background,
        extent=extent / SIDE,
        travel=travel,
        fit=fit,
    )


def _prepare(frames: np.ndarray) -> np.ndarray:
    """Scale to the short side SIDE and soften pixel noise; float32 (t, h, w, 3)."""
    scale = SIDE / min(frames.shape[1:3])
    size = (max(SIDE, round(frames.shape[2] * scale)), max(SIDE, round(frames.shape[1] * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    scaled = frames if scale == 1 else (cv2.resize(frame, size, interpolation=way) for frame in frames)
    return np.stack([cv2.GaussianBlur(frame, (0, 0), _DENOISE) for frame in scaled]).astype(np.float32)


def _border_medians(video: np.ndarray) -> np.ndarray:
    """Median colour of each frame's border, two pixels wide; (t, h, w, 3) -> (t, 3)."""
    edge = np.ones(video.shape[1:3], bool)
    edge[2:-2, 2:-2] = False
    return np.median(video[:, edge], axis=1)


def _foreground(contrast: np.ndarray) -> np.ndarray | None:
    """Median difference to the background (3,) where it is great, None where it is great nowhere."""
    distance = np.linalg.norm(contrast, axis=-1)  # (t, h, w)
    # A small shape covers 1 % of a frame and more: the peak is that of its inner part, not of a stray pixel.
    peak = np.quantile(distance, 0.996)
    if peak < _MIN_CONTRAST:
        return None
    return np.median(contrast[distance > 0.7 * peak], axis=0)


def _main_objects(cover: np.ndarray) -> tuple[np.ndarray, float]:
    """Return where each frame's largest object is (t, h, w), and the mass of other objects relative to it.

    An object's mask reaches a little beyond its edge, so that the soft edge is inside.
    """
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    masks, main, other = [], 0.0, 0.0
    for frame in cover:
        count, labels, stats, _ = cv2.connectedComponentsWithStats((frame > 0.4).astype(np.uint8))
        areas = stats[1:, cv2.CC_STAT_AREA]  # without the background
        if count == 1 or areas.max() < 6:
            masks.append(np.zeros(frame.shape, bool))
            continue
        largest = labels == 1 + int(areas.argmax())
        main += float(areas.max())
        other += float(areas[areas >= 6].sum() - areas.max())  # specks of a few pixels are noise
        masks.append(cv2.dilate(largest.astype(np.uint8), kernel).astype(bool))
    return np.stack(masks), other / main if main else 0.0


def _centroids(cover: np.ndarray) -> np.ndarray:
    """Centres of mass in pixels, (t, h, w) -> (t, 2) as (x, y)."""
    mass = cover.sum((1, 2))
    x = (cover.sum(1) @ np.arange(cover.shape[2])) / mass
    y = (cover.sum(2) @ np.arange(cover.shape[1])) / mass
    return np.stack([x, y], 1)


def _overlay(cover: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Average the frames, centroid on centroid, on a canvas (_CANVAS, _CANVAS)."""
    middle = (_CANVAS - 1) / 2
    total = np.zeros((_CANVAS, _CANVAS), np.float32)
    for frame, (x, y) in zip(cover.astype(np.float32), centroids, strict=True):
        total += cv2.warpAffine(frame, np.float32([[1, 0, middle - x], [0, 1, middle - y]]), (_CANVAS, _CANVAS))
    return total / len(cover)


@functools.cache
def _templates() -> tuple[list[tuple[str, float]], np.ndarray]:
    """Every outline at every extent and blur: its name and extent, and its unit vector (n, _CANVAS ** 2)."""
    names, rows = [], []
    fine = (np.arange(_CANVAS * 4) + 0.5) / 4 - _CANVAS / 2  # four samples per pixel, in pixels from the middle
    for shape, extent in itertools.product(SHAPES, _EXTENTS):
        # The triangle's centre of mass lies below the middle of its box by a sixth of its height.
        drop = extent / 6 if shape == "triangle" else 0.0
        mask = inside(shape, fine[None] / extent, (fine[:, None] + drop) / extent)
        sharp = mask.reshape(_CANVAS, 4, _CANVAS, 4).mean((1, 3), dtype=np.float32)
        for blur in _BLURS:
            row = cv2.GaussianBlur(sharp, (0, 0), blur, borderType=cv2.BORDER_CONSTANT).ravel()
            names.append((shape, float(extent)))
            rows.append(row / np.linalg.norm(row))
    return names, np.stack(rows)


def _match(overlay: np.ndarray) -> tuple[str, float, float]:
    """Return the shape and extent of the nearest outline and the cosine similarity with it."""
    names, rows = _templates()
    fits = rows @ overlay.ravel() / max(float(np.linalg.norm(overlay)), 1e-6)
    best = int(fits.argmax())
    return *names[best], float(fits[best])


def _travel(numbers: np.ndarray, centroids: np.ndarray, num_frames: int) -> tuple[float, float]:
    """Way over the whole clip by the straight line through the centroids, in shares of the short side."""
    slope = np.polyfit(numbers, centroids, 1)[0]  # pixels per frame
    x, y = slope * (num_frames - 1) / SIDE
    return float(x), float(y)


def _name_background(rgb: np.ndarray) -> str | None:
    if rgb.max() - rgb.min() > _MIN_SATURATION:
        return None
    return min(BACKGROUNDS, key=lambda name: abs(BACKGROUNDS[name] - rgb.mean()))


def _name_size(extent: float) -> str | None:
    if not _SMALLEST <= extent <= _LARGEST:
        return None
    return "large" if extent >= _LARGE else "small"


def _name_hue(rgb: np.ndarray) -> str | None:
    """The nearest of the six hues; None for something grey."""
    if rgb.max() - rgb.min() < _MIN_SATURATION:
        return None
    distance = {name: abs((_hue(rgb) - _hue(np.array(other)) + 180) % 360 - 180) for name, other in COLOURS.items()}
    return min(distance, key=distance.get)


def _hue(rgb: np.ndarray) -> float:
    """Angle of a colour around the grey axis in degrees: red 0, green 120, blue 240."""
    red, green, blue = rgb
    return float(np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)))


def _name_motion(x: float, y: float) -> str | None:
    """The direction nearest to a way; None if it is too slanted to have one."""
    long, short = max(abs(x), abs(y)), min(abs(x), abs(y))
    if long < _MIN_MOVE:
        return "still"
    if short > _MAX_SLANT * long:
        return None
    return max((name for name in MOTIONS if name != "still"), key=lambda name: np.dot(MOTIONS[name], (x, y)))


def accuracy(pairs: Iterable[tuple[Scene, Reading]]) -> Mapping[str, float]:
    """Share of clips of which each attribute was read right, and of which "all" five were.

    Raises:
        ValueError: there are no pairs.
    """
    hits = [[getattr(truth, name) == getattr(reading, name) for name in ATTRIBUTES] for truth, reading in pairs]
    if not hits:
        raise ValueError("accuracy: no clips")
    table = np.array(hits)
    return {**dict(zip(ATTRIBUTES, table.mean(0).tolist(), strict=True)), "all": float(table.all(1).mean())}

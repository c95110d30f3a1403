"""Clips of the world of shapes: what is drawn, how it is rendered, captioned and split into seen and held out."""

import csv
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mg.config.shapes import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    MAX_TRAVEL,
    MIN_TRAVEL,
    MOTIONS,
    SHAPES,
    SIZES,
    VOCABULARY,
    Scene,
    ShapesConfig,
    inside,
)
from mg.errors import UserError
from mg.rng import stream

OVERSAMPLING = 4
MARGIN = 0.03
"""The shape keeps this share of the picture's side away from the border."""
_EXTENT_JITTER = 0.1  # small and large stay a factor of 1.6 apart
_COLOUR_JITTER = 10

_WORDINGS = (
    "a {size} {colour} {shape} {moving} on a {background} background",
    "on a {background} background, a {size} {colour} {shape} {moving}",
    "a {size} {colour} {shape} on a {background} background, {moving}",
    "a {colour} {shape}, {size}, {moving} on a {background} background",
    "{background} background, {size} {colour} {shape}, {moving}",
    "there is a {size} {colour} {shape} {moving} in front of a {background} background",
    "a {shape} that is {size} and {colour}, {moving}, {background} background",
    "against a {background} background a {colour} {shape} is {moving}, the {shape} is {size}",
    "a video of a {size} {colour} {shape} {moving}, the background is {background}",
    "{moving}: a {size} {colour} {shape} on a {background} background",
)
_MOVING = tuple(f"{verb} {way}" for verb in ("moving", "going", "travelling", "sliding") for way in ("{}", "to the {}"))
_STILL = ("standing still", "staying still", "remaining still", "keeping still")


@dataclass(frozen=True)
class Placement:
    """The numbers behind a scene's words; lengths are shares of the picture's side, (x, y) with y pointing down.

    Attributes:
        extent: side of the shape's box.
        start: centre of the box in the first frame.
        travel: way of the centre from the first to the last frame, at constant speed.
        colour: RGB of the shape, 0 to 255.
        background: RGB behind it, 0 to 255.
    """

    extent: float
    start: tuple[float, float]
    travel: tuple[float, float]
    colour: tuple[float, float, float]
    background: tuple[float, float, float]


def all_scenes() -> list[Scene]:
    """Return the 720 scenes, in the order of the vocabulary."""
    return [Scene(*words) for words in itertools.product(*VOCABULARY.values())]


def held_out_combinations(seed: int) -> frozenset[tuple[str, str, str]]:
    """Choose 24 of the 120 combinations of shape, colour and motion to keep out of training.

    Each pair of a shape and a colour loses one motion, each pair of a shape and a motion one or two colours, each pair
    of a colour and a motion at most one shape: every word and every pair of words remains in training.
    """
    rng = stream(seed, "shapes.held_out")
    motions = list(MOTIONS)
    while True:
        rows: list[tuple[str, ...]] = []  # one per shape: the motion that each colour loses
        for _ in range(2000):  # about 250 are needed for the last row
            extra = motions[rng.integers(len(motions))]
            row = tuple(rng.permutation([*motions, extra]).tolist())
            if all(len(set(column)) == len(rows) + 1 for column in zip(*rows, row, strict=True)):
                rows.append(row)
            if len(rows) == len(SHAPES):
                triples = zip(itertools.product(SHAPES, COLOURS), itertools.chain(*rows), strict=True)
                return frozenset((shape, colour, motion) for (shape, colour), motion in triples)


def balanced_scenes(combinations: Sequence[tuple[str, str, str]], count: int, rng: np.random.Generator) -> list[Scene]:
    """List scenes of some combinations in an order of which any beginning is balanced.

    Each combination comes as often as any other or once more, with its six sizes and backgrounds in turn.
    """
    variants = {combination: _variants(rng) for combination in combinations}
    scenes: list[Scene] = []
    for turn in range(-(-count // len(combinations))):
        for index in rng.permutation(len(combinations)):
            choices = variants[combinations[index]]
            scenes.append(Scene(*combinations[index], *choices[turn % len(choices)]))
    return scenes[:count]


def _variants(rng: np.random.Generator) -> list[tuple[str, str]]:
    pairs = list(itertools.product(SIZES, BACKGROUNDS))
    return [pairs[index] for index in rng.permutation(len(pairs))]


def splits(config: ShapesConfig) -> dict[str, list[Scene]]:
    """Return the scenes of the clips of train, test (same combinations) and held_out (the other ones)."""
    held_out = held_out_combinations(config.seed)
    every = list(itertools.product(SHAPES, COLOURS, MOTIONS))
    seen = [combination for combination in every if combination not in held_out]
    parts = {
        "train": (seen, config.num_clips),
        "test": (seen, config.num_test),
        "held_out": (sorted(held_out), config.num_held_out),
    }
    return {
        name: balanced_scenes(combinations, count, stream(config.seed, f"shapes.{name}.order"))
        for name, (combinations, count) in parts.items()
    }


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Describe a scene in varied words; the five words of the scene are always among them."""
    if scene.motion == "still":
        moving = _STILL[rng.integers(len(_STILL))]
    else:
        ways = _MOVING if scene.motion in ("left", "right") else _MOVING[::2]  # nobody moves "to the up"
        moving = ways[rng.integers(len(ways))].format(scene.motion)
    wording = _WORDINGS[rng.integers(len(_WORDINGS))]
    words = {"size": scene.size, "colour": scene.colour, "shape": scene.shape, "background": scene.background}
    return wording.format(moving=moving, **words)


def place(scene: Scene, rng: np.random.Generator) -> Placement:
    """Draw extent, position, speed and exact colours; the shape is inside the picture during the whole clip."""
    extent = SIZES[scene.size] * rng.uniform(1 - _EXTENT_JITTER, 1 + _EXTENT_JITTER)
    way = rng.uniform(MIN_TRAVEL, MAX_TRAVEL)
    travel = tuple(way * direction for direction in MOTIONS[scene.motion])
    low, high = MARGIN + extent / 2, 1 - MARGIN - extent / 2
    start = tuple(rng.uniform(low - min(step, 0), high - max(step, 0)) for step in travel)
    colour = np.add(COLOURS[scene.colour], rng.uniform(-_COLOUR_JITTER, _COLOUR_JITTER, 3))
    # Backgrounds stay neutral: one number for the three channels.
    background = [BACKGROUNDS[scene.background] + rng.uniform(-_COLOUR_JITTER, _COLOUR_JITTER)] * 3
    return Placement(extent, start, travel, tuple(colour.tolist()), tuple(background))


def render(shape: str, placement: Placement, num_frames: int = 16, image_size: int = 64) -> np.ndarray:
    """Draw a clip with smooth edges: four samples per pixel and direction, averaged.

    Returns:
        uint8 (t, h, w, 3) with t = num_frames (2 or more), h = w = image_size.
    """
    fine = (np.arange(image_size * OVERSAMPLING, dtype=np.float32) + 0.5) / (image_size * OVERSAMPLING)
    fore, back = np.array(placement.colour), np.array(placement.background)
    frames = np.empty((num_frames, image_size, image_size, 3), np.uint8)
    for number, share in enumerate(np.linspace(0, 1, num_frames)):
        x, y = (begin + share * way for begin, way in zip(placement.start, placement.travel, strict=True))
        mask = inside(shape, (fine[None] - x) / placement.extent, (fine[:, None] - y) / placement.extent)
        # Rows first, then columns: one sum over two axes of single bytes takes five times as long.
        rows = mask.view(np.uint8).reshape(image_size, OVERSAMPLING, -1).sum(1, dtype=np.uint8)
        counts = rows.reshape(image_size, image_size, OVERSAMPLING).sum(2, dtype=np.uint8)
        cover = counts[..., None] / OVERSAMPLING**2  # (h, w, 1)
        frames[number] = np.rint(back + cover * (fore - back))
    return frames


def make_clip(config: ShapesConfig, split: str, index: int, scene: Scene) -> np.ndarray:
    """Draw and render one clip of a data set, a pure function of its arguments; uint8 (t, h, w, 3)."""
    placement = place(scene, stream(config.seed, f"shapes.{split}.placement", index))
    return render(scene.shape, placement, config.num_frames, config.image_size)


@dataclass(frozen=True)
class Described:
    """One row of a data set's CSV: the file as the CSV names it, its caption and what the caption says."""

    video: str
    caption: str
    scene: Scene


def read_described(csv_path: str | Path) -> list[Described]:
    """Read a CSV with the columns video, caption and the five attributes.

    Raises:
        UserError: it is missing, unreadable, empty, lacks a column, has an attribute that is not of this
            world, or a video outside the CSV's folder.
    """
    try:
        with open(csv_path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"csv: {csv_path} cannot be read ({error.strerror}); give a CSV of shapes") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"csv: {csv_path} is not a UTF-8 CSV file ({error}); give a CSV of shapes") from error
    if not rows:
        raise UserError(f"csv: {csv_path} lists no clips; give a CSV of shapes")
    described = []
    for number, row in enumerate(rows, start=1):
        missing = [name for name in ("video", "caption", *ATTRIBUTES) if not row.get(name)]
        if missing:
            raise UserError(f"csv: {csv_path}, row {number} has no {missing[0]}; make it with make_shapes_dataset.py")
        try:
            scene = Scene(*(row[name] for name in ATTRIBUTES))
        except UserError as error:
            raise UserError(f"csv: {csv_path}, row {number}: {error}") from error
        if Path(row["video"]).is_absolute() or ".." in Path(row["video"]).parts:
            raise UserError(f"csv: {csv_path}, row {number}: {row['video']} leads out of the folder; remove / and ..")
        described.append(Described(row["video"], row["caption"], scene))
    return described

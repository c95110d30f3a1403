"""Reading clips of the world of shapes: against rendered truth, damaged truth, and pictures that are not of it."""

import cv2
import numpy as np
import pytest

from mg.config.shapes import ATTRIBUTES, SHAPES, Scene
from mg.dataset.shapes import Placement, all_scenes, place, render
from mg.metrics.shapes import Reading, accuracy, read_scene
from mg.rng import stream

COUNT = 200
GREY, RED = (128.0,) * 3, (228.0, 36.0, 36.0)


@pytest.fixture(scope="module")
def clips():
    """(scene, placement, frames) of more than a quarter of the scenes, chosen at random."""
    scenes = all_scenes()
    chosen = [scenes[index] for index in stream(0, "chosen").permutation(len(scenes))[:COUNT]]
    placements = [place(scene, stream(0, "place", index)) for index, scene in enumerate(chosen)]
    return [(scene, spot, render(scene.shape, spot)) for scene, spot in zip(chosen, placements, strict=True)]


def blurred(frames, sigma):
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in frames])


def noisy(frames, sigma, rng, coarseness=1):
    """Add colour noise of blocks of `coarseness` pixels, smoothly interpolated."""
    t, h, w, c = frames.shape
    noise = rng.normal(0, sigma, (t, h // coarseness, w // coarseness, c)).astype(np.float32)
    noise = np.stack([cv2.resize(frame, (w, h), interpolation=cv2.INTER_CUBIC) for frame in noise])
    return np.clip(np.rint(frames + noise), 0, 255).astype(np.uint8)


def test_rendered_truth_is_read_right(clips):
    readings = [read_scene(frames) for _, _, frames in clips]
    figures = accuracy((scene, reading) for (scene, _, _), reading in zip(clips, readings, strict=True))
    assert list(figures) == [*ATTRIBUTES, "all"]
    assert min(figures.values()) >= 0.99, figures
    for (_, placement, _), reading in zip(clips, readings, strict=True):
        assert reading.extent == pytest.approx(placement.extent, rel=0.06)
        assert reading.travel == pytest.approx(placement.travel, abs=0.005)
        assert reading.fit > 0.98


@pytest.mark.parametrize("damage", ["blur", "noise", "both"])
def test_blur_and_colour_noise_do_not_mislead(clips, damage):
    pairs = []
    for index, (scene, _, frames) in enumerate(clips):
        rng = stream(1, damage, index)
        if damage != "noise":
            frames = blurred(frames, 1.5)
        if damage != "blur":
            frames = noisy(noisy(frames, 12, rng), 8, rng, coarseness=8)
        pairs.append((scene, read_scene(frames)))
    assert accuracy(pairs)["all"] >= 0.99, accuracy(pairs)


@pytest.mark.parametrize("shape", SHAPES)
def test_other_sizes_lengths_and_formats(shape):
    scene = Scene(shape, "green", "up", "large", "white")
    placement = place(scene, stream(0, "formats"))
    for frames in (render(shape, placement, 2, 32), render(shape, placement, 40, 128)):
        wide = np.pad(frames, ((0, 0), (0, 0), (0, frames.shape[2] // 2), (0, 0)), mode="edge")
        for clip in (frames, wide):
            assert accuracy([(scene, read_scene(clip))])["all"] == 1, read_scene(clip)


def test_a_tenth_of_the_frames_may_be_empty():
    frames = render("circle", Placement(0.4, (0.3, 0.5), (0.4, 0.0), RED, GREY), 20)
    frames[[0, 9]] = 128
    assert read_scene(frames).travel[0] == pytest.approx(0.4, abs=0.01)
    assert read_scene(frames).shape == "circle"
    frames[10:16] = 128
    assert read_scene(frames) == Reading(background="grey")


def test_motion_needs_a_way_and_a_direction():
    def motion(x, y):
        return read_scene(render("circle", Placement(0.4, (0.5, 0.5), (x, y), RED, GREY))).motion

    assert [motion(0.1, 0.1), motion(-0.1, 0), motion(0, 0)] == ["still"] * 3
    assert [motion(0.25, 0.1), motion(-0.25, -0.1)] == ["right", "left"]
    assert [motion(0.1, 0.25), motion(0.05, -0.25)] == ["down", "up"]
    assert motion(0.2, 0.2) is None


@pytest.mark.parametrize("degrees", range(0, 360, 20))
def test_the_nearest_hue_names_the_colour(degrees):
    hsv = np.array([[[degrees, 0.8, 0.9]]], np.float32)
    colour = tuple((cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255).tolist())
    names = ["red", "yellow", "green", "cyan", "blue", "magenta", "red"]
    reading = read_scene(render("square", Placement(0.4, (0.5, 0.5), (0, 0), colour, (243.0,) * 3)))
    assert reading.colour == names[round(degrees / 60)]


def test_size_lies_between_and_has_limits():
    def size(extent):
        return read_scene(render("square", Placement(extent, (0.5, 0.5), (0, 0), RED, GREY))).size

    sizes = [size(extent) for extent in (0.22, 0.3, 0.37, 0.41, 0.5, 0.6, 0.7)]
    assert sizes == ["small"] * 3 + ["large"] * 3 + [None]


def test_backgrounds_are_the_nearest_level_or_not_named():
    def background(*rgb):
        return read_scene(render("square", Placement(0.4, (0.5, 0.5), (0, 0), RED, rgb))).background

    assert [background(*(level,) * 3) for level in (0, 60, 85, 170, 200, 255)] == (
        ["black", "black", "grey", "grey", "white", "white"]
    )
    assert background(40, 60, 200) is None


def test_a_grey_shape_has_no_colour():
    reading = read_scene(render("cross", Placement(0.4, (0.5, 0.5), (0, 0), (230.0, 228.0, 231.0), GREY)))
    assert (reading.shape, reading.colour) == ("cross", None)


def test_two_shapes_are_not_one():
    left = render("circle", Placement(0.3, (0.25, 0.5), (0, 0), RED, GREY))
    right = render("circle", Placement(0.3, (0.75, 0.5), (0, 0), RED, GREY))
    assert read_scene(np.where(right == 128, left, right)).shape is None
    assert read_scene(left).shape == "circle"


def test_a_bar_is_none_of_the_shapes():
    frames = np.full((4, 64, 64, 3), 128, np.uint8)
    frames[:, 30:35, 15:45] = RED
    assert read_scene(frames).shape is None


@pytest.mark.parametrize("level", [0, 128, 255])
def test_an_empty_picture_has_a_background_only(level):
    frames = np.full((4, 64, 64, 3), level, np.uint8)
    name = {0: "black", 128: "grey", 255: "white"}[level]
    assert read_scene(frames) == read_scene(noisy(frames, 8, stream(0, "empty"))) == Reading(background=name)


def test_noise_has_no_shape_colour_or_size():
    reading = read_scene(stream(0, "noise").integers(0, 256, (16, 64, 64, 3), np.uint8))
    assert (reading.shape, reading.colour, reading.size) == (None, None, None)


@pytest.mark.parametrize(
    "frames", [np.zeros((1, 64, 64, 3), np.uint8), np.zeros((4, 64, 64, 3)), np.zeros((4, 3, 64, 64), np.uint8)]
)
def test_other_arrays_are_refused(frames):
    with pytest.raises(ValueError, match="read_scene: .* is not uint8 .t, h, w, 3. with t >= 2"):
        read_scene(frames)


def test_accuracy_counts_words_and_whole_scenes():
    truth = Scene("circle", "red", "left", "small", "grey")
    right = Reading("circle", "red", "left", "small", "grey")
    figures = accuracy([(truth, right), (truth, right), (truth, Reading("cross", None, "left", "small", "grey")),
                        (truth, Reading("circle", "blue", "left", "large", "grey"))])  # fmt: skip
    assert figures == {"shape": 0.75, "colour": 0.5, "motion": 1, "size": 0.75, "background": 1, "all": 0.5}
    with pytest.raises(ValueError, match="no clips"):
        accuracy([])

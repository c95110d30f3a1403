"""The world of shapes: outlines and clips against geometry, captions and splits against what they promise."""

import itertools
from collections import Counter

import numpy as np
import pytest

from mg.config.shapes import (
    ATTRIBUTES,
    COLOURS,
    MAX_TRAVEL,
    MIN_TRAVEL,
    MOTIONS,
    SHAPES,
    VOCABULARY,
    Scene,
    ShapesConfig,
    inside,
)
from mg.dataset.shapes import (
    MARGIN,
    Placement,
    all_scenes,
    balanced_scenes,
    caption,
    held_out_combinations,
    make_clip,
    place,
    read_described,
    render,
    splits,
)
from mg.errors import UserError
from mg.rng import stream

AREAS = {"circle": np.pi / 4, "square": 1.0, "triangle": 0.5, "cross": 5 / 9}
HEADER = "video,caption,shape,colour,motion,size,background\n"


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_have_the_areas_of_geometry(shape):
    grid = (np.arange(2000) + 0.5) / 1000 - 1
    assert inside(shape, grid[None], grid[:, None]).mean() * 4 == pytest.approx(AREAS[shape], abs=1e-3)


def test_triangle_points_up_and_cross_has_four_arms():
    assert inside("triangle", 0.0, -0.49) and not inside("triangle", 0.2, -0.45) and inside("triangle", 0.45, 0.49)
    for x, y in ((0.45, 0), (-0.45, 0), (0, 0.45), (0, -0.45)):
        assert inside("cross", x, y)
    assert not inside("cross", 0.2, 0.2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [64, 96])
def test_clips_show_area_colour_and_way(shape, size):
    placement = Placement(0.4, (0.3, 0.5), (0.35, 0.0), (200, 100, 50), (10, 10, 10))
    frames = render(shape, placement, num_frames=5, image_size=size)
    assert frames.shape == (5, size, size, 3) and frames.dtype == np.uint8
    cover = (frames[..., 0].astype(float) - 10) / 190
    np.testing.assert_allclose(cover.sum((1, 2)) / size**2, AREAS[shape] * 0.4**2, rtol=0.02)
    centres = (cover.sum(1) @ (np.arange(size) + 0.5)) / cover.sum((1, 2)) / size
    np.testing.assert_allclose(centres, 0.3 + 0.35 * np.linspace(0, 1, 5), atol=0.003)
    assert frames[:, 0, 0].tolist() == [[10, 10, 10]] * 5
    assert frames[0, size // 2, round(0.3 * size)].tolist() == [200, 100, 50]


def test_edges_are_averages_of_sixteen_samples():
    placement = Placement(0.5, (0.5 + 1 / 128, 0.5), (0.0, 0.0), (160, 160, 160), (0, 0, 0))
    row = render("square", placement, 2, 64)[0, 32, :, 0]  # the box runs from pixel 16.5 to 48.5
    assert row[[15, 16, 17, 47, 48, 49]].tolist() == [0, 80, 160, 160, 80, 0]


def test_shapes_stay_inside_and_move_as_they_should():
    for index, scene in enumerate(all_scenes()):
        placement = place(scene, stream(3, "test", index))
        for begin, way, direction in zip(placement.start, placement.travel, MOTIONS[scene.motion], strict=True):
            assert MIN_TRAVEL <= way * direction <= MAX_TRAVEL if direction else way == 0
            for centre in (begin, begin + way):
                assert centre - placement.extent / 2 >= MARGIN - 1e-9
                assert centre + placement.extent / 2 <= 1 - MARGIN + 1e-9
        low, high = {"small": (0.27, 0.33), "large": (0.45, 0.55)}[scene.size]
        assert low <= placement.extent <= high
        assert np.abs(np.subtract(placement.colour, COLOURS[scene.colour])).max() <= 10
        assert len(set(placement.background)) == 1


def test_scenes_are_all_720_and_checked():
    assert len(set(all_scenes())) == 4 * 6 * 5 * 2 * 3 == 720
    with pytest.raises(UserError, match="colour='orange': give one of red, green"):
        Scene("circle", "orange", "left", "small", "grey")


def test_captions_have_the_words_of_the_scene_and_no_others():
    every = set(itertools.chain(*VOCABULARY.values()))
    texts = set()
    for index, scene in enumerate(all_scenes() * 3):
        text = caption(scene, stream(0, "captions", index))
        words = set(text.replace(",", "").replace(":", "").split())
        assert words & every == {getattr(scene, name) for name in ATTRIBUTES}, text
        texts.add(text)
    assert len(texts) > 2000


def test_wording_varies_and_includes_the_plain_one():
    scene = Scene("circle", "red", "right", "large", "black")
    texts = {caption(scene, stream(0, "captions", index)) for index in range(2000)}
    assert len(texts) == 10 * 8
    assert "a large red circle moving right on a black background" in texts
    up = {caption(Scene("cross", "red", "up", "small", "grey"), stream(0, "captions", i)) for i in range(500)}
    assert len(up) == 10 * 4 and not any("to the" in text for text in up)


@pytest.mark.parametrize("seed", range(5))
def test_every_word_and_pair_remains_in_training(seed):
    held_out = held_out_combinations(seed)
    assert len(held_out) == 24
    assert set(Counter((s, c) for s, c, _ in held_out).values()) == {1}
    assert set(Counter((s, m) for s, _, m in held_out).values()) == {1, 2}
    assert len({(c, m) for _, c, m in held_out}) == 24
    seen = set(itertools.product(SHAPES, COLOURS, MOTIONS)) - held_out
    assert {c[:2] for c in seen} == set(itertools.product(SHAPES, COLOURS))
    assert {c[1:] for c in seen} == set(itertools.product(COLOURS, MOTIONS))
    assert {c[::2] for c in seen} == set(itertools.product(SHAPES, MOTIONS))


def test_held_out_combinations_are_a_matter_of_the_seed():
    assert held_out_combinations(0) == held_out_combinations(0) != held_out_combinations(1)


def test_any_beginning_is_balanced():
    combinations = list(itertools.product(("circle", "cross"), ("red", "blue"), ("left", "still", "up")))
    scenes = balanced_scenes(combinations, 12 * 6 + 5, stream(0, "order"))
    assert len(scenes) == 77
    for count in (12, 30, 77):
        counts = Counter(scene.combination for scene in scenes[:count])
        assert len(counts) == 12 and max(counts.values()) - min(counts.values()) <= 1
    assert len(set(scenes[:72])) == 72  # every size and background of every combination
    assert [scene.combination for scene in scenes[:12]] != [scene.combination for scene in scenes[12:24]]


def test_splits_keep_held_out_combinations_apart():
    config = ShapesConfig(output_path="x", num_clips=700, num_test=96, num_held_out=24, seed=4)
    parts = splits(config)
    assert {name: len(scenes) for name, scenes in parts.items()} == {"train": 700, "test": 96, "held_out": 24}
    combinations = {name: {scene.combination for scene in scenes} for name, scenes in parts.items()}
    assert combinations["held_out"] == held_out_combinations(4)
    assert not combinations["train"] & combinations["held_out"]
    assert combinations["test"] == combinations["train"] and len(combinations["train"]) == 96
    assert len(set(parts["train"])) == 96 * 6


def test_clips_are_functions_of_seed_split_and_number():
    config = ShapesConfig(output_path="x", num_frames=3, image_size=32)
    scene = Scene("cross", "cyan", "down", "small", "grey")
    clip = make_clip(config, "train", 7, scene)
    assert clip.shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(clip, make_clip(config, "train", 7, scene))
    others = [make_clip(config, "train", 8, scene), make_clip(config, "test", 7, scene)]
    others.append(make_clip(ShapesConfig(output_path="x", num_frames=3, image_size=32, seed=1), "train", 7, scene))
    assert not any(np.array_equal(clip, other) for other in others)


def test_lists_are_read_back(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text(HEADER + 'a/b.mp4,"small, red",circle,red,still,small,grey\n')
    (row,) = read_described(path)
    assert (row.video, row.caption) == ("a/b.mp4", "small, red")
    assert row.scene == Scene("circle", "red", "still", "small", "grey")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "list.csv cannot be read .No such file"),
        ("", "lists no clips"),
        (HEADER, "lists no clips"),
        ("video,caption\na.mp4,b\n", "row 1 has no shape; make it with"),
        (HEADER + "a.mp4,b,circle,red,still,small,grey\na.mp4,b,circle,red,still,tiny,grey\n", "row 2: size='tiny'"),
        (HEADER + "../a.mp4,b,circle,red,still,small,grey\n", "row 1: ../a.mp4 leads out"),
        (HEADER + "/a.mp4,b,circle,red,still,small,grey\n", "row 1: /a.mp4 leads out"),
        (b"\xff\xfe\x00", "not a UTF-8 CSV"),
    ],
)
def test_unusable_lists_are_one_line(tmp_path, text, expected):
    path = tmp_path / "list.csv"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=expected) as error:
        read_described(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_clips", 0), ("num_test", -1), ("num_frames", 1), ("seed", -1), ("num_workers", 0), ("image_size", 30),
     ("image_size", 65), ("fps", 0.0), ("fps", float("nan")), ("crf", 52)],
)  # fmt: skip
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(UserError, match=f"^{name}={value}: give"):
        ShapesConfig(output_path="x", **{name: value})

"""The data set of moving shapes as its command writes it."""

import csv
import json

import numpy as np
import pytest

from mg.config.shapes import ATTRIBUTES, ShapesConfig
from mg.dataset.shapes import caption, held_out_combinations, make_clip, read_described, splits
from mg.dataset.video import probe, read_video
from mg.metrics.shapes import read_scene
from mg.rng import stream

TOOL = "../tools/make_shapes_dataset.py"
COUNTS = {"num_clips": 9, "num_test": 5, "num_held_out": 4, "image_size": 48, "num_frames": 8, "fps": 12.0, "seed": 3}
FLAGS = [word for name, value in COUNTS.items() for word in (f"--{name}", value)]


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def made(here, tmp_path):
    folder = tmp_path / "shapes"
    result = here(TOOL, "--output_path", folder, *FLAGS)
    assert result.code == 0, result.err
    return folder, result


def test_lists_and_clips_agree(made):
    folder, result = made
    config = ShapesConfig(output_path=str(folder), **COUNTS)
    for part, scenes in splits(config).items():
        rows = read_described(folder / f"{part}.csv")
        assert [row.scene for row in rows] == scenes
        assert f"{part}.csv: {len(scenes)} clips" in result.out
        for index, row in enumerate(rows):
            assert row.caption == caption(row.scene, stream(3, f"shapes.{part}.caption", index))
            frames = read_video(folder / row.video)
            drawn = make_clip(config, part, index, row.scene)
            assert frames.shape == drawn.shape == (8, 48, 48, 3)
            assert np.abs(frames.astype(int) - drawn).mean() < 4  # what yuv420p and H.264 cost
            reading = read_scene(frames)
            assert [getattr(reading, name) for name in ATTRIBUTES] == [getattr(row.scene, name) for name in ATTRIBUTES]
    assert probe(folder / "videos/train_00008.mp4").fps == 12
    assert len(list((folder / "videos").iterdir())) == 18
    with open(folder / "held_out_combinations.csv", newline="") as file:
        assert {tuple(row) for row in list(csv.reader(file))[1:]} == held_out_combinations(3)
    assert (folder / "sheet.png").stat().st_size > 1000


def test_an_interrupted_run_is_completed_to_the_byte(here, made):
    folder, _ = made
    complete = contents(folder)
    kept = folder / "videos/train_00002.mp4"
    stamp = kept.stat().st_mtime_ns
    for name in ("train.csv", "videos/train_00000.mp4", "videos/held_out_00003.mp4"):
        (folder / name).unlink()
    assert here(TOOL, "--output_path", folder, *FLAGS, "--num_workers", 1).code == 0
    assert contents(folder) == complete
    assert kept.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("option", [("--seed", 4), ("--num_clips", 10), ("--crf", 30)])
def test_another_setting_is_refused(here, error_line, made, option):
    folder, _ = made
    before = contents(folder)
    line = error_line(here(TOOL, "--output_path", folder, *FLAGS, *option))
    name = option[0].removeprefix("--")
    assert f"was made with {name} {({'crf': 8} | COUNTS)[name]}; give" in line
    assert contents(folder) == before


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_foreign_folders_are_refused(here, error_line, tmp_path, text):
    (tmp_path / "notes.txt").write_text("mine")
    if text is not None:
        (tmp_path / "shapes.json").write_text(text)
    line = error_line(here(TOOL, "--output_path", tmp_path, *FLAGS))
    expected = {None: "holds other files and no shapes.json", "{": "is damaged", "[]": "is not of this tool"}[text]
    assert line.startswith("error: output_path: ") and expected in line
    assert not (tmp_path / "videos").exists()


def test_settings_are_kept_beside_the_clips(made):
    folder, _ = made
    assert json.loads((folder / "shapes.json").read_text()) == {**COUNTS, "crf": 8}

"""The benchmark counts what the clips show: with stand-ins for a pipeline that obeys, and one that does not."""

import csv
import importlib.util
import json
import sys

import cv2
import pytest

from mg.config.shapes import ATTRIBUTES, Scene
from mg.dataset.shapes import all_scenes, caption, place, render
from mg.dataset.video import read_video
from mg.dataset.video_writer import write_video
from mg.errors import BadClip, UserError
from mg.pipelines import TextToVideoPipeline
from mg.rng import stream


@pytest.fixture
def bench(root):
    """The benchmark as a module (benchmarks/ is a folder of scripts, not a package)."""
    spec = importlib.util.spec_from_file_location("prompt_faithfulness", root / "benchmarks/prompt_faithfulness.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["prompt_faithfulness"] = module  # the option parser reads the source of the settings' class
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def scenes():
    return [all_scenes()[index] for index in (10, 200, 333, 480, 600, 719)]


@pytest.fixture
def lists(tmp_path, scenes):
    """Two CSVs, of four and of two prompts."""
    paths = []
    for name, part in (("test", scenes[:4]), ("held_out", scenes[4:])):
        paths.append(tmp_path / f"{name}.csv")
        with open(paths[-1], "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["video", "caption", *ATTRIBUTES])
            for index, scene in enumerate(part):
                words = [getattr(scene, attribute) for attribute in ATTRIBUTES]
                rows.writerow([f"videos/{name}_{index}.mp4", caption(scene, stream(0, name, index)), *words])
    return paths


class Painter:
    """Paints what the prompt says; without guidance it takes every circle for a cross and has all colours wrong."""

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, scale, seeds):
        self.calls.append((len(prompts), scale, list(seeds)))
        return [self.paint(prompt, scale, seed) for prompt, seed in zip(prompts, seeds, strict=True)]

    def paint(self, prompt, scale, seed):
        words = set(prompt.replace(",", "").replace(":", "").split())
        scene = next(s for s in all_scenes() if {getattr(s, name) for name in ATTRIBUTES} <= words)
        if scale == 1:
            shape = "cross" if scene.shape == "circle" else scene.shape
            colour = "red" if scene.colour != "red" else "blue"
            scene = Scene(shape, colour, scene.motion, scene.size, scene.background)
        return render(scene.shape, place(scene, stream(seed, "paint")))


def run(bench, *arguments):
    bench.main([str(word) for word in arguments])


def test_table_has_the_shares_of_what_was_painted(bench, lists, scenes, tmp_path, monkeypatch, capsys):
    painter = Painter()
    monkeypatch.setattr(bench, "load_pipeline", lambda settings: painter)
    out = tmp_path / "out"
    run(bench, "--pipeline", "p", "--csv", *lists, "--output_path", out, "--guidance", 1, 4, "--batch_size", 3,
        "--seed", 7)  # fmt: skip
    report = json.loads((out / "prompt_faithfulness.json").read_text())
    table = {(row["prompts"], row["guidance"]): row for row in report["table"]}
    circles = sum(scene.shape == "circle" for scene in scenes[:4])
    assert 0 < circles < 4
    assert table["test", 1.0]["shape"] == 1 - circles / 4
    assert table["test", 1.0]["colour"] == table["test", 1.0]["all"] == 0
    assert table["test", 1.0]["motion"] == table["held_out", 1.0]["background"] == 1
    for name, count in (("test", 4), ("held_out", 2)):
        row = table[name, 4.0]
        assert (row["count"], row["all"], row["all_standard_error"]) == (count, 1, 0)
    # The noise of a prompt is the same with and without guidance, and another for each prompt.
    once = [(3, [7, 8, 9]), (1, [10]), (2, [7, 8])]
    assert painter.calls == [(count, scale, seeds) for scale in (1, 4) for count, seeds in once]
    assert len(report["clips"]) == 12
    first = report["clips"][0]
    assert first["scene"] == {name: getattr(scenes[0], name) for name in ATTRIBUTES}
    assert "colour" in first["wrong"] and first["read"]["colour"] in ("red", "blue")
    assert read_video(out / "guidance_4" / "videos/test_3.mp4").shape == (16, 64, 64, 3)
    for name in ("sheet_test_guidance_1.png", "sheet_held_out_guidance_4.png"):
        assert cv2.imread(str(out / name)).shape[1] == 12 * 64
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["prompts", "guidance", "count", *ATTRIBUTES, "all"]
    assert lines[3].split() == ["test", "4", "4", *["100.0%"] * 6]


def test_existing_clips_are_read_where_the_list_says(bench, lists, scenes, tmp_path, capsys):
    for index, scene in enumerate(scenes[:4]):
        placement = place(scene, stream(0, "clip", index))
        shown = scene.shape if index else ("square" if scene.shape != "square" else "cross")
        write_video(tmp_path / f"clips/videos/test_{index}.mp4", render(shown, placement), 16)
    out = tmp_path / "out"
    run(bench, "--videos", tmp_path / "clips", "--csv", lists[0], "--output_path", out)
    (row,) = json.loads((out / "prompt_faithfulness.json").read_text())["table"]
    assert (row["guidance"], row["shape"], row["colour"], row["all"]) == (None, 0.75, 1, 0.75)
    assert row["all_standard_error"] == pytest.approx((0.75 * 0.25 / 4) ** 0.5)
    run(bench, "--videos", tmp_path / "clips", "--csv", lists[0], "--output_path", out, "--count", 1)
    (row,) = json.loads((out / "prompt_faithfulness.json").read_text())["table"]
    assert (row["count"], row["all"]) == (1, 0)
    with pytest.raises(BadClip, match="held_out_0.mp4: file not found"):
        run(bench, "--videos", tmp_path / "clips", "--csv", lists[1], "--output_path", out)


def test_the_pipeline_is_asked_for_the_grid(bench, monkeypatch):
    asked = []

    class Pipe:
        def __call__(self, prompts, **options):
            asked.append((options["sample_method"], options["num_inference_steps"]))

    monkeypatch.setattr(TextToVideoPipeline, "from_pretrained", lambda *args, **options: Pipe())
    for method in (None, "linear"):
        settings = bench.Settings(csv="a.csv", output_path="out", pipeline="p", steps=7, sample_method=method)
        bench.load_pipeline(settings)(["a"], 1.0, [0])
    assert asked == [(None, 7), ("linear", 7)]


def test_chance_is_one_scene_in_720(bench):
    assert bench.chance()["all"] == pytest.approx(1 / 720)
    assert bench.chance()["colour"] == pytest.approx(1 / 6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "give either --pipeline or --videos"),
        ({"pipeline": "a", "videos": "b"}, "give either --pipeline or --videos"),
        ({"pipeline": "a", "guidance": (1.0, 0.0)}, "guidance=.1.0, 0.0.: give numbers above 0"),
        ({"pipeline": "a", "count": 0}, "count=0: give at least 1"),
        ({"pipeline": "a", "steps": 0}, "steps=0: give at least 1"),
        ({"pipeline": "a", "csv": ("x/a.csv", "y/a.csv")}, "files have different names"),
    ],
)
def test_impossible_settings_are_named(bench, options, expected):
    with pytest.raises(UserError, match=expected):
        bench.Settings(**{"csv": "a.csv", "output_path": "out", **options})

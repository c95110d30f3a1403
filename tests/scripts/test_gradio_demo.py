"""The web demo without its page: what a visitor's values become, and how the script begins."""

import importlib.util
import threading

import numpy as np
import pytest
from PIL import Image

from mg.config.demo import DemoConfig
from mg.dataset.video import probe, read_video
from mg.errors import UserError
from mg.pipelines.demo_app import DemoApp
from tests.generation_fakes import pipeline, said

SCRIPT = "gradio_demo.py"


def oracle(x, level, text):
    return (text - x) * 1000.0 / level


@pytest.fixture
def app(tmp_path):
    return DemoApp(pipeline(oracle), DemoConfig(pipeline="p", output_path=str(tmp_path / "o"), fps=24, max_saved=2))


def test_values_of_the_page_become_a_video(app):
    shown = app.make("a cat", "", 3.0, 12.0, 16.0, 32.0, 1.0, 2.0)
    assert shown.path.name == "0001-a-cat.mp4" and probe(shown.path).fps == 24
    frames = read_video(shown.path)
    pixel = round((said("a cat") / 2 + 0.25 + 1) * 127.5)
    assert frames.shape == (12, 16, 32, 3) and np.abs(frames.astype(int) - pixel).max() <= 3
    assert shown.told == "a cat: 12 frames of 32x16, seed 3, guidance 1, 2 steps"


def test_one_frame_is_a_picture(app):
    path, told = app.safely("a cat", None, 0, 1, 16, 16, 1.0, 1)
    assert path.suffix == ".png" and Image.open(path).size == (16, 16) and "1 frames of 16x16" in told


def test_only_the_last_videos_are_kept(app):
    names = [app.make(text, "", 0, 1, 16, 16, 1.0, 1).path.name for text in ("a", "b", "a")]
    assert names == ["0001-a.png", "0002-b.png", "0003-a.png"]
    assert sorted(path.name for path in app.folder.iterdir()) == names[1:]


def test_another_run_leaves_the_videos_of_the_earlier_one(app):
    app.folder.joinpath("0007-a.png").write_bytes(b"of yesterday")
    app.folder.joinpath("notes.txt").write_text("12-")
    again = DemoApp(app.pipeline, app.config)
    assert again.make("a", "", 0, 1, 16, 16, 1.0, 1).path.name == "0008-a.png"
    assert DemoApp(app.pipeline, app.config).make("b", "", 0, 1, 16, 16, 1.0, 1).path.name == "0009-b.png"
    assert app.folder.joinpath("0007-a.png").read_bytes() == b"of yesterday"


def test_a_page_does_not_begin_with_more_steps_than_it_allows():
    assert DemoConfig(pipeline="p", num_sampling_steps=500).num_sampling_steps == 500
    with pytest.raises(UserError, match="num_sampling_steps=501: give at most 500"):
        DemoConfig(pipeline="p", num_sampling_steps=501)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"prompt": "  "}, "prompt: write what"),
        ({"prompt": None}, "prompt: write what"),
        ({"prompt": "a" * 3000}, "prompt: 3000 characters"),
        ({"seed": -1}, "seed: give a whole number of at least 0"),
        ({"seed": 1.5}, "seed: give a whole number"),
        ({"num_frames": None}, "frames: give a whole number"),
        ({"num_frames": 33}, "num_frames=33: the transformer's position table ends at 32"),
        ({"height": 20}, "height=20: give a multiple of 16"),
        ({"width": float("inf")}, "width: give a whole number"),
        ({"guidance_scale": None}, "guidance: give a number"),
        ({"guidance_scale": -1}, "guidance_scale=-1"),
        ({"steps": 0}, "steps: give a whole number of at least 1"),
        ({"steps": 10**6}, "steps: 1000000; give at most 500"),
    ],
)
def test_mistakes_become_a_line_on_the_page(app, change, words):
    values = {"prompt": "a", "negative_prompt": "", "seed": 0, "num_frames": 1, "height": 16, "width": 16}
    path, told = app.safely(*{**values, "guidance_scale": 1.0, "steps": 1, **change}.values())
    assert path is None and told.startswith("Error: ") and words in told and "\n" not in told
    assert not app.pipeline.transformer.calls


def test_nan_becomes_a_line_on_the_page(tmp_path):
    app = DemoApp(pipeline(lambda x, level, text: x * np.nan), DemoConfig(pipeline="p", output_path=str(tmp_path)))
    path, told = app.safely("a", "", 0, 1, 16, 16, 1.0, 2)
    assert path is None and told.startswith("Error: NaN or Inf in the latent")


def test_two_visitors_wait_for_each_other(tmp_path):
    inside, most = [], []

    def rule(x, level, text):
        inside.append(1)
        most.append(len(inside))
        inside.pop()
        return x

    app = DemoApp(pipeline(rule), DemoConfig(pipeline="p", output_path=str(tmp_path)))
    threads = [threading.Thread(target=app.make, args=(name, "", 0, 1, 16, 16, 1.0, 20)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1 and len(most) == 40
    assert sorted(path.name[5:] for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_the_page_begins_with_what_the_pipeline_says(tmp_path):
    app = DemoApp(pipeline(unconditional=False), DemoConfig(pipeline="p", output_path=str(tmp_path)))
    assert (app.guidance_scale, app.steps) == (1.0, 50)
    given = DemoConfig(pipeline="p", output_path=str(tmp_path), guidance_scale=3.0, num_sampling_steps=9)
    app = DemoApp(pipeline(), given)
    assert (app.guidance_scale, app.steps) == (3.0, 9)


def test_without_gradio_one_line_says_how_to_get_it(here, error_line, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert error_line(here(SCRIPT, "--pipeline", "p")) == "error: the demo needs Gradio: pip install 'gradio>=5,<6'"


def test_a_missing_pipeline_is_told_before_the_page(here, error_line, monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    line = error_line(here(SCRIPT, "--pipeline", tmp_path / "none"))
    assert "there is no such folder" in line


@pytest.mark.parametrize("options", [{"port": 70000}, {"num_frames": 0}, {"fps": 0}, {"max_saved": 0}])
def test_options_out_of_range(options):
    (name,) = options
    with pytest.raises(UserError, match=f"^{name}="):
        DemoConfig(pipeline="p", **options)

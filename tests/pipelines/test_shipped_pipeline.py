"""The shipped text-to-video weights: videos show what their prompts say, measured by classical vision."""

import numpy as np
import pytest

from mg.config.shapes import Scene
from mg.metrics.shapes import read_scene
from mg.pipelines import TextToVideoPipeline

PROMPTS = {
    "a large red circle moving left on a black background": Scene("circle", "red", "left", "large", "black"),
    "on a white background, a large blue square going down": Scene("square", "blue", "down", "large", "white"),
    "there is a large green triangle moving up in front of a grey background": Scene(
        "triangle", "green", "up", "large", "grey"
    ),
    "a yellow cross, large, standing still on a black background": Scene("cross", "yellow", "still", "large", "black"),
}


@pytest.fixture(scope="module")
def pipe(root):
    return TextToVideoPipeline.from_pretrained(root / "assets/shapes", device="CPU")


def test_videos_show_what_their_prompts_say(pipe):
    clips = pipe(list(PROMPTS), seed=[0, 1, 2, 3], num_inference_steps=25, output_type="np", batch_size=4)
    for clip, (prompt, scene) in zip(clips, PROMPTS.items(), strict=True):
        reading = read_scene(clip)
        found = Scene(reading.shape, reading.colour, reading.motion, reading.size, reading.background)
        assert found == scene, prompt


def test_another_colour_in_the_prompt_is_another_colour_in_the_video(pipe):
    made = {
        colour: pipe(
            f"a large {colour} square standing still on a black background",
            num_inference_steps=15, seed=7, output_type="np", progress=False,
        )[0].astype(np.float64)
        for colour in ("red", "blue")
    }  # fmt: skip
    red, blue = (clip[clip.max(-1) > 100].mean(0) for clip in made.values())
    assert red[0] > 2 * red[2] and blue[2] > 2 * blue[0]

"""The web demo in a real browser: a visitor writes a prompt, presses the button and sees the video."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from mg.config.demo import DemoConfig
from mg.dataset.video import read_video
from mg.pipelines.demo_app import DemoApp, page
from tests.generation_fakes import pipeline, said

gradio = pytest.importorskip("gradio", reason="the page is Gradio's: pip install -e '.[demo]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt install chromium")
SECONDS = 60_000  # in milliseconds, as Playwright counts


def oracle(x, level, text):
    return (text - x) * 1000.0 / level


@pytest.fixture
def visit(tmp_path):
    """The demo, served, with a browser's page that shows it."""
    config = DemoConfig(
        pipeline="p", output_path=str(tmp_path / "o"), num_frames=8, image_size=32, fps=8, guidance_scale=1.0
    )
    app = DemoApp(pipeline(oracle), config)
    blocks = page(app)
    launched = {"server_name": "127.0.0.1", "prevent_thread_lock": True, "quiet": True, "show_api": False}
    _, address, _ = blocks.queue().launch(**launched, allowed_paths=[str(app.folder.resolve())])
    try:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            visited = browser.new_page()
            visited.goto(address, timeout=SECONDS)
            yield app, visited
            browser.close()
    finally:
        blocks.close()


def test_a_visitor_gets_a_video_then_a_picture_then_a_reason(visit):
    app, visited = visit
    told = visited.locator("#told textarea")
    visited.locator("#prompt textarea").fill("a cat")
    visited.get_by_label("Seed").fill("5")
    visited.locator("#generate").click()
    sync_api.expect(told).to_have_value("a cat: 8 frames of 32x32, seed 5, guidance 1, 50 steps", timeout=SECONDS)
    video = visited.locator("#video video")
    visited.wait_for_function("document.querySelector('#video video')?.readyState >= 2", timeout=SECONDS)
    width, height, seconds, frame = video.evaluate(
        """video => {
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
            const pen = canvas.getContext("2d");
            pen.drawImage(video, 0, 0);
            return [canvas.width, canvas.height, video.duration, Array.from(pen.getImageData(0, 0, 32, 32).data)];
        }"""
    )
    assert (width, height) == (32, 32) and seconds == pytest.approx(1.0, abs=0.05)
    (path,) = Path(app.folder).glob("*.mp4")
    shown = np.array(frame, np.int64).reshape(32, 32, 4)[..., :3]
    assert np.abs(shown - read_video(path)[0]).max() <= 6  # two decoders
    assert np.abs(shown - round((said("a cat") / 2 + 1.25) * 127.5)).max() <= 8

    visited.get_by_label("Frames (1: a picture)").fill("1")
    visited.locator("#generate").click()
    visited.wait_for_function("document.querySelector('#picture img')?.naturalWidth == 32", timeout=SECONDS)

    visited.get_by_label("Height").fill("20")
    visited.locator("#generate").click()
    sync_api.expect(told).to_have_value(re.compile("^Error: height=20: give a multiple of 16"), timeout=SECONDS)

"""The web demo: what its page asks for becomes a video; the page itself is Gradio's."""

import math
import re
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mg.config.demo import MOST_STEPS, DemoConfig
from mg.errors import NumericalAbort, UserError
from mg.files import writable_folder
from mg.pipelines.sampling import Sampling
from mg.pipelines.text_to_video import TextToVideoPipeline
from mg.pipelines.video_outputs import slug, write_frames

LONGEST_PROMPT = 2000
"""Characters."""


@dataclass(frozen=True)
class Shown:
    """What the page shows: a file, a line about it, and how much was made of a size that was compiled before."""

    path: Path
    told: str


class DemoApp:
    """Makes one video at a time out of the values of a page.

    Args:
        pipeline: loaded already.
        config: folder, frames per second, videos that are kept.
    """

    def __init__(self, pipeline: TextToVideoPipeline, config: DemoConfig) -> None:
        self.pipeline, self.config = pipeline, config
        self.folder = writable_folder(config.output_path, "--output_path")
        self._lock = threading.Lock()  # two visitors must not run one network at a time
        self._saved: deque[Path] = deque()
        found = (re.match(r"(\d+)-", path.name) for path in self.folder.iterdir())
        # Those of earlier runs stay.
        self._number = max((int(match[1]) for match in found if match), default=0)

    @classmethod
    def load(cls, config: DemoConfig) -> "DemoApp":
        """Load the pipeline.

        Raises:
            UserError: it is incomplete, or the page begins with a size that it cannot make.
        """
        options = {"device": config.device, "mode": config.mode, "dtype": config.dtype, "use_tile": config.use_tile}
        pipeline = TextToVideoPipeline.from_pretrained(config.pipeline, **options)
        height, width = config.size
        pipeline.latent_size(Sampling(num_frames=config.num_frames, height=height, width=width, fps=config.fps))
        return cls(pipeline, config)

    @property
    def guidance_scale(self) -> float:
        """Strength of the prompt that the page begins with."""
        return self.pipeline.plan(Sampling(guidance_scale=self.config.guidance_scale)).guidance.scale

    @property
    def steps(self) -> int:
        """Steps that the page begins with."""
        return self.config.num_sampling_steps or self.pipeline.scheduler.num_inference_steps

    def make(
        self,
        prompt: str,
        negative_prompt: str = "",
        seed: float = 0,
        num_frames: float = 16,
        height: float = 64,
        width: float = 64,
        guidance_scale: float = 1.0,
        steps: float = 50,
    ) -> Shown:
        """Make a video of what the page says; its numbers come as floats, or as None where a field is empty.

        Returns:
            An mp4, or a png for one frame.

        Raises:
            UserError: a field is empty or out of range; the message names it.
            NumericalAbort: NaN or infinity while sampling.
        """
        prompt, negative_prompt = (prompt or "").strip(), (negative_prompt or "").strip()
        if not prompt:
            raise UserError("prompt: write what the video shall show")
        for name, text in (("prompt", prompt), ("negative prompt", negative_prompt)):
            if len(text) > LONGEST_PROMPT:
                raise UserError(f"{name}: {len(text)} characters; write at most {LONGEST_PROMPT}")
        steps = _whole("steps", steps, 1)
        if steps > MOST_STEPS:
            raise UserError(f"steps: {steps}; give at most {MOST_STEPS}")
        if guidance_scale is None or not math.isfinite(guidance_scale):
            raise UserError("guidance: give a number; 1 is no guidance")
        sampling = Sampling(
            num_frames=_whole("frames", num_frames, 1), height=_whole("height", height, 1),
            width=_whole("width", width, 1), fps=self.config.fps, num_inference_steps=steps,
            guidance_scale=float(guidance_scale),
        )  # fmt: skip
        seed = _whole("seed", seed, 0)
        with self._lock:
            (made,) = self.pipeline.generate([prompt], negative_prompt, sampling, seed=seed)
            self._number += 1
            stem = self.folder / f"{self._number:04d}-{slug(prompt)}"
            (path,) = write_frames(stem, made.frames, self.config.fps, "mp4")
            self._saved.append(path)
            while len(self._saved) > self.config.max_saved:
                self._saved.popleft().unlink(missing_ok=True)
        t, h, w, _ = made.frames.shape
        return Shown(path, f"{prompt}: {t} frames of {w}x{h}, seed {seed}, guidance {guidance_scale:g}, {steps} steps")

    def safely(self, *values: Any) -> tuple[Path | None, str]:
        """Do as `make` does, with a mistake as text in place of an exception."""
        try:
            shown = self.make(*values)
        except (UserError, NumericalAbort) as error:
            return None, f"Error: {error}"
        return shown.path, shown.told


def _whole(name: str, value: float | None, least: int) -> int:
    if value is None or not math.isfinite(value) or value != int(value) or value < least:
        raise UserError(f"{name}: give a whole number of at least {least}")
    return int(value)


def page(app: DemoApp) -> Any:
    """Build the page (gradio.Blocks).

    Raises:
        UserError: Gradio is not installed.
    """
    try:
        import gradio as gr
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise UserError("the demo needs Gradio: pip install 'gradio>=5,<6'") from error
    height, width = app.config.size

    def run(*values: Any) -> tuple:
        path, told = app.safely(*values)
        film = path is not None and path.suffix == ".mp4"
        picture = path is not None and not film
        return (
            gr.update(value=str(path) if film else None, visible=not picture),
            gr.update(value=str(path) if picture else None, visible=picture),
            told,
        )

    with gr.Blocks(title="Movie Gen on MindSpore", analytics_enabled=False) as blocks:
        gr.Markdown("# Movie Gen on MindSpore\nThe first video of each size takes longer: the networks are compiled.")
        with gr.Row():
            with gr.Column():
                prompt = gr.Textbox(label="Prompt", lines=3, elem_id="prompt")
                negative = gr.Textbox(label="Negative prompt", elem_id="negative")
                with gr.Row():
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0)
                    frames = gr.Number(app.config.num_frames, label="Frames (1: a picture)", precision=0, minimum=1)
                    steps = gr.Slider(1, max(100, app.steps), app.steps, step=1, label="Steps")
                with gr.Row():
                    tall = gr.Number(height, label="Height", precision=0, step=16, minimum=16)
                    wide = gr.Number(width, label="Width", precision=0, step=16, minimum=16)
                    scale = gr.Slider(
                        0, max(15.0, app.guidance_scale), app.guidance_scale, step=0.5, label="Guidance (1: none)"
                    )
                button = gr.Button("Generate", variant="primary", elem_id="generate")
            with gr.Column():
                video = gr.Video(label="Video", autoplay=True, loop=True, elem_id="video")
                picture = gr.Image(label="Picture", visible=False, elem_id="picture")
                told = gr.Textbox(label="Result", interactive=False, elem_id="told")
        values = [prompt, negative, seed, frames, tall, wide, scale, steps]
        for event in (button.click, prompt.submit):
            event(run, values, [video, picture, told], api_name=False, concurrency_limit=1, concurrency_id="network")
    return blocks


def serve(app: DemoApp) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        UserError: Gradio is not installed, or the port is taken.
    """
    blocks, config = page(app), app.config
    try:
        blocks.queue(max_size=20).launch(
            server_name=config.host, server_port=config.port or None, share=config.share, show_api=False,
            allowed_paths=[str(app.folder.resolve())],
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"--port {config.port}: {error}") from error

"""How often a text-to-video pipeline shows what the prompt says, in the world of shapes.

Generates a clip per prompt of one or more CSVs (test.csv: combinations seen in training; held_out.csv: never seen),
once per guidance scale, reads the mp4 files back by classical vision and counts how often shape, colour, motion, size,
background, and all five, are the prompt's. With --videos it reads mp4 files that exist: the true clips, for the
reader's own accuracy, or those of an earlier run (--videos OUT/guidance_1 with the same --csv).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mg.config import cli
from mg.config.shapes import ATTRIBUTES, VOCABULARY
from mg.errors import UserError
from mg.files import writable_folder, write_json

if TYPE_CHECKING:
    import numpy as np

    from mg.dataset.shapes import Described
    from mg.metrics.shapes import Reading

SHEET_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of the benchmark."""

    csv: tuple[str, ...] | str
    """CSVs with video, caption and the five attributes; each is a line of the table, named by its file"""
    output_path: str
    """folder for the clips (guidance_<scale>/<video of the CSV>), contact sheets and prompt_faithfulness.json"""
    pipeline: str | None = None
    """folder of the pipeline to measure"""
    videos: str | None = None
    """instead of a pipeline: folder of existing clips, named as in the CSV"""
    count: int = 200
    """prompts per CSV, from its beginning; fewer if it has fewer"""
    guidance: tuple[float, ...] | float = (1.0, 4.0)
    """guidance scales; 1 is without guidance"""
    negative_prompt: str = ""
    """what guidance moves away from"""
    steps: int | None = None
    """sampling steps; none: the pipeline's own number"""
    sample_method: Literal["linear", "linear-quadratic", "linear-quadratic-smooth"] | None = None
    """spacing of the steps; none: the pipeline's own"""
    image_size: int = 64
    """height and width in pixels"""
    num_frames: int = 16
    """frames per clip"""
    fps: float = 16.0
    """frames per second"""
    batch_size: int = 8
    """prompts that go through the transformer together"""
    seed: int = 0
    """of the noise: prompt number i of a CSV has seed + i, whatever the guidance, so that scales are compared fairly"""
    device: Literal["auto", "Ascend", "GPU", "CPU"] = "auto"
    """where to run"""

    def __post_init__(self) -> None:
        if (self.pipeline is None) == (self.videos is None):
            raise UserError("give either --pipeline or --videos")
        least = {"count": 1, "steps": 1, "image_size": 16, "num_frames": 2, "batch_size": 1, "seed": 0}
        for name, value in least.items():
            if getattr(self, name) is not None and getattr(self, name) < value:
                raise UserError(f"{name}={getattr(self, name)}: give at least {value}")
        for name in ("fps", *(["guidance"] if self.pipeline else [])):
            if not all(math.isfinite(value) and value > 0 for value in _many(getattr(self, name))):
                raise UserError(f"{name}={getattr(self, name)}: give numbers above 0")
        names = [Path(path).stem for path in _many(self.csv)]
        if not names or len(set(names)) < len(names):
            raise UserError(f"csv={self.csv}: give CSVs whose files have different names")

    @property
    def scales(self) -> list[float | None]:
        """The guidance scales, each once; a single None for existing clips."""
        return [None] if self.videos else list(dict.fromkeys(_many(self.guidance)))


Generate = Callable[[Sequence[str], float, Sequence[int]], Sequence["np.ndarray"]]
"""(prompts, guidance scale, a seed per prompt) -> a uint8 clip (t, h, w, 3) per prompt."""


def _many(value: Any) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def load_pipeline(settings: Settings) -> Generate:
    """Load the pipeline and fix everything but prompts, guidance and seeds."""
    from mg.pipelines.text_to_video import TextToVideoPipeline

    pipe = TextToVideoPipeline.from_pretrained(settings.pipeline, device=settings.device)

    def generate(prompts: Sequence[str], scale: float, seeds: Sequence[int]) -> Sequence["np.ndarray"]:
        return pipe(
            list(prompts),
            negative_prompt=settings.negative_prompt,
            num_frames=settings.num_frames,
            height=settings.image_size,
            width=settings.image_size,
            fps=settings.fps,
            num_inference_steps=settings.steps,
            sample_method=settings.sample_method,
            guidance_scale=scale,
            seed=list(seeds),
            output_type="np",
            batch_size=settings.batch_size,
            progress=False,
        )

    return generate


def write_clips(
    settings: Settings, generate: Generate, prompts: Sequence["Described"], scale: float, folder: Path, label: str
) -> None:
    """Generate the clip of every prompt and write it below `folder` under the CSV's name for it."""
    from tqdm import tqdm

    from mg.dataset.video_writer import write_video

    with tqdm(total=len(prompts), desc=label, unit="clip") as bar:
        for start in range(0, len(prompts), settings.batch_size):
            batch = prompts[start : start + settings.batch_size]
            seeds = [settings.seed + start + number for number in range(len(batch))]
            clips = generate([row.caption for row in batch], scale, seeds)
            for row, frames in zip(batch, clips, strict=True):
                write_video(folder / row.video, frames, settings.fps)
                bar.update()


def read_clips(prompts: Sequence["Described"], folder: Path) -> list["Reading"]:
    """Read the clip of every prompt; raises BadClip for one that is missing or damaged."""
    from mg.dataset.video import read_video
    from mg.metrics.shapes import read_scene

    return [read_scene(read_video(folder / row.video)) for row in prompts]


def wrong(row: "Described", reading: "Reading") -> list[str]:
    """Name the attributes that are not what the prompt says."""
    return [name for name in ATTRIBUTES if getattr(row.scene, name) != getattr(reading, name)]


def shares(prompts: Sequence["Described"], readings: Sequence["Reading"]) -> dict[str, Any]:
    """Share of the clips with each attribute right, and with all of them; the latter's standard error."""
    from mg.metrics.shapes import accuracy

    figures = accuracy((row.scene, reading) for row, reading in zip(prompts, readings, strict=True))
    error = math.sqrt(figures["all"] * (1 - figures["all"]) / len(prompts))
    return {"count": len(prompts), **figures, "all_standard_error": error}


def write_sheet(path: Path, prompts: Sequence["Described"], readings: Sequence["Reading"], folder: Path) -> None:
    """Draw the first clips, each below its caption and what is wrong with it."""
    from mg.dataset.video import read_video
    from mg.pipelines.pictures import contact_sheet, write_png

    rows = []
    for row, reading in list(zip(prompts, readings, strict=True))[:SHEET_ROWS]:
        verdict = ", ".join(f"{name} {getattr(reading, name)}" for name in wrong(row, reading))
        label = f"{f'WRONG: {verdict}' if verdict else 'right'} | {row.caption}"
        rows.append((label, read_video(folder / row.video)))
    write_png(path, contact_sheet(rows, columns=12))  # wide enough for the labels


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """The table as text, in percent."""
    columns = (*ATTRIBUTES, "all")
    lines = [" ".join(["prompts".ljust(16), "guidance", "count", *(name.rjust(10) for name in columns)])]
    for row in rows:
        scale = "-" if row["guidance"] is None else f"{row['guidance']:g}"
        figures = (f"{100 * row[name]:9.1f}%" for name in columns)
        lines.append(" ".join([row["prompts"].ljust(16), scale.rjust(8), str(row["count"]).rjust(5), *figures]))
    return "\n".join(lines)


def chance() -> dict[str, float]:
    """What guessing gives, with every word equally often in the prompts."""
    single = {name: 1 / len(words) for name, words in VOCABULARY.items()}
    return {**single, "all": math.prod(single.values())}


def main(argv: list[str]) -> None:
    """Generate, read back, count; print the table and write it with every clip's reading."""
    settings = cli.parse(Settings, argv, prog="prompt_faithfulness.py", description=__doc__)
    from mg.dataset.shapes import read_described

    prompts = {Path(path).stem: read_described(path)[: settings.count] for path in _many(settings.csv)}
    output = writable_folder(settings.output_path, "output_path")
    generate = load_pipeline(settings) if settings.pipeline else None
    rows, clips = [], []
    for scale in settings.scales:
        folder = Path(settings.videos) if settings.videos else output / f"guidance_{scale:g}"
        for name, described in prompts.items():
            part = name if scale is None else f"{name}, guidance {scale:g}"
            if generate:
                write_clips(settings, generate, described, scale, folder, part)
            readings = read_clips(described, folder)
            write_sheet(output / f"sheet_{part.replace(', ', '_').replace(' ', '_')}.png", described, readings, folder)
            rows.append({"prompts": name, "guidance": scale, **shares(described, readings)})
            for row, reading in zip(described, readings, strict=True):
                clip = {"prompts": name, "guidance": scale, **asdict(row), "read": asdict(reading)}
                clips.append({**clip, "wrong": wrong(row, reading)})
            report = {"settings": asdict(settings), "chance": chance(), "table": rows, "clips": clips}
            write_json(output / "prompt_faithfulness.json", report)  # after every part: the next one may take long
    print(table_of(rows))


if __name__ == "__main__":
    cli.run(main)

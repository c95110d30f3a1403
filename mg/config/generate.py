"""Configuration of `scripts/inference.py`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mg.config.parallel import ParallelConfig
from mg.errors import UserError

SIDE = 16
"""Height and width of videos are multiples of this: 8 pixels per latent position, 2 positions per patch."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The transformer."""

    pretrained_model_path: str | None = None
    """Folder with config.json and weights, or a weights file (.safetensors, .ckpt), in place of the pipeline's."""
    name: Literal["auto", "llama-1B", "llama-5B", "llama-30B", "tiny"] = "auto"
    """Sizes of a weights file that has no config.json beside it; auto reads config.json."""
    max_length: tuple[int, int, int] | None = None
    """Lengths of the position tables (time, height, width) in patches, interpolated; none: as they are."""
    reference: bool = False
    """A weights file of the reference, which was trained with padding attended to and ones in place of MetaCLIP."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Type of the activations."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.max_length is not None and min(self.max_length) < 1:
            raise UserError(f"model.max_length={list(self.max_length)}: give at least 1 along time, height and width")

    def refuse_for_folder(self, folder: str) -> None:
        """Raise UserError if an option is given that is for a weights file, not for a folder that has a config.json."""
        for name, usual in (("name", "auto"), ("reference", False)):
            value = getattr(self, name)
            if value != usual:
                said = f"the config.json of {folder} says it"
                raise UserError(f"model.{name}={value}: is for a weights file, {said}; drop the option")


@dataclass(frozen=True, kw_only=True)
class TaeOptions:
    """The temporal autoencoder."""

    pretrained: str | None = None
    """Weights (.safetensors or .ckpt), in place of the pipeline's."""
    use_tile: bool = False
    """Decode in tiles of time and space: memory does not grow with the video."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Type of the activations."""


@dataclass(frozen=True, kw_only=True)
class TextEmbeddings:
    """Folders of embeddings made by scripts/inference_text_enc.py, in place of prompts."""

    ul2_dir: str | None = None
    """UL2; the files of all folders have the same names."""
    metaclip_dir: str | None = None
    """MetaCLIP."""
    byt5_dir: str | None = None
    """ByT5."""

    @property
    def folders(self) -> dict[str, str]:
        """The folders that are given, by encoder."""
        named = {"ul2": self.ul2_dir, "metaclip": self.metaclip_dir, "byt5": self.byt5_dir}
        return {kind: folder for kind, folder in named.items() if folder is not None}


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Which prompts to turn into videos, by which model, how, and what to write."""

    pipeline: str | None = None
    """Pipeline folder with model_index.json; without it: --model.pretrained_model_path and --tae.pretrained."""
    prompt: tuple[str, ...] | str = ()
    """A prompt; may be given several times."""
    prompts_file: str | None = None
    """.txt with one prompt per line, or a CSV; UTF-8."""
    column_names: tuple[str, ...] | str = ("video", "caption")
    """Columns of the CSV: names of the results, prompts; or the prompts' alone."""
    negative_prompt: str = ""
    """What guidance leads away from; none: the empty prompt."""
    text_emb: TextEmbeddings = field(default_factory=TextEmbeddings)
    model: ModelOptions = field(default_factory=ModelOptions)
    tae: TaeOptions = field(default_factory=TaeOptions)
    image_size: tuple[int, int] | int = (64, 64)
    """Height and width in pixels, multiples of 16; one number is a square."""
    num_frames: int = 16
    """Frames; 1 makes pictures (png)."""
    fps: float = 16.0
    """Frames per second of the videos, and in front of the prompt where the model knows rates."""
    num_sampling_steps: int | None = None
    """Steps of the solver; none: what the pipeline says, else 50."""
    sample_method: Literal["linear", "linear-quadratic", "linear-quadratic-smooth"] | None = None
    """Spacing of the steps; none: what the pipeline says, else linear-quadratic."""
    solver: Literal["euler", "midpoint"] | None = None
    """midpoint asks the network twice per step; none: what the pipeline says, else euler."""
    guidance_scale: float | None = None
    """Strength of the prompt, 1 is none; none: what the pipeline says, else 7.5, or 1 for a model that cannot."""
    guidance_mode: Literal["batched", "sequential"] = "batched"
    """sequential takes half the memory."""
    guidance_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """The scale throughout, or rising from 1 to it."""
    seed: int = 0
    """Same seed, same video; a prompt that is repeated gets other noise each time."""
    seed_per_prompt: bool = False
    """Add each prompt's number (0, 1, ...) to the seed, so that no two videos start from the same noise."""
    batch_size: int = 1
    """Prompts that go through the network together. With 1 the bits of a video do not depend on its neighbours."""
    save_format: Literal["mp4", "gif", "png"] = "mp4"
    """png writes a picture per frame."""
    save_latent: bool = False
    """Write denoised_latents/<name>.npy, too: (t, c, h, w) float32, scaled."""
    output_path: str = "outputs/generate"
    """Folder for videos, videos.json and sheet.png."""
    append_timestamp: bool = False
    """Write into a new folder in it, named by date and time."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    device: Literal["auto", "Ascend", "GPU", "CPU"] = "auto"
    """Where to run."""
    mode: Literal["graph", "pynative"] = "graph"
    """pynative is for debugging."""

    def __post_init__(self) -> None:
        """Check ranges and that there is a model and something to make."""
        for name, least in (("num_frames", 1), ("num_sampling_steps", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name}={value}: give at least {least}")
        if not 0 < self.fps <= 1000:
            raise UserError(f"fps={self.fps}: give a number above 0, up to 1000")
        if any(side < SIDE or side % SIDE for side in self.size):
            raise UserError(f"image_size={list(self.size)}: give multiples of {SIDE}, such as 64 64 or 256 448")
        if not 1 <= len(self.columns) <= 2 or not all(self.columns):
            raise UserError(f"column_names={self.column_names}: give names,prompts or the prompts' column alone")
        sources = {"--prompt": self.prompts, "--prompts_file": self.prompts_file, "--text_emb": self.text_emb.folders}
        given = [name for name, value in sources.items() if value]
        if len(given) != 1:
            said = f"{' and '.join(given)} are {'both' if len(given) == 2 else 'all'} given"
            said = said if given else "nothing to make"
            raise UserError(f"{said}; give one of --prompt, --prompts_file and --text_emb.*_dir")
        if self.pipeline is None and self.model.pretrained_model_path is None:
            raise UserError("no model: give --pipeline FOLDER, or --model.pretrained_model_path")
        if self.model.pretrained_model_path is None:
            self.model.refuse_for_folder(f"--pipeline {self.pipeline}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else tuple(self.image_size)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts of the command line."""
        return (self.prompt,) if isinstance(self.prompt, str) else tuple(self.prompt)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the CSV."""
        names = self.column_names.split(",") if isinstance(self.column_names, str) else self.column_names
        return tuple(name.strip() for name in names)


def join_prompts(argv: Sequence[str]) -> list[str]:
    """Join all `--prompt TEXT` of a command line to one argument; texts may hold commas."""
    rest, prompts = [], []
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name != "--prompt":
            rest.append(word)
            continue
        text = value if equals else words.pop(0) if words else "--"
        if text.startswith("--") and not equals:
            raise UserError("--prompt: the text is missing after it (one that begins with --: --prompt=TEXT)")
        if words and not words[0].startswith("-"):
            raise UserError(f"--prompt {text} {words[0]}: put quotes around the text, or it ends at the first blank")
        prompts.append(text)
    return [*rest, f"--prompt={json.dumps(prompts)}"] if prompts else rest

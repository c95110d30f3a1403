"""Configuration of `scripts/inference_text_enc.py`."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from mg.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EncodeTextConfig:
    """Which prompts to send through which text encoder, and how to store the embeddings."""

    prompts_file: str
    """CSV of videos and captions, or .txt with one prompt per line (empty lines are null prompts); UTF-8."""
    output_path: str
    """Folder for the embeddings; those found there are reused if the same encoder made them from the same tokens."""
    model_name: str = "google/byt5-small"
    """Hugging Face folder of a UL2, ByT5 or CLIP, or a model id: the hub's local cache is asked, then the hub."""
    kind: Literal["auto", "ul2", "metaclip", "byt5"] = "auto"
    """Which of the three encoders; auto reads it from the model's configuration."""
    model_max_length: int | None = None
    """Tokens per prompt; none: 512 (UL2), 256 (MetaCLIP) or 128 (ByT5), or what the folder says."""
    num_layers: int | None = None
    """Use the first so many blocks only; none: all."""
    text: Literal["auto", "all", "quoted"] = "auto"
    """Read all of a prompt or what stands in quotation marks; auto: quoted for ByT5, all for the others."""
    fps: float | Literal["none", "video"] = "none"
    """Frame rate to put in front of each prompt (FPS-24 ...); video: each video's own, pictures have none."""
    video_folder: str | None = None
    """Folder that the CSV's paths start from, for --fps video."""
    column_names: tuple[str, str] | str = ("video", "caption")
    """Columns of the CSV: videos,captions."""
    batch_size: int = 10
    """Prompts that go through the encoder together."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Type of weights and activations, and of the stored embeddings (npz knows no bf16 and stores fp32 then)."""
    format: Literal["npz", "cache"] = "npz"
    """npz: a file per row, padding included; cache: shards without padding in a folder per encoder and weights."""
    shard: str = "0/1"
    """i/n: every n-th row from row i (0, 1, ...) on, for n processes that write into one folder."""
    overwrite: bool = False
    """Encode everything again, also in a folder of another encoder (npz)."""
    device: Literal["auto", "Ascend", "GPU", "CPU"] = "auto"
    """Where to run."""
    mode: Literal["graph", "pynative"] = "graph"
    """pynative is for debugging."""

    def __post_init__(self) -> None:
        """Check ranges and what goes together."""
        for name, least in (("model_max_length", 2), ("num_layers", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name}={value}: give at least {least}")
        if not isinstance(self.fps, str) and not (math.isfinite(self.fps) and self.fps > 0):
            raise UserError(f"fps={self.fps}: give a number above 0, none or video")
        if self.fps == "video" and (self.video_folder is None or not self.prompts_file.lower().endswith(".csv")):
            raise UserError("fps=video reads the rates of a CSV's videos: give a .csv and --video_folder")
        if self.format == "cache" and self.overwrite:
            raise UserError("overwrite is for --format npz; another encoder's cache has its own folder, delete yours")
        if len(self.columns) != 2 or not all(self.columns):
            raise UserError(f"column_names={self.column_names}: give two names, such as video,caption")
        if not re.fullmatch(r"\d{1,9}/\d{1,9}", self.shard) or self.part[0] >= self.part[1]:
            raise UserError(f"shard={self.shard}: give i/n with i from 0 to n - 1, such as 0/2 and 1/2")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of videos and captions."""
        names = self.column_names.split(",") if isinstance(self.column_names, str) else self.column_names
        return tuple(name.strip() for name in names)

    @property
    def part(self) -> tuple[int, int]:
        """This process' number, and how many there are."""
        i, n = self.shard.split("/")
        return int(i), int(n)

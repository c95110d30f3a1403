"""Configuration of `tools/latent_statistics.py`."""

from dataclasses import dataclass, field
from typing import Literal

from mg.config.encode_latents import LoaderOptions, TaeOptions, VideoOptions
from mg.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LatentStatisticsConfig:
    """Which autoencoder, on which videos, and where the figures go."""

    tae: TaeOptions
    video_data: VideoOptions = field(default_factory=VideoOptions)
    dataloader: LoaderOptions = field(default_factory=LoaderOptions)
    max_items: int | None = None
    """Use so many videos and pictures, evenly spread over the list; none: all."""
    samples: bool = True
    """Count the spread of the samples in, which the transformer is trained on; false: of the latents' means alone."""
    write: str | None = None
    """Weights file to write (.safetensors or .ckpt): the autoencoder's with the new factors; none: print only."""
    write_dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Type of the weights that are written; fp16 halves the file."""
    report: str | None = None
    """JSON file to write the figures to, those of each channel as well; none: print only."""
    device: Literal["auto", "Ascend", "GPU", "CPU"] = "auto"
    """Where to run."""
    mode: Literal["graph", "pynative"] = "graph"
    """pynative is for debugging."""

    def __post_init__(self) -> None:
        """Check ranges and that there are videos."""
        if self.max_items is not None and self.max_items < 1:
            raise UserError(f"max_items={self.max_items}: give at least 1")
        if not (self.video_data.csv_path or self.video_data.folder):
            raise UserError("video_data.csv_path and video_data.folder are both missing; name the videos")
        if self.write is not None and not self.write.endswith((".safetensors", ".ckpt")):
            raise UserError(f"write={self.write}: choose a name that ends in .safetensors or .ckpt")

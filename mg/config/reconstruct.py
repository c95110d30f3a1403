"""Configuration of `scripts/inference_vae.py`."""

from dataclasses import dataclass, field
from typing import Literal

from mg.config.parallel import ParallelConfig
from mg.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig:
    """Which clips to send through which autoencoder, and what to write."""

    ckpt_path: str
    """Weights of the autoencoder (.safetensors or .ckpt)."""
    video_path: str | None = None
    """One video or picture."""
    csv_path: str | None = None
    """CSV with the clips; without it and video_path: everything in video_folder, apart from output_path inside it."""
    video_folder: str | None = None
    """Folder that the CSV's paths start from; none: the CSV's own."""
    video_column: str = "video"
    """Column of the CSV that holds the paths."""
    output_path: str = "outputs/reconstruction"
    """Folder for videos, pictures and metrics; originals in it are never overwritten."""
    num_frames: int | None = None
    """Frames from the start of each clip; none: the whole video. A shorter clip keeps its length."""
    image_size: int | None = None
    """Side in pixels of a centred square; none: the clip's own size."""
    batch_size: int = 1
    """Clips of one shape that go through together."""
    enable_tile: bool = False
    """Encode and decode in tiles of time and space: memory does not grow with the length of the video."""
    save_vis: bool = True
    """Write a side-by-side video and a contact sheet for each clip."""
    lpips_path: str | None = None
    """Weights of LPIPS, made by tools/convert_lpips.py, to measure it, too; 0 is equal, lower is better."""
    preset: Literal["auto", "sd35", "reference", "tiny"] = "auto"
    """Configuration of the network; auto reads it from the weights."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Type of the activations."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    device: Literal["auto", "Ascend", "GPU", "CPU"] = "auto"
    """Where to run."""
    mode: Literal["graph", "pynative"] = "graph"
    """pynative is for debugging."""

    def __post_init__(self) -> None:
        """Check ranges and that there is something to read."""
        for name, least in (("num_frames", 1), ("image_size", 8), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name}={value}: give at least {least}")
        if self.video_path is None and self.csv_path is None and self.video_folder is None:
            raise UserError("nothing to reconstruct: give --video_path, or --csv_path with --video_folder")
        if self.video_path is not None and self.csv_path is not None:
            raise UserError("--video_path and --csv_path are both given; choose one")

"""Configuration of `scripts/inference_tae.py`."""

import re
from dataclasses import dataclass, field
from typing import Literal

from mg.config.parallel import ParallelConfig
from mg.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TaeOptions:
    """The autoencoder."""

    pretrained: str | None = None
    """Weights (.safetensors or .ckpt)."""
    preset: Literal["auto", "sd35", "reference", "tiny"] = "auto"
    """Configuration of the network; auto reads it from the weights."""
    use_tile: bool = False
    """Encode and decode in tiles of time and space: memory does not grow with the length of the video."""
    encode_tile: int = 32
    """Frames per tile of the encoder."""
    encode_overlap: int = 0
    """Must be 0: tiles of the encoder do not overlap in time."""
    decode_tile: int = 32
    """Frames per tile of the decoder."""
    decode_overlap: int = 16
    """Frames that neighbouring tiles of the decoder share."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Type of the activations; what is stored is FP32."""

    def __post_init__(self) -> None:
        """Check that there are weights."""
        if not self.pretrained:
            raise UserError("tae.pretrained is missing: give the weights of an autoencoder (.safetensors or .ckpt)")


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """Videos to encode."""

    csv_path: str | None = None
    """CSV of videos and pictures; none: everything in the folder."""
    folder: str | None = None
    """Folder that the CSV's paths start from; none: the CSV's own."""
    column: str = "video"
    """Column of the CSV that holds the paths."""
    size: tuple[int, int] | str = "256px"
    """H W, or one side of a square; 256px: the nearest of 13 aspect ratios of that area; source: each its own."""
    sample_n_frames: int = -1
    """Frames from the start of each video; -1: all of them. A shorter video keeps its length."""
    sample_stride: int = 1
    """Take every n-th frame."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.sample_n_frames != -1 and self.sample_n_frames < 1:
            raise UserError(f"sample_n_frames={self.sample_n_frames}: give at least 1, or -1 for all frames")
        if self.sample_stride < 1:
            raise UserError(f"sample_stride={self.sample_stride}: give at least 1")


@dataclass(frozen=True, kw_only=True)
class LatentOptions:
    """Latents to decode."""

    folder: str | None = None
    """Folder of .npy files (t, c, h, w) as scripts/inference.py saves them, or of .npz files as this script does."""


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """How the work is cut up."""

    batch_size: int = 1
    """Videos of one shape that go through the network together."""
    num_workers: int = 2
    """Threads that read."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("batch_size", "num_workers"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: give at least 1")


@dataclass(frozen=True, kw_only=True)
class EncodeLatentsConfig:
    """Which videos to encode, or which latents to decode."""

    output_path: str = "output/"
    """Folder of the latents, or of the videos."""
    tae: TaeOptions
    video_data: VideoOptions = field(default_factory=VideoOptions)
    latent_data: LatentOptions = field(default_factory=LatentOptions)
    dataloader: LoaderOptions = field(default_factory=LoaderOptions)
    num_frames: int = 256
    """Decoding: frames to keep of each video."""
    fps: float = 16
    """Decoding: frames per second."""
    save_format: Literal["mp4", "gif", "png"] = "mp4"
    """Decoding: what to write; png: a picture per frame."""
    shard: str = "0/1"
    """i/n: every n-th video from number i (0, 1, ...) on, for n processes that write into one folder."""
    overwrite: bool = False
    """Do everything again, also in a folder of another autoencoder."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    device: Literal["auto", "Ascend", "GPU", "CPU"] = "auto"
    """Where to run."""
    mode: Literal["graph", "pynative"] = "graph"
    """pynative is for debugging."""

    def __post_init__(self) -> None:
        """Check ranges and that there is one thing to do."""
        if self.num_frames < 1:
            raise UserError(f"num_frames={self.num_frames}: give at least 1")
        if not 0 < self.fps <= 1000:
            raise UserError(f"fps={self.fps}: give a number above 0, up to 1000")
        videos = self.video_data.csv_path or self.video_data.folder
        if not videos and not self.latent_data.folder:
            raise UserError("nothing to do: give --video_data.csv_path or --video_data.folder, or --latent_data.folder")
        if videos and self.latent_data.folder:
            raise UserError("--video_data (encode) and --latent_data.folder (decode) are both given; choose one")
        if not re.fullmatch(r"\d{1,9}/\d{1,9}", self.shard) or self.part[0] >= self.part[1]:
            raise UserError(f"shard={self.shard}: give i/n with i from 0 to n - 1, such as 0/2 and 1/2")

    @property
    def part(self) -> tuple[int, int]:
        """This process' number, and how many there are."""
        i, n = self.shard.split("/")
        return int(i), int(n)

"""Configuration of `scripts/gradio_demo.py`."""

from dataclasses import dataclass
from typing import Literal

from mg.errors import UserError

MOST_STEPS = 500
"""Steps that a visitor of the page may ask for."""

@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Which pipeline to show, and where."""

    pipeline: str
    """Pipeline folder with model_index.json."""
    output_path: str = "outputs/demo_app"
    """Folder for the videos."""
    num_frames: int = 16
    """Frames that the page begins with."""
    image_size: tuple[int, int] | int = (64, 64)
    """Height and width that the page begins with, multiples of 16; one number is a square."""
    fps: float = 16.0
    """Frames per second of the videos."""
    num_sampling_steps: int | None = None
    """Steps that the page begins with; none: what the pipeline says."""
    guidance_scale: float | None = None
    """Strength of the prompt that the page begins with; none: what the pipeline says."""
    max_saved: int = 100
    """Videos kept in the folder; older ones of this run are removed."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Type of the activations."""
    use_tile: bool = False
    """Decode in tiles of time and space: memory does not grow with the video."""
    port: int = 7860
    """Port of the page; 0 takes a free one."""
    host: str = "127.0.0.1"
    """Address it is served at; 0.0.0.0 lets other machines in."""
    share: bool = False
    """Serve it at a public address of Gradio's, too."""
    device: Literal["auto", "Ascend", "GPU", "CPU"] = "auto"
    """Where to run."""
    mode: Literal["graph", "pynative"] = "graph"
    """pynative is for debugging."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, least in (("num_frames", 1), ("num_sampling_steps", 1), ("max_saved", 1), ("port", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name}={value}: give at least {least}")
        if self.num_sampling_steps is not None and self.num_sampling_steps > MOST_STEPS:
            raise UserError(f"num_sampling_steps={self.num_sampling_steps}: give at most {MOST_STEPS}")
        if self.port > 65535:
            raise UserError(f"port={self.port}: give at most 65535")
        if not 0 < self.fps <= 1000:
            raise UserError(f"fps={self.fps}: give a number above 0, up to 1000")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else tuple(self.image_size)

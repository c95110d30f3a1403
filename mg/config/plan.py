"""Configuration of `tools/plan_parallel.py`."""

from dataclasses import dataclass, field
from typing import Literal

from mg.errors import UserError

Floats = Literal["fp32", "bf16"]
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True, kw_only=True)
class DeviceFigures:
    """What one device can do; the defaults are nominal figures of a 64 GB accelerator, not measured: put in your own.

    Raises:
        UserError: a figure out of range.
    """

    memory_gb: float = 64.0
    """Memory of one device in GB (10^9 bytes)."""
    usable: float = 0.92
    """Share of it that training may use: the reference limits itself to 59 of 64 GB."""
    tflops: float = 300.0
    """Peak of matrix products, in 10^12 operations per second, in the type of the activations."""
    efficiency: float = 0.4
    """Share of the peak that training reaches."""
    per_node: int = 8
    """Devices of one machine."""
    node_gbps: float = 150.0
    """GB per second that a device sends to others of its machine."""
    network_gbps: float = 20.0
    """GB per second that a device sends to other machines."""
    overlap: float = 0.5
    """Share of the time for exchanging weights and gradients that computation hides; exchanges of activations hide
    nothing."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("memory_gb", "tflops", "node_gbps", "network_gbps"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"device.{name}={getattr(self, name)} must be above 0")
        for name in ("usable", "efficiency"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"device.{name}={getattr(self, name)} must be above 0 and at most 1")
        if not 0 <= self.overlap <= 1:
            raise UserError(f"device.overlap={self.overlap} must be in [0, 1]")
        if self.per_node < 1:
            raise UserError(f"device.per_node={self.per_node} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """A training of the transformer, to be spread over devices; raises UserError for values out of range."""

    model: Literal["1B", "5B", "30B", "tiny"]
    """Size of the transformer."""
    devices: int
    """Number of devices."""
    frames: int = 256
    """Frames of each video; 1 is an image."""
    size: tuple[int, int] = (768, 768)
    """Height and width in pixels; one number is a square."""
    batch_size: int | None = None
    """Videos of one micro-batch over all devices; none: one for every data x zero."""
    accumulation: int = 1
    """Micro-batches of one step."""
    text_tokens: int = 896
    """Text tokens of each video."""
    recompute: bool = True
    """Compute the activations of every block again in the backward pass."""
    activations: Floats = "bf16"
    """Type of the activations."""
    weights: Floats = "fp32"
    """Type of the weights. mg trains FP32 weights, gradients and moments; bf16 shows what that would spare."""
    gradients: Floats = "fp32"
    """Type of the gradients."""
    moments: Floats = "fp32"
    """Type of the optimizer's two moments."""
    averages: bool = False
    """Keep moving averages of the weights (train.ema_decay), in FP32."""
    kept_gradients: bool = True
    """The gradients of the step before stay in memory until the next ones are there."""
    backend: Literal["accelerator", "cpu"] = "accelerator"
    """accelerator: flash attention, a tensor is freed after its last use; cpu: what MindSpore 2.10 does there, all
    FP32."""
    zero_stages: tuple[int, ...] = (0, 1, 2, 3)
    """Stages to consider."""
    device: DeviceFigures = field(default_factory=DeviceFigures)
    """What a device can do."""
    top: int = 15
    """Layouts to show: the fastest that fit, then those that are nearest to it; the JSON has all."""
    output: str | None = None
    """JSON file to write; none: no file."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("devices", "frames", "batch_size", "accumulation", "text_tokens", "top"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value}: give at least 1")
        if min(self.size) < 16 or any(side % 16 for side in self.size):
            raise UserError(f"size={list(self.size)}: give multiples of 16 pixels (8 of the autoencoder, 2 of a patch)")
        kinds = {self.activations, self.weights, self.gradients, self.moments}
        if self.backend == "cpu" and kinds != {"fp32"}:
            raise UserError("backend=cpu has FP32 only; set activations, weights, gradients and moments to fp32")
        if not self.zero_stages or not set(self.zero_stages) <= {0, 1, 2, 3}:
            raise UserError(f"zero_stages={list(self.zero_stages)}: choose from 0, 1, 2, 3")

    @property
    def latent(self) -> tuple[int, int, int]:
        """Latent frames, height and width: an eighth of the video's, frames rounded up."""
        return -(-self.frames // 8), self.size[0] // 8, self.size[1] // 8

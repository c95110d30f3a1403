"""Configuration of a discriminator: its network, when it is trained, and what holds it back."""

from dataclasses import dataclass, field
from typing import Literal

from mg.config.trainer import OptimizerConfig
from mg.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PatchConfig:
    """Network of a 3-D PatchGAN discriminator; raises UserError for values out of range."""

    base_channels: int = 64
    """Channels after the first convolution; each later one has twice as many, up to max_channels."""
    max_channels: int = 512
    """Cap on the channels."""
    layers: int = 3
    """Convolutions that halve height and width, at least 1; 1, 2, 3, 4 judge patches 16, 34, 70, 142 pixels wide"""
    time_kernel: int = 3
    """Frames that a convolution sees, an odd number; 1 judges every frame alone."""
    time_strides: tuple[int, ...] = (1, 2, 2)
    """Steps in time of the halving convolutions: the first `layers` of these, 1 where there are fewer."""
    norm: Literal["group", "none"] = "group"
    """group: group norm of each frame, so that neither the batch nor padding matters; none: no norm."""
    norm_groups: int = 8
    """Groups of the norm; all channel numbers but 1 and 3 must be multiples of it."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("base_channels", "max_channels", "layers", "norm_groups"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be 1 or above")
        if self.time_kernel < 1 or self.time_kernel % 2 == 0:
            raise UserError(f"time_kernel={self.time_kernel} must be an odd number, 1 or above")
        if min(self.time_strides, default=1) < 1:
            raise UserError(f"time_strides={self.time_strides} must be numbers, 1 or above")
        if self.norm not in ("group", "none"):
            raise UserError(f"norm={self.norm!r}: choose group or none")
        if self.norm == "group" and (self.base_channels % self.norm_groups or self.max_channels % self.norm_groups):
            raise UserError(
                f"norm_groups={self.norm_groups} must divide base_channels={self.base_channels} and "
                f"max_channels={self.max_channels}; choose a divisor, or norm none"
            )

    @property
    def strides(self) -> tuple[int, ...]:
        """Step in time of each halving convolution."""
        return (*self.time_strides, *(1,) * self.layers)[: self.layers]

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels after each convolution but the last, which has 1."""
        return tuple(min(self.base_channels * 2**i, self.max_channels) for i in range(self.layers + 1))


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """A discriminator and its training; raises UserError for values out of range."""

    network: PatchConfig = field(default_factory=PatchConfig)
    start: int = 1
    """First step in which the discriminator is trained; until then it costs nothing."""
    lecam_weight: float = 0.0
    """Weight of the LeCAM regularisation, 0 is off."""
    lecam_decay: float = 0.999
    """Decay of LeCAM's averages of the logits per step, in [0, 1)."""
    r1_weight: float = 0.0
    """Weight (half of gamma) of the squared gradient of the logits of real videos, 0 is off; graph mode only."""
    r1_every: int = 1
    """Steps from one such penalty to the next; it is multiplied by this number then."""
    tubelets: int = 0
    """Cuts per clip that are judged, at places drawn anew for every batch; 0 judges whole clips."""
    tubelet_size: tuple[int, int, int] = (8, 64, 64)
    """Frames, height and width of a cut; as much of it as the clip has."""
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-4, betas=(0.5, 0.9)))

    def __post_init__(self) -> None:
        """Check ranges."""
        for name, least in (("start", 1), ("r1_every", 1), ("tubelets", 0), ("lecam_weight", 0), ("r1_weight", 0)):
            if not getattr(self, name) >= least:
                raise UserError(f"{name}={getattr(self, name)} must be {least} or above")
        if not 0 <= self.lecam_decay < 1:
            raise UserError(f"lecam_decay={self.lecam_decay} must be in [0, 1)")
        if len(self.tubelet_size) != 3 or min(self.tubelet_size) < 1:
            raise UserError(f"tubelet_size={self.tubelet_size} must be frames, height and width, 1 or above")

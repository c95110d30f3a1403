"""Configurations of the temporal autoencoder (Movie Gen, 3.1.1), as mappings with the reference's keys."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

TAE_CONFIG: dict[str, Any] = {
    "double_z": True,
    "z_channels": 16,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "attn_type": "vanilla",
    "temporal_downsample_level": [0, 1, 2],
    "temporal_upsample_level": [3, 2, 1],
    "norm_groups": 32,
    "temporal_upsample_padding": "replicate",
    "tile_blend": "linear",
    "zero_init_temporal_attention": True,
}
"""Full size, initialised from the Stable Diffusion 3.5 VAE; the last four keys are ours, all others the reference's."""

PRESETS: dict[str, dict[str, Any]] = {
    "sd35": TAE_CONFIG,
    "reference": {
        **TAE_CONFIG,
        "temporal_upsample_padding": "zeros",
        "tile_blend": "uniform",
        "zero_init_temporal_attention": False,
    },
    "tiny": {
        **TAE_CONFIG,
        "ch": 16,
        "ch_mult": [1, 1, 4, 8],
        "num_res_blocks": 1,
        "norm_groups": 2,
        # Of the shipped weights' latents, clips of assets/ and drawn shapes by halves: 1 / standard deviation, mean.
        "scaling_factor": 0.85,
        "shift_factor": 0.03,
    },
}
"""`sd35`: the paper's architecture at full size. `reference`: the same with the reference implementation's padding,
blending and initialisation, for its weights. `tiny`: small enough to train on two CPU cores."""


@dataclass(frozen=True, kw_only=True)
class TaeConfig:
    """A validated configuration; `from_mapping` builds it from a mapping with the keys of `TAE_CONFIG`."""

    double_z: bool
    z_channels: int
    resolution: int
    in_channels: int
    out_ch: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    dropout: float
    scaling_factor: float
    shift_factor: float
    use_quant_conv: bool
    use_post_quant_conv: bool
    attn_type: Literal["vanilla", "spat_only"]
    temporal_downsample_level: tuple[int, ...]
    temporal_upsample_level: tuple[int, ...]
    norm_groups: int
    temporal_upsample_padding: Literal["replicate", "zeros"]
    tile_blend: Literal["linear", "uniform"]
    zero_init_temporal_attention: bool

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> "TaeConfig":
        """Read a mapping; keys that are left out keep the values of `TAE_CONFIG`.

        Raises:
            ValueError: an unknown key, or a value outside its range.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(config) - known)
        if unknown:
            raise ValueError(f"unknown TAE config keys {unknown}; known keys are {sorted(known)}")
        values = {**TAE_CONFIG, **config}
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})

    def __post_init__(self) -> None:
        """Refuse values this architecture has no meaning for."""
        levels = len(self.ch_mult)
        if not self.double_z:
            raise ValueError("double_z=False: the encoder gives mean and log-variance; set double_z to true")
        if self.attn_resolutions:
            raise ValueError(f"attn_resolutions={list(self.attn_resolutions)}: only the mid blocks attend; use []")
        if self.dropout != 0.0:
            raise ValueError(f"dropout={self.dropout}: the autoencoder has no dropout; set it to 0.0")
        choices = {
            "attn_type": ("vanilla", "spat_only"),
            "temporal_upsample_padding": ("replicate", "zeros"),
            "tile_blend": ("linear", "uniform"),
        }
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key}={getattr(self, key)!r}: choose one of {list(allowed)}")
        for key in ("ch", "z_channels", "num_res_blocks", "norm_groups", "in_channels", "out_ch"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: it must be at least 1")
        if levels < 1 or min(self.ch_mult) < 1:
            raise ValueError(f"ch_mult={list(self.ch_mult)}: give one multiplier of at least 1 per level")
        if not set(self.temporal_downsample_level) <= set(range(levels - 1)):
            raise ValueError(f"temporal_downsample_level={list(self.temporal_downsample_level)}: use 0..{levels - 2}")
        if not set(self.temporal_upsample_level) <= set(range(1, levels)):
            raise ValueError(f"temporal_upsample_level={list(self.temporal_upsample_level)}: use 1..{levels - 1}")
        if len(self.temporal_upsample_level) != len(self.temporal_downsample_level):
            raise ValueError("temporal_upsample_level and temporal_downsample_level must have the same length")

    @property
    def spatial_compression(self) -> int:
        """Pixels per latent position along height and width."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def time_compression(self) -> int:
        """Frames per latent frame."""
        return 2 ** len(self.temporal_downsample_level)

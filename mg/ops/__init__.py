"""Primitives whose best kernel differs per backend, behind one name each."""

from mg.ops.activation import gelu_tanh, silu
from mg.ops.attention import attention
from mg.ops.conv import (
    SpatialConv,
    SpatialDownsampleConv,
    SpatialUpsampleConv,
    TemporalConv,
    TemporalUpsampleConv,
)
from mg.ops.linear import Linear
from mg.ops.norm import GroupNorm, RMSNorm, modulated_rms_norm, rms_norm
from mg.ops.pad import crop, pad_edge, pad_zero
from mg.ops.portable import PORTABLE, exchange_cells
from mg.ops.spread import spread

__all__ = [
    "GroupNorm",
    "Linear",
    "PORTABLE",
    "RMSNorm",
    "SpatialConv",
    "SpatialDownsampleConv",
    "SpatialUpsampleConv",
    "TemporalConv",
    "TemporalUpsampleConv",
    "attention",
    "crop",
    "exchange_cells",
    "gelu_tanh",
    "modulated_rms_norm",
    "pad_edge",
    "pad_zero",
    "rms_norm",
    "silu",
    "spread",
]

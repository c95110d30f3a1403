"""Primitives whose best kernel differs per backend, behind one name each."""

from mg.ops.attention import attention
from mg.ops.conv import (
    SpatialConv,
    SpatialDownsampleConv,
    SpatialUpsampleConv,
    TemporalConv,
    TemporalUpsampleConv,
)
from mg.ops.linear import Linear
from mg.ops.norm import GroupNorm, silu
from mg.ops.pad import crop, pad_edge

__all__ = [
    "GroupNorm",
    "Linear",
    "SpatialConv",
    "SpatialDownsampleConv",
    "SpatialUpsampleConv",
    "TemporalConv",
    "TemporalUpsampleConv",
    "attention",
    "crop",
    "pad_edge",
    "silu",
]

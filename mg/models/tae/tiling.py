"""Tiles of long and large videos: where they lie and how overlapping results are blended (Movie Gen, 3.1.1).

Everything here is numpy: only one tile at a time is on the device, so memory does not grow with the video.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Tiles:
    """Positions of tiles along one axis: each is `size` long (the last may be shorter), neighbours share `overlap`."""

    length: int
    size: int
    overlap: int

    def __post_init__(self) -> None:
        """Refuse an overlap that would never advance."""
        if self.size < 1 or not 0 <= self.overlap < self.size:
            raise ValueError(f"tile={self.size}, overlap={self.overlap}: need 0 <= overlap < tile")

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) from the first tile to the one that reaches the end."""
        start = 0
        while True:
            stop = min(start + self.size, self.length)
            yield start, stop
            if stop == self.length:
                return
            start += self.size - self.overlap


def even_tiles(length: int, size: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """Tiles of one equal size, so that one compiled graph serves all; the last is moved back to end at the border.

    Args:
        length: length of the axis.
        size: length of a tile; a shorter axis is one tile.
        overlap: least overlap of neighbours.

    Returns:
        (start, stop, overlap with the tile before, overlap with the tile after) of each tile.
    """
    if length <= size:
        return [(0, length, 0, 0)]
    starts = [*range(0, length - size, size - overlap), length - size]
    before = [0, *(a + size - b for a, b in zip(starts, starts[1:], strict=False))]
    return [(s, s + size, before[i], (before[1:] + [0])[i]) for i, s in enumerate(starts)]


def ramp(length: int, before: int, after: int, blend: Literal["linear", "uniform"]) -> np.ndarray:
    """Weights of one tile along an axis: 1 inside, falling over the overlap with each neighbour.

    With `linear`, the weights of two neighbours sum to 1 at every position of their overlap and rise in equal steps;
    with `uniform` every position weighs the same.

    Args:
        length: length of the tile.
        before: overlap with the tile before, 0 for the first.
        after: overlap with the tile after, 0 for the last.
        blend: `linear` (the paper) or `uniform` (the reference).

    Returns:
        float32 weights (length,), all greater than 0.
    """
    weights = np.ones(length, np.float32)
    if blend == "linear":
        if before:
            weights[:before] = (np.arange(before, dtype=np.float32) + 1) / (before + 1)
        if after:
            weights[length - after :] *= (np.arange(after, dtype=np.float32)[::-1] + 1) / (after + 1)
    return weights


class Blend:
    """A weighted mean of tiles along one axis, accumulated into one array."""

    def __init__(self, axis: int, blend: Literal["linear", "uniform"]) -> None:
        self.axis, self.blend = axis, blend
        self.total: np.ndarray | None = None
        self.weight: np.ndarray | None = None

    def add(self, tile: np.ndarray, start: int, length: int, before: int, after: int) -> None:
        """Add a tile that starts at `start` of an axis of `length` and overlaps its neighbours by before and after."""
        shape = list(tile.shape)
        weights = ramp(shape[self.axis], before, after, self.blend)
        if self.total is None or self.weight is None:
            shape[self.axis] = length
            self.total = np.zeros(shape, np.float32)
            self.weight = np.zeros(length, np.float32)
        at = [slice(None)] * tile.ndim
        at[self.axis] = slice(start, start + tile.shape[self.axis])
        self.total[tuple(at)] += tile * self._broadcast(weights, tile.ndim)
        self.weight[at[self.axis]] += weights

    def result(self) -> np.ndarray:
        """Return the mean; the accumulator is used up."""
        if self.total is None or self.weight is None:
            raise ValueError("no tile was added")
        self.total /= self._broadcast(self.weight, self.total.ndim)
        return self.total

    def _broadcast(self, weights: np.ndarray, ndim: int) -> np.ndarray:
        shape = [1] * ndim
        shape[self.axis] = -1
        return weights.reshape(shape)


class Grid:
    """Equal tiles of height and width, in positions of the latent.

    Args:
        height: rows of the latent.
        width: columns of the latent.
        size: length of a tile's sides; a shorter side is one tile.
        overlap: least overlap of neighbours.
        blend: see `ramp`.
    """

    def __init__(self, height: int, width: int, size: int, overlap: int, blend: Literal["linear", "uniform"]) -> None:
        self.height, self.width, self.blend = height, width, blend
        self.rows, self.columns = even_tiles(height, size, overlap), even_tiles(width, size, overlap)

    def cut(self, x: np.ndarray, unit: int) -> Iterator[np.ndarray]:
        """Yield the tiles of x (b, c, t, h, w), which has `unit` positions per position of the latent."""
        for top, bottom, _, _ in self.rows:
            for left, right, _, _ in self.columns:
                yield x[:, :, :, top * unit : bottom * unit, left * unit : right * unit]

    def join(self, tiles: Iterator[np.ndarray], unit: int) -> np.ndarray:
        """Take one tile after the other, each with `unit` positions per position of the latent, and blend them."""
        if len(self.rows) == len(self.columns) == 1:
            return next(tiles)
        bands = Blend(3, self.blend)
        for top, _, above, below in self.rows:
            band = Blend(4, self.blend)
            for left, _, before, after in self.columns:
                band.add(next(tiles), left * unit, self.width * unit, before * unit, after * unit)
            bands.add(band.result(), top * unit, self.height * unit, above * unit, below * unit)
        return bands.result()

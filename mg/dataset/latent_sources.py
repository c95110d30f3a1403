"""Where a training run takes its latents from: a folder of them, or videos that are encoded on the way."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Float

from mg.dataset.buckets import Bucket
from mg.dataset.cuts import Cut
from mg.dataset.latents import Latent, LatentRecord, Origin, check_folder, latent_file, latent_shape, read_latent
from mg.dataset.manifest import Item
from mg.errors import BadClip

MEMORY = 2 * 10**9
"""Bytes that are kept in memory where the settings do not say otherwise."""

SCALING = (1.5305, 0.0609)
"""Scaling and shift of a folder that has no record, which the reference's folders have not."""


@dataclass(frozen=True)
class Shape:
    """What is known of an item's latent before it is read.

    Attributes:
        size: (t, h, w) of the latent.
        frames: RGB frames, 1 for a picture.
        fps: frames per second, None where that is not known.
    """

    size: tuple[int, int, int]
    frames: int
    fps: float | None


class LatentSource(Protocol):
    """Latents of a list of items.

    Attributes:
        record: what encodes them.
        online: whether asking for them runs a network, which only the main thread should do.
    """

    record: LatentRecord
    online: bool

    def shape(self, item: Item) -> Shape:
        """Return what an item's latent looks like; raises BadClip if there is none."""

    def get(self, item: Item) -> tuple[Float[np.ndarray, "c t h w"], Float[np.ndarray, "c t h w"]]:
        """Return mean and standard deviation, unscaled; raises BadClip if they cannot be had."""


def memory_limit(in_memory: bool | None) -> float:
    """Turn the option `in_memory` into bytes."""
    return MEMORY if in_memory is None else float("inf") if in_memory else 0


class LatentFolder:
    """Reads what `scripts/inference_tae.py` wrote, or a folder in the reference's format.

    Args:
        folder: of the latents.
        in_memory: keep what was read: all (True), nothing (False), or up to 2 GB (None).
        tae: fingerprint of the autoencoder they must be of, None for any.

    Raises:
        UserError: no such folder, or another autoencoder's.
    """

    online = False

    def __init__(self, folder: str | Path, in_memory: bool | None = None, tae: str | None = None) -> None:
        self._folder = Path(folder)
        self.record = check_folder(folder, tae) or LatentRecord("", *SCALING, 16, 8, 8)
        self._limit, self._used = memory_limit(in_memory), 0
        self._kept: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._lock = threading.Lock()

    def shape(self, item: Item) -> Shape:
        """See `LatentSource`; what fits into memory is read whole."""
        path = self._path(item)
        if self._used < self._limit:
            latent = self._read(path)
            shape, origin = latent.mean.shape, latent.origin
        else:
            shape, origin = latent_shape(path)
        return self._described(item, path, shape, origin)

    def get(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        """See `LatentSource`."""
        path = self._path(item)
        kept = self._kept.get(str(path))
        if kept is not None:
            return kept
        latent = self._read(path)
        return latent.mean, latent.std

    def _path(self, item: Item) -> Path:
        output, error = latent_file(item.name)
        if error:
            raise BadClip(item.path, error)
        return self._folder / output

    def _read(self, path: Path) -> Latent:
        latent = read_latent(path)
        size = latent.mean.nbytes + latent.std.nbytes
        with self._lock:
            if self._used + size > self._limit:
                self._limit = self._used  # full: from now on only the files' headers are looked at
            elif str(path) not in self._kept:
                self._kept[str(path)] = (latent.mean, latent.std)
                self._used += size
        return latent

    def _described(
        self, item: Item, path: Path, shape: tuple[int, int, int, int], origin: Origin | None
    ) -> Shape:
        record = self.record
        if shape[0] != record.channels:
            raise BadClip(path, f"has {shape[0]} channels, not {record.channels}")
        if origin is not None:
            if record.tae and origin.tae != record.tae:  # left by an --overwrite that was broken off
                raise BadClip(path, f"was encoded by the autoencoder {origin.tae}, not by {record.tae}")
            return Shape(shape[1:], origin.frames, origin.fps or None)
        frames = 1 if item.is_image else shape[1] * record.time_compression
        return Shape(shape[1:], frames, None)


class OnlineLatents:
    """Encodes videos when they are asked for, with the values that `scripts/inference_tae.py` would have stored.

    Args:
        encode: a clip uint8 (t, h, w, 3) -> mean and standard deviation (c, t, h, w), unscaled.
        record: the autoencoder behind it.
        cut: how clips are cut, which decides about their shapes.
        in_memory: keep latents that were made: all, none, or (None) up to 2 GB.
    """

    online = True

    def __init__(
        self,
        encode: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
        record: LatentRecord,
        cut: Cut,
        in_memory: bool | None = None,
    ) -> None:
        self.record = record
        self._encode, self._cut = encode, cut
        self._limit, self._used = memory_limit(in_memory), 0
        self._buckets: dict[str, Bucket] = {}
        self._kept: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def shape(self, item: Item) -> Shape:
        """See `LatentSource`; the video is decoded once."""
        bucket = self._cut.bucket(item)
        self._buckets[str(item.path)] = bucket
        time, space = self.record.time_compression, self.record.spatial_compression
        size = (-(-bucket.frames // time), -(-bucket.height // space), -(-bucket.width // space))
        return Shape(size, bucket.frames, float(self._cut.rate(item)) or None)

    def get(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        """See `LatentSource`."""
        path = str(item.path)
        if path in self._kept:
            return self._kept[path]
        mean, std = self._encode(self._cut.read(item, self._buckets[path]))
        if self._used + mean.nbytes + std.nbytes <= self._limit:
            self._kept[path] = (mean, std)
            self._used += mean.nbytes + std.nbytes
        return mean, std


def usable(items: Sequence[Item], source: LatentSource) -> tuple[dict[int, Shape], dict[int, BadClip]]:
    """Look at every item: number in the list -> shape, and number -> what is wrong."""
    good: dict[int, Shape] = {}
    bad: dict[int, BadClip] = {}
    for number, item in enumerate(items):
        try:
            good[number] = source.shape(item)
        except BadClip as error:
            bad[number] = error
    return good, bad

"""The best linear codec with the TAE's latent size, as the figure to beat.

Principal components of 8x8x8 blocks of RGB video (1536 values to 16 numbers, the TAE's compression), fitted on training
clips, measured as PSNR on test clips. A clip is cover-cropped to a square; a test clip counts with its first frames.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from mg.config import cli
from mg.errors import BadClip, NoGoodClip, UserError

BLOCK = 8
"""Edge of a block in frames, rows and columns."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of the benchmark."""

    train_csv: str
    """CSV with a column `video`: the clips the codec is fitted on (all their frames)"""
    test_csv: str
    """CSV with a column `video`: the clips that are measured"""
    video_folder: str
    """folder of the clips"""
    test_folder: str | None = None
    """folder of the test clips, if it is another one"""
    image_size: int = 128
    """height and width of the cover crop in pixels, a multiple of 8"""
    num_frames: int = 32
    """frames of each test clip, counted from its start, a multiple of 8"""
    num_components: int = 16
    """numbers per block"""
    output_path: str | None = None
    """JSON file for the figures"""

    def __post_init__(self) -> None:
        for name in ("image_size", "num_frames"):
            value = getattr(self, name)
            if value < BLOCK or value % BLOCK:
                raise UserError(f"--{name} {value}: give a positive multiple of {BLOCK}")
        if not 1 <= self.num_components <= 3 * BLOCK**3:
            raise UserError(f"--num_components {self.num_components}: give 1 to {3 * BLOCK**3}")


def to_blocks(frames: np.ndarray) -> np.ndarray:
    """uint8 frames (t, h, w, 3), sizes multiples of 8 -> float32 blocks (t*h*w / 512, 1536) in [-1, 1]."""
    t, h, w, c = frames.shape
    x = frames.reshape(t // BLOCK, BLOCK, h // BLOCK, BLOCK, w // BLOCK, BLOCK, c)
    x = x.transpose(0, 2, 4, 1, 3, 5, 6).reshape(-1, BLOCK**3 * c)
    return x.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def from_blocks(blocks: np.ndarray, shape: tuple[int, int, int, int]) -> np.ndarray:
    """The inverse of `to_blocks`: values are rounded and clipped to uint8 frames of `shape` (t, h, w, 3)."""
    t, h, w, c = shape
    x = blocks.reshape(t // BLOCK, h // BLOCK, w // BLOCK, BLOCK, BLOCK, BLOCK, c)
    x = x.transpose(0, 3, 1, 4, 2, 5, 6).reshape(shape)
    return np.clip(np.rint((x + 1.0) * 127.5), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class PcaCodec:
    """Projection onto the leading principal components: mean (d,), components (k, d) with orthonormal rows."""

    mean: np.ndarray
    components: np.ndarray

    def encode(self, blocks: np.ndarray) -> np.ndarray:
        """Blocks (n, d) -> coefficients (n, k)."""
        return (blocks - self.mean) @ self.components.T

    def decode(self, coefficients: np.ndarray) -> np.ndarray:
        """Coefficients (n, k) -> blocks (n, d)."""
        return coefficients @ self.components + self.mean

    def reconstruct(self, frames: np.ndarray) -> np.ndarray:
        """uint8 frames (t, h, w, 3) through the codec and back to uint8."""
        return from_blocks(self.decode(self.encode(to_blocks(frames))), frames.shape)


def fit(batches: Iterable[np.ndarray], num_components: int) -> PcaCodec:
    """Principal components of all rows of the batches, each (n, d); memory is that of one batch.

    Sums of products are taken around the first batch's mean, which keeps them exact enough in float64.
    Raises ValueError without a single row.
    """
    count, total, products, shift = 0, None, None, None
    for batch in batches:
        if shift is None:
            shift = batch.mean(0, dtype=np.float64)
            total, products = np.zeros_like(shift), np.zeros((shift.size, shift.size))
        centred = (batch - shift).astype(np.float32)
        count += len(batch)
        total += centred.sum(0, dtype=np.float64)
        products += centred.T @ centred
    if not count:
        raise ValueError("no blocks to fit on")
    mean = total / count
    _, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))  # eigenvalues ascend
    leading = vectors[:, ::-1][:, :num_components].T
    return PcaCodec((shift + mean).astype(np.float32), np.ascontiguousarray(leading, np.float32))


def _clips(csv_path: str, folder: str, size: int, limit: int | None) -> Iterator[tuple[str, np.ndarray]]:
    """Name and cover-cropped frames (t, size, size, 3) of every readable clip; t is a multiple of 8 up to `limit`."""
    from mg.dataset.manifest import read_manifest
    from mg.dataset.transforms import resize_cover_crop
    from mg.dataset.video import probe, read_video
    from mg.log import get_logger

    found = False
    for item in read_manifest(csv_path, folder):
        try:
            available = probe(item.path).num_frames
            t = min(available, limit or available) // BLOCK * BLOCK
            if not t:
                raise BadClip(str(item.path), f"{available} frames are fewer than a block's {BLOCK}")
            frames = read_video(item.path, range(t))
        except BadClip as error:
            get_logger().warning("skipped %s", error)
            continue
        found = True
        yield item.name, resize_cover_crop(frames, (size, size))
    if not found:
        raise NoGoodClip(f"{csv_path}: none of its clips in {folder} could be read; check the CSV and the folder")


def evaluate(codec: PcaCodec, clips: Iterable[tuple[str, np.ndarray]]) -> dict[str, float]:
    """PSNR in dB of each clip (uint8 frames), by name."""
    from mg.metrics import psnr

    return {name: psnr(frames, codec.reconstruct(frames), data_range=255.0) for name, frames in clips}


def main(argv: list[str]) -> None:
    """Fit on the training clips, measure the test clips, print and optionally write the figures."""
    settings = cli.parse(Settings, argv, prog="pca_codec.py", description=__doc__)

    from mg.files import write_json

    size = settings.image_size
    training = _clips(settings.train_csv, settings.video_folder, size, None)
    codec = fit((to_blocks(frames) for _, frames in training), settings.num_components)
    test_folder = settings.test_folder or settings.video_folder
    per_clip = evaluate(codec, _clips(settings.test_csv, test_folder, size, settings.num_frames))
    mean = float(np.mean(list(per_clip.values())))
    for name, value in per_clip.items():
        print(f"{value:6.2f} dB  {name}")
    print(f"{mean:6.2f} dB  mean of {len(per_clip)} clips at {size} px, {settings.num_components} numbers per block")
    if settings.output_path:
        write_json(settings.output_path, {"psnr": mean, "clips": per_clip, "image_size": size})


if __name__ == "__main__":
    cli.run(main)

"""Send clips through the autoencoder and back: videos, pictures and figures."""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from mg import device
from mg.config.reconstruct import ReconstructConfig
from mg.dataset.manifest import Item, read_manifest, scan_folder
from mg.dataset.transforms import resize_cover_crop, to_frames, to_tensor
from mg.dataset.video import probe, read_image, read_video, write_video
from mg.errors import BadClip, NoGoodClip, UserError
from mg.files import writable_folder, write_json, write_text
from mg.log import get_logger
from mg.metrics import psnr, ssim
from mg.models.tae import PRESETS, TemporalAutoencoder
from mg.models.tae.loading import from_checkpoint
from mg.pipelines.pictures import contact_sheet, difference, side_by_side, write_png

VALUE_RANGE = 255.0
COLUMNS = ("video", "frames", "height", "width", "fps", "psnr", "ssim", "error")


@dataclass(frozen=True)
class Clip:
    """Frames (t, h, w, 3) uint8 of one item; fps is None for a picture."""

    item: Item
    frames: np.ndarray
    fps: Fraction | None


def clips_of(config: ReconstructConfig) -> list[Item]:
    """List what a configuration names.

    Raises:
        UserError: the CSV, its column or the folder is missing, or there is nothing in it.
    """
    if config.video_path is not None:
        path = Path(config.video_path)
        if not path.is_file():
            raise UserError(f"--video_path {path}: no such file; check the path")
        return [Item(path=path, name=path.name, caption=None, row=0)]
    if config.csv_path is not None:
        return read_manifest(config.csv_path, config.video_folder or Path(config.csv_path).parent, config.video_column)
    return scan_folder(config.video_folder)


def read_clip(item: Item, num_frames: int | None, image_size: int | None) -> Clip:
    """Read the first frames of a clip, cropped to a square where asked for.

    Raises:
        BadClip: missing, unreadable, truncated or without a picture.
    """
    if not item.path.is_file():
        raise BadClip(item.path, "no such file")
    if item.is_image:
        frames, fps = read_image(item.path), None
    else:
        info = probe(item.path)
        count = info.num_frames if num_frames is None else min(num_frames, info.num_frames)
        frames, fps = read_video(item.path, range(count)), info.fps
    if image_size is not None:
        frames = resize_cover_crop(frames, (image_size, image_size))
    return Clip(item, frames, fps)


def reconstruct_frames(network: TemporalAutoencoder, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Encode and decode clips of one shape, from the latent's mean.

    Args:
        network: the autoencoder.
        frames: clips (t, h, w, 3) uint8.

    Returns:
        Reconstructions of the same shapes, uint8.
    """
    x = Tensor(np.stack([to_tensor(clip) for clip in frames]))  # (b, 3, t, h, w)
    _, mean, _ = network.encode(x)
    y = network.decode(mean, num_target_frames=x.shape[2]).asnumpy()
    return [to_frames(clip) for clip in y]


def _batches(items: Sequence[Item], config: ReconstructConfig, bad: list[dict]) -> Iterator[list[Clip]]:
    """Group neighbouring clips of one shape; a bad clip is noted and passed over."""
    group: list[Clip] = []
    for item in items:
        try:
            clip = read_clip(item, config.num_frames, config.image_size)
        except BadClip as error:
            get_logger().warning("skipped %s", error)
            bad.append({"video": item.name, "error": error.reason})
            continue
        if group and (len(group) == config.batch_size or group[0].frames.shape != clip.frames.shape):
            yield group
            group = []
        group.append(clip)
    if group:
        yield group


def _stems(items: Sequence[Item]) -> dict[int, str]:
    """One output name per row: the path without its suffix, folders joined, numbered where two would be alike."""
    stems: dict[int, str] = {}
    taken: set[str] = set()
    for item in items:
        parts = [part for part in Path(item.name).with_suffix("").parts if part not in ("/", "..", ".")]
        stem = base = "__".join(parts)
        number = 2
        while stem in taken:
            stem, number = f"{base}-{number}", number + 1
        taken.add(stem)
        stems[id(item)] = stem
    return stems


def _write(clip: Clip, result: np.ndarray, stem: Path, save_vis: bool) -> None:
    if clip.fps is None:
        write_png(stem.with_name(f"{stem.name}.png"), result[0])
    else:
        write_video(stem.with_name(f"{stem.name}.mp4"), result, clip.fps)
    if not save_vis:
        return
    if clip.fps is not None:
        write_video(stem.with_name(f"{stem.name}_compare.mp4"), side_by_side(clip.frames, result), clip.fps)
    rows = [
        ("original", clip.frames),
        ("reconstruction", result),
        ("difference x 4", difference(clip.frames, result)),
    ]
    write_png(stem.with_name(f"{stem.name}_sheet.png"), contact_sheet(rows))


def _row(clip: Clip, result: np.ndarray) -> dict:
    t, h, w, _ = clip.frames.shape
    return {
        "video": clip.item.name,
        "frames": t,
        "height": h,
        "width": w,
        "fps": round(float(clip.fps), 4) if clip.fps else None,
        "psnr": _finite(psnr(clip.frames, result, VALUE_RANGE)),
        "ssim": _finite(ssim(clip.frames, result, VALUE_RANGE)),
    }


def _finite(value: float) -> float | None:
    """JSON has no infinity: the PSNR of equal clips is null."""
    return round(value, 4) if math.isfinite(value) else None


def _mean(rows: Sequence[dict], key: str) -> float | None:
    values = [row[key] for row in rows if row[key] is not None]
    return round(float(np.mean(values)), 4) if values else None


def _write_metrics(folder: Path, config: ReconstructConfig, rows: list[dict], bad: list[dict]) -> dict:
    mean = {"psnr": _mean(rows, "psnr"), "ssim": _mean(rows, "ssim")}
    report = {"value_range": VALUE_RANGE, "mean": mean, "clips": rows, "bad": bad, "config": asdict(config)}
    write_json(folder / "metrics.json", report)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="")
    writer.writeheader()
    writer.writerows([*rows, *bad])
    write_text(folder / "metrics.csv", text.getvalue())
    return report


def reconstruct(config: ReconstructConfig) -> dict:
    """Reconstruct every clip; write the videos, pictures, `metrics.json` and `metrics.csv`.

    PSNR and SSIM compare 8-bit frames (value range 255) before the result is compressed as a video.

    Returns:
        What stands in `metrics.json`: value_range, mean, clips, bad, config.

    Raises:
        UserError: bad options, weights or output folder.
        NoGoodClip: not one clip could be read; the metrics files list the reasons.
    """
    items = clips_of(config)
    folder = writable_folder(config.output_path, "--output_path")
    device.setup(config.device, config.mode)
    network = from_checkpoint(
        config.ckpt_path,
        None if config.preset == "auto" else PRESETS[config.preset],
        sample_deterministic=True,
        use_tile=config.enable_tile,
        dtype=config.dtype,
    )
    network.set_train(False)
    rows: list[dict] = []
    bad: list[dict] = []
    stems = _stems(items)
    with tqdm(total=len(items), unit="clip", desc="reconstructing") as progress:
        for group in _batches(items, config, bad):
            results = reconstruct_frames(network, [clip.frames for clip in group])
            for clip, result in zip(group, results, strict=True):
                _write(clip, result, folder / stems[id(clip.item)], config.save_vis)
                rows.append(_row(clip, result))
            progress.update(len(rows) + len(bad) - progress.n)
        progress.update(len(items) - progress.n)
    report = _write_metrics(folder, config, rows, bad)
    if not rows:
        first = next(islice((f"{entry['video']}: {entry['error']}" for entry in bad), 1))
        raise NoGoodClip(f"none of the {len(bad)} clips could be read ({first}); see {folder / 'metrics.json'}")
    return report

"""Send clips through the autoencoder and back: videos, pictures and figures."""

import csv
import io
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from mg import device
from mg.config.reconstruct import ReconstructConfig
from mg.dataset.manifest import Item, read_manifest, scan_folder
from mg.dataset.transforms import resize_cover_crop, to_frames, to_tensor
from mg.dataset.video import probe, read_image, read_video
from mg.dataset.video_writer import write_video
from mg.errors import BadClip, NoGoodClip, UserError
from mg.files import writable_folder, write_json, write_text
from mg.log import get_logger
from mg.metrics import lpips, psnr, ssim
from mg.metrics.lpips import Distance
from mg.models.perceptual import Lpips, from_weights
from mg.models.perceptual.lpips import LEAST_SIDE
from mg.models.tae import PRESETS, TemporalAutoencoder
from mg.models.tae.loading import from_checkpoint
from mg.parallel.mesh import Mesh
from mg.pipelines.pictures import contact_sheet, difference, side_by_side, write_png
from mg.pipelines.shares import Share, in_order

VALUE_RANGE = 255.0
COLUMNS = ("video", "frames", "height", "width", "fps", "psnr", "ssim", "lpips", "value_range", "error")
ENDINGS = (".mp4", ".png", "_compare.mp4", "_sheet.png")
FASTEST = 1000
"""Frames per second that a video can be written with."""
SSIM_WINDOW = 11


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
    items = scan_folder(config.video_folder)
    folder, output = os.path.realpath(config.video_folder), os.path.realpath(config.output_path)
    if Path(folder) not in Path(output).parents:
        return items
    # The results of an earlier run are no clips, though they lie below the folder.
    items = [item for item in items if Path(output) not in Path(os.path.realpath(item.path)).parents]
    if not items:
        raise UserError(f"video_folder: {folder} holds no video outside of --output_path {output}; put clips there")
    return items


def read_clip(item: Item, num_frames: int | None, image_size: int | None) -> Clip:
    """Read the first frames of a clip, cropped to a square where asked for.

    Raises:
        BadClip: missing, unreadable, truncated or without a picture.
    """
    try:
        there = item.path.is_file()
    except OSError as error:  # a part of the path is longer than a name may be, or not ours to look into
        raise BadClip(item.path, f"cannot be read ({error.strerror})") from error
    if not there:
        raise BadClip(item.path, "no such file")
    if item.is_image:
        frames, fps = read_image(item.path), None
    else:
        info = probe(item.path)
        if info.fps > FASTEST:
            raise BadClip(item.path, f"has {float(info.fps):g} frames per second; at most {FASTEST} can be written")
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

    Raises:
        UserError: the network gives NaN or infinity.
    """
    x = Tensor(np.stack([to_tensor(clip) for clip in frames]))  # (b, 3, t, h, w)
    _, mean, _ = network.encode(x)
    y = network.decode(mean, num_target_frames=x.shape[2]).asnumpy()
    if not np.isfinite(y).all():
        raise UserError("the network gives NaN or infinity for a clip; use dtype=fp32, or other weights")
    return [to_frames(clip) for clip in y]


def _batches(
    items: Sequence[Item], config: ReconstructConfig, bad: list[tuple[int, dict]]
) -> Iterator[list[Clip]]:
    """Group neighbouring clips of one shape; a bad clip is noted and passed over."""
    group: list[Clip] = []
    for item in items:
        try:
            clip = read_clip(item, config.num_frames, config.image_size)
        except BadClip as error:
            with tqdm.external_write_mode():
                get_logger().warning("skipped %s", error)
            bad.append((item.row, {"video": _printable(item.name), "error": error.reason}))
            continue
        if group and (len(group) == config.batch_size or group[0].frames.shape != clip.frames.shape):
            yield group
            group = []
        group.append(clip)
    if group:
        yield group


def _stems(items: Sequence[Item], folder: Path) -> list[str]:
    """Name each item's outputs: its path without suffix, folders joined, numbered where a file would be taken.

    Taken are the outputs of the other items and the clips themselves: an original is never overwritten.
    """
    taken = {os.path.realpath(item.path) for item in items}
    taken |= {os.path.join(os.path.realpath(item.path.parent), item.path.name) for item in items}  # a link itself
    root, stems = os.path.realpath(folder), []
    numbers: dict[str, int] = {}  # the next to try: a name may be listed thousands of times
    for item in items:
        path = Path(item.name)
        parts = [part for part in (*path.parent.parts, path.stem) if part not in ("/", "..", ".", "")]
        # 200 bytes: the longest name of an output, with number and ending, fits into the 255 of a file system.
        base = "__".join(parts).encode("utf-8", "replace")[-200:].decode("utf-8", "ignore") or "clip"
        stem, number = base, numbers.get(base, 2)
        while taken & (files := {os.path.join(root, stem + ending) for ending in ENDINGS}):
            stem, number = f"{base}-{number}", number + 1
        numbers[base] = number
        taken |= files
        stems.append(stem)
    return stems


def _printable(name: str) -> str:
    """Write the bytes of a file name that are no UTF-8 as escapes, for terminals and JSON."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


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


def _row(clip: Clip, result: np.ndarray, distance: Distance | None = None) -> dict:
    t, h, w, _ = clip.frames.shape
    fits = min(h, w) >= SSIM_WINDOW
    row = {
        "video": _printable(clip.item.name),
        "frames": t,
        "height": h,
        "width": w,
        "fps": round(float(clip.fps), 4) if clip.fps else None,
        "psnr": _finite(psnr(clip.frames, result, VALUE_RANGE)),
        "ssim": _finite(ssim(clip.frames, result, VALUE_RANGE)) if fits else None,
    }
    if distance is not None:
        row["lpips"] = _finite(lpips(clip.frames, result, distance)) if min(h, w) >= LEAST_SIDE else None
    return row


def _finite(value: float) -> float | None:
    """JSON has no infinity: the PSNR of equal clips is null."""
    return round(value, 4) if math.isfinite(value) else None


def _mean(rows: Sequence[dict], key: str) -> float | None:
    values = [row[key] for row in rows if row[key] is not None]
    return round(float(np.mean(values)), 4) if values else None


def _report(config: ReconstructConfig, rows: list[dict], bad: list[dict]) -> dict:
    names = ("psnr", "ssim") if config.lpips_path is None else ("psnr", "ssim", "lpips")
    mean = {name: _mean(rows, name) for name in names}
    return {"value_range": VALUE_RANGE, "mean": mean, "clips": rows, "bad": bad, "config": asdict(config)}


def _write_metrics(folder: Path, report: dict) -> None:
    write_json(folder / "metrics.json", report)
    text = io.StringIO()
    columns = [name for name in COLUMNS if name != "lpips" or "lpips" in report["mean"]]
    writer = csv.DictWriter(text, columns, restval="")
    writer.writeheader()
    figures = [*report["clips"], {"video": "mean", **report["mean"]}]
    writer.writerows([*({**row, "value_range": VALUE_RANGE} for row in figures), *report["bad"]])
    write_text(folder / "metrics.csv", text.getvalue())


def reconstruct(config: ReconstructConfig) -> dict:
    """Reconstruct every clip; write the videos, pictures, `metrics.json` and `metrics.csv`.

    PSNR, SSIM and, where its weights are given, LPIPS compare 8-bit frames (value range 255) before the result is
    compressed as a video. Several processes share out the clips, or the tiles of each.

    Returns:
        What stands in `metrics.json`: value_range, mean, clips, bad, config. Of several processes, all but the one
        that leads have their own clips.

    Raises:
        UserError: bad options, weights or output folder, or degrees of parallelism that do not fit.
        NoGoodClip: not one clip could be read; the metrics files list the reasons.
    """
    items = clips_of(config)
    folder = writable_folder(config.output_path, "--output_path")
    device.setup(config.device, config.mode)
    mesh = Mesh.joined(config.parallel)
    network = _network(config)
    if mesh:
        mesh.share_tiles(network)
    share = Share(mesh, folder)
    mine = share.of(items)
    distance = _distance(config)
    rows: list[tuple[int, dict]] = []
    bad: list[tuple[int, dict]] = []
    places = {item.row: place for item, place in zip(items, enumerate(_stems(items, folder), start=1), strict=True)}
    # No bar where nobody watches (a file, a pipe): a line per clip says how far it is.
    with tqdm(total=len(mine), unit="clip", desc="reconstructing", disable=None) as progress:
        for group in _batches(mine, config, bad):
            results = reconstruct_frames(network, [clip.frames for clip in group])
            for clip, result in zip(group, results, strict=True) if share.writes else ():
                number, stem = places[clip.item.row]
                with tqdm.external_write_mode():  # an odd size is told while it is written
                    _write(clip, result, folder / stem, config.save_vis)
                rows.append((clip.item.row, _row(clip, result, distance)))
                if progress.disable:
                    get_logger().info("clip %d of %d: %s done", number, len(items), rows[-1][1]["video"])
            progress.update(len(rows) + len(bad) - progress.n)
        progress.update(len(mine) - progress.n)
    share.leave({"clips": rows, "bad": bad})
    share.wait()
    found = share.collect()
    report = _report(config, in_order(found, "clips"), in_order(found, "bad"))
    if share.leads:
        _write_metrics(folder, report)
        if not report["clips"]:
            bad = report["bad"]
            first = f"{bad[0]['video']}: {bad[0]['error']}"
            raise NoGoodClip(f"none of the {len(bad)} clips could be read ({first}); see {folder / 'metrics.json'}")
    return report


def _distance(config: ReconstructConfig) -> Lpips | None:
    if config.lpips_path is None:
        return None
    try:
        return from_weights(config.lpips_path, (0.0, VALUE_RANGE))
    except UserError as error:
        raise UserError(f"--lpips_path {error}; tools/convert_lpips.py makes such a file") from error


def _network(config: ReconstructConfig) -> TemporalAutoencoder:
    try:
        network = from_checkpoint(
            config.ckpt_path,
            None if config.preset == "auto" else PRESETS[config.preset],
            sample_deterministic=True,
            use_tile=config.enable_tile,
            dtype=config.dtype,
        )
    except UserError as error:
        raise UserError(f"--ckpt_path {error}") from error
    except (ValueError, TypeError, OSError) as error:  # metadata of another make; a name longer than names may be
        raise UserError(f"--ckpt_path {config.ckpt_path}: not usable ({error}); give a file of this project") from error
    network.set_train(False)
    return network

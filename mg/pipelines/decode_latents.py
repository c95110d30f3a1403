"""Decode a folder of latents into videos."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from mindspore import Tensor
from tqdm import tqdm

from mg.config.encode_latents import EncodeLatentsConfig
from mg.dataset.latents import LatentRecord, read_latent
from mg.dataset.transforms import to_frames
from mg.errors import BadClip, NoGoodClip, UserError
from mg.files import writable_folder, write_json
from mg.log import get_logger
from mg.models.tae import TemporalAutoencoder
from mg.pipelines.encode_latents import joined_tae, record_of, shard_of
from mg.pipelines.encode_summary import summary_path
from mg.pipelines.shares import Share, in_order
from mg.pipelines.video_outputs import write_frames

SUFFIXES = (".npy", ".npz")
_TOLD = 20


@dataclass(frozen=True)
class Stored:
    """Latents of one file, unscaled, and how much of the video they decode to is wanted."""

    path: Path
    latent: Float[np.ndarray, "c t h w"]
    frames: int
    fps: float


def read_stored(path: Path, record: LatentRecord, num_frames: int, fps: float) -> Stored:
    """Read scaled latents from .npy (t, c, h, w), or the mean from .npz as `write_latent` writes them.

    Args:
        path: the file.
        record: the autoencoder that shall decode them.
        num_frames: to keep at most.
        fps: where the file has none of its own.

    Raises:
        BadClip: missing, damaged, of another shape or autoencoder, or with NaN or infinity in it.
    """
    if path.suffix == ".npz":
        stored = read_latent(path)
        latent, origin = stored.mean, stored.origin
        if origin is not None and origin.tae != record.tae:
            raise BadClip(path, f"was encoded by the autoencoder {origin.tae}, not by {record.tae}")
    else:
        latent, origin = _read_npy(path, record), None
    if latent.shape[0] != record.channels:
        raise BadClip(path, f"has {latent.shape[0]} channels, the autoencoder has {record.channels}")
    there = latent.shape[1] * record.time_compression if origin is None else origin.frames
    return Stored(path, latent, min(num_frames, there), origin.fps or fps if origin else fps)


def _read_npy(path: Path, record: LatentRecord) -> Float[np.ndarray, "c t h w"]:
    try:
        with open(path, "rb") as file:
            scaled = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise BadClip(path, f"cannot be read ({error.strerror or error})") from error
    except (ValueError, EOFError, TypeError) as error:
        raise BadClip(path, f"damaged, or no latents ({(str(error).splitlines() or ['empty'])[0]})") from error
    if scaled.ndim != 4 or not scaled.size or scaled.dtype.kind != "f":
        raise BadClip(path, f"{scaled.dtype} {scaled.shape} are no latents (t, c, h, w)")
    if not np.isfinite(scaled).all():
        raise BadClip(path, "holds NaN or infinity")
    z = scaled.astype(np.float32) / np.float32(record.scaling_factor) + np.float32(record.shift_factor)
    return np.ascontiguousarray(z.transpose(1, 0, 2, 3))  # (t, c, h, w) -> (c, t, h, w)


def decode_latents(config: EncodeLatentsConfig, network: TemporalAutoencoder | None = None) -> dict:
    """Decode the files of the config's shard; write the videos and `summary.json`.

    Processes that are started together share out the files, or the tiles of each.

    Args:
        config: what to decode and where to.
        network: an autoencoder that is loaded; None to load that of the config, and to join other processes.

    Returns:
        What stands in the summary: rows, of which decoded and skipped, the skipped ones with reasons, the files
        written for each, and the config. Of several processes, all but the one that leads have their own files.

    Raises:
        UserError: bad options or weights, an empty folder, or one of another autoencoder, or degrees of parallelism
            that do not fit.
        NoGoodClip: not one file could be decoded; the summary lists the reasons.
    """
    source = Path(config.latent_data.folder)
    paths = list_latents(source)
    folder = writable_folder(config.output_path, "--output_path")
    found = LatentRecord.read(source)
    network, mesh = joined_tae(config, network)
    record = record_of(network)
    if found is not None and found.tae != record.tae:
        fault = f"its latents are of the autoencoder {found.tae}, not of {record.tae}"
        raise UserError(f"--latent_data.folder {source}: {fault}; give its weights as --tae.pretrained")
    share = Share(mesh, folder)
    i, n = replace(config, shard=shard_of(share, config)).part
    numbers = {path: number for number, path in enumerate(paths)}
    mine = paths[i::n]
    videos: list[tuple[int, tuple[str, list[str]]]] = []
    bad: list[tuple[int, dict]] = []
    decoded = 0
    size = min(config.dataloader.batch_size, len(mine))
    with tqdm(total=len(mine), unit="video", desc="decoding", disable=None) as progress:
        for group in _batches(mine, numbers, source, config, record, bad):
            results = decode_group(network, group, size)
            for stored, frames in zip(group, results, strict=True) if share.writes else ():
                name = stored.path.relative_to(source)
                stem = folder / name.with_suffix("")
                stem.parent.mkdir(parents=True, exist_ok=True)
                files = write_frames(stem, frames, stored.fps, config.save_format)
                videos.append((numbers[stored.path], (str(name), [str(file.relative_to(folder)) for file in files])))
            decoded += len(group)
            progress.update(decoded + len(bad) - progress.n)
        progress.update(len(mine) - progress.n)
    share.leave({"rows": len(mine), "videos": videos, "bad": bad})
    share.wait()
    found = share.collect()
    bad, videos = in_order(found, "bad"), dict(in_order(found, "videos"))
    report = {"rows": sum(part["rows"] for part, _ in found), "decoded": len(videos), "skipped": len(bad)}
    report |= {"bad": bad, "videos": videos, "config": asdict(config)}
    if share.leads:
        path = summary_path(folder, config)
        write_json(path, report)
        if bad and not videos:
            first = f"{bad[0]['latents']}: {bad[0]['error']}"
            raise NoGoodClip(f"none of the {len(bad)} files could be decoded ({first}); see {path}")
    return report


def list_latents(folder: Path) -> list[Path]:
    """List the .npy and .npz files below a folder, sorted.

    Raises:
        UserError: no such folder, nothing in it, or two files that would become one video.
    """
    if not folder.is_dir():
        raise UserError(f"--latent_data.folder {folder} is not a folder; give one with .npy or .npz files")
    paths = sorted(p for p in folder.rglob("*") if p.suffix in SUFFIXES and not p.name.startswith(".") and p.is_file())
    if not paths:
        raise UserError(f"--latent_data.folder {folder}: no .npy or .npz in it; give the folder of the latents")
    stems = Counter(path.with_suffix("") for path in paths)
    twice = next((stem for stem, count in stems.items() if count > 1), None)
    if twice is not None:
        raise UserError(f"--latent_data.folder {folder}: {twice.name} is there as .npy and as .npz; remove one")
    return paths


def decode_group(
    network: TemporalAutoencoder, group: Sequence[Stored], size: int
) -> list[UInt8[np.ndarray, "t h w 3"]]:
    """Decode latents of one shape together.

    Args:
        network: the autoencoder.
        group: up to `size` latents; a smaller group is filled up, since another batch size is compiled anew.
        size: of the batch.

    Raises:
        UserError: the network gives NaN or infinity.
    """
    padded = [*group, *[group[-1]] * (size - len(group))]
    frames = max(stored.frames for stored in group)
    x = network.decode(Tensor(np.stack([stored.latent for stored in padded])), num_target_frames=frames).asnumpy()
    if not np.isfinite(x).all():
        raise UserError("--tae: the network gives NaN or infinity; use --tae.dtype fp32, or other weights")
    return [to_frames(video[:, : stored.frames]) for video, stored in zip(x, group, strict=False)]


def _batches(
    paths: Sequence[Path],
    numbers: Mapping[Path, int],
    source: Path,
    config: EncodeLatentsConfig,
    record: LatentRecord,
    bad: list[tuple[int, dict]],
) -> Iterator[list[Stored]]:
    """Group neighbouring latents of one shape; a bad file is noted and passed over."""
    group: list[Stored] = []
    for path in paths:
        try:
            stored = read_stored(path, record, config.num_frames, config.fps)
        except BadClip as error:
            name = os.fsencode(path.relative_to(source)).decode("utf-8", "backslashreplace")
            bad.append((numbers[path], {"latents": name, "error": error.reason}))
            if len(bad) <= _TOLD:
                with tqdm.external_write_mode():
                    get_logger().warning("skipped: %s: %s", name, error.reason)
            continue
        if group and (len(group) == config.dataloader.batch_size or group[0].latent.shape != stored.latent.shape):
            yield group
            group = []
        group.append(stored)
    if group:
        yield group

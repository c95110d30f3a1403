"""Assemble data, network, objective and validation of one training run of the temporal autoencoder."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from mg import device
from mg.config import cli
from mg.config.tae_train import TaeTrainConfig
from mg.dataset.clips import ClipSource, latent_mask
from mg.dataset.manifest import Item, read_lists, read_manifest, scan_folder
from mg.dataset.mixing import log_lists
from mg.dataset.prefetch import Prefetcher
from mg.dataset.quarantine import FILE_NAME as BAD_VIDEOS
from mg.errors import UserError
from mg.files import write_text
from mg.models.tae import PRESETS, TemporalAutoencoder
from mg.models.tae.loading import metadata_of
from mg.parallel.mesh import Mesh
from mg.pipelines.reconstruct import VALUE_RANGE
from mg.pipelines.tae_objective import Objective, build_objective, lpips_for
from mg.pipelines.tae_watch import ComparisonVideos, validator
from mg.rng import stream
from mg.trainers.budget import with_budget
from mg.trainers.feed import OwnRows
from mg.trainers.loop import Trainer, records_folder

FINAL_WEIGHTS = "tae.safetensors"
CONFIG_RECORD = "config.yaml"
VIDEOS = "validation"
"""Folder, in the output folder, of the validation's videos."""


class NoisyClips:
    """Adds to batches of clips which latent frames are valid, their noise, and what else an objective draws."""

    def __init__(
        self, clips: ClipSource, network: TemporalAutoencoder, seed: int, objective: Objective | None = None
    ) -> None:
        self._clips, self._network, self._seed, self._objective = clips, network, seed, objective

    def size(self, index: int) -> int:
        """Return the number of rows of batch `index`."""
        return self._clips.size(index)

    def batch(self, index: int, rows: Sequence[int] | None = None) -> dict[str, np.ndarray | list[str]]:
        """Return the clips of batch `index`, or of some rows, with `latent_mask` (b, n) and `noise` (b, z, n, h8, w8).

        A pure function of the index: a row is the same whatever else is asked for. What an objective draws is for whole
        batches only.
        """
        batch = self._clips.batch(index, rows)
        t, h, w = batch["video"].shape[2:]
        shape = (self.size(index), self._network.config.z_channels, *self._network.latent_size(t, h, w))
        noise = stream(self._seed, "tae.noise", index).standard_normal(shape, np.float32)
        batch["latent_mask"] = latent_mask(batch["mask"], self._network.time_compress)
        batch["noise"] = noise if rows is None else noise[rows]
        if self._objective is not None:
            batch.update(self._objective.inputs(index, batch["mask"], h, w))
        return batch


def _lists(config: TaeTrainConfig) -> dict[str, list[Item]]:
    """Return the lists of clips by name; one alone has none."""
    if config.mix is not None:
        try:
            return read_lists(config.mix, config.video_folder)
        except UserError as error:
            raise UserError(f"mix: {error}") from error
    if config.csv_path is not None:
        return {"": read_manifest(config.csv_path, config.video_folder or Path(config.csv_path).parent)}
    if config.video_folder is None:
        raise UserError("--csv_path and --video_folder are both missing; name a CSV of clips or a folder")
    return {"": scan_folder(config.video_folder)}


def _network(config: TaeTrainConfig) -> TemporalAutoencoder:
    model = config.model
    channels = {} if model.z_channels is None else {"z_channels": model.z_channels}
    try:
        return TemporalAutoencoder(
            {**PRESETS[model.preset], **channels},
            pretrained=model.pretrained,
            use_recompute=model.use_recompute,
            dtype=model.dtype,
            seed=config.train.seed,
        )
    except (UserError, OSError) as error:  # OSError: a name longer than names may be
        raise UserError(f"model.pretrained: {error}") from error


def train_tae(config: TaeTrainConfig) -> dict[str, object]:
    """Train (or resume) and write `tae.safetensors` into the output folder, at the start `config.yaml`.

    Returns:
        The last figures of training and validation.

    Raises:
        UserError: missing files or folders, or a checkpoint of another run in the output folder.
    """
    device.setup(config.device, config.mode)
    mesh = Mesh.joined(config.parallel)
    records = records_folder(config.output_path, mesh)
    network = _network(config)
    if mesh:
        mesh.apply(network)
        mesh.dims.batch_rows(mesh.rank, config.data.batch_size)  # refused now, if at all
    objective = build_objective(network, config)
    placed = [name for name in ("perceptual_frames", "tubelets") if name in objective.loss.inputs]
    if mesh and placed and mesh.dims.size("batch") > 1:
        raise UserError(f"{' and '.join(placed)} are drawn by their place in the whole batch, which parallel.data and "
                        "parallel.zero divide; set loss.perceptual_frames or disc.tubelets to 0")  # fmt: skip
    source = ClipSource(
        _lists(config), config.data, weights=config.mix, bad_list=records / BAD_VIDEOS
    )
    config = replace(config, train=with_budget(config.train, config.data.batch_size, source.batches_per_epoch))
    clips = NoisyClips(source, network, config.train.seed, objective)
    if mesh:
        clips = OwnRows(clips, mesh.own)

    def batches(start: int) -> Iterator[dict]:
        # The trainer asks once it has resumed: a refused run does not replace the record of the one found there.
        write_text(records / CONFIG_RECORD, cli.dump(config))
        source.quarantine.reload()  # of the run that is resumed
        log_lists(source, start)
        return Prefetcher(clips, start, config.prefetch, config.workers, partial(log_lists, source))

    trainer = Trainer(
        network=network,
        loss=objective.loss,
        memory=objective.memory,
        opponents=objective.opponents,
        batches=batches,
        config=config.train,
        output_path=config.output_path,
        validate=_validation(config, network, records),
        fingerprint={
            "model": asdict(network.config),
            **objective.fingerprint,
            "data": config.data.of_batches,
            "clips": source.fingerprint,
        },
        mesh=mesh,
        divided=True,
    )
    figures = trainer.fit()
    trainer.export(Path(config.output_path) / FINAL_WEIGHTS, metadata_of(network.config), config.export_dtype)
    return {**figures, "steps": config.train.steps}


def _validation(
    config: TaeTrainConfig, network: TemporalAutoencoder, records: Path
) -> Callable[[int], dict[str, float]] | None:
    """Return what measures the network on the held-out clips, None without a list of them."""
    valid = config.valid
    if valid.csv_path is None:
        return None
    listed = read_manifest(valid.csv_path, valid.video_folder or config.video_folder or Path(valid.csv_path).parent)
    videos = ComparisonVideos(records / VIDEOS, valid.videos, valid.videos_every, config.train.steps)
    lpips = lpips_for(config.loss, (0.0, VALUE_RANGE))
    return validator(network, listed, valid.image_size, valid.num_frames, videos, lpips)

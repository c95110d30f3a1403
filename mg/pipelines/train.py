"""Assemble data, network, objective and validation of one training run of the transformer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from mg import device
from mg.config import cli
from mg.config.train import TrainConfig, TransformerConfig
from mg.dataset.mixing import log_lists
from mg.dataset.prefetch import Prefetcher
from mg.dataset.text_sources import knows_rates
from mg.errors import UserError
from mg.files import write_json, write_text
from mg.models.llama import PRESETS, LlamaConfig, LlamaModel, load_weights, read_config
from mg.models.llama.loading import CONFIG_FILE, WEIGHTS_FILE
from mg.models.llama.loss import FlowLoss
from mg.parallel.mesh import Mesh
from mg.pipelines.pipeline_folder import Conditioning
from mg.pipelines.train_data import (
    KeptTokens,
    TrainData,
    check_origin,
    fingerprint_of,
    latent_sizes,
    open_data,
    sample_batches,
    validation_batches,
)
from mg.pipelines.train_watch import FlowValidator, VideoSampler, decoder
from mg.trainers.budget import with_budget
from mg.trainers.feed import OwnRows
from mg.trainers.loop import Trainer, records_folder

FINAL_FOLDER = "transformer"
CONFIG_RECORD = "config.yaml"


def train(config: TrainConfig) -> dict[str, object]:
    """Train (or resume) and write the folder `transformer` into the output folder, at the start `config.yaml`.

    Returns:
        The last figures of training and validation.

    Raises:
        UserError: missing files or folders, data of other models, sizes that the network cannot take, or a checkpoint
            of another run in the output folder.
    """
    if config.train.lr_reduce_on_plateau.factor != 1 and config.valid.csv_path is None:
        raise UserError(
            "train.lr_reduce_on_plateau watches a validation: name --valid.csv_path, or set its factor to 1 (off)"
        )
    device.setup(config.device, config.mode)
    mesh = Mesh.joined(config.parallel)
    records = records_folder(config.output_path, mesh)
    data = open_data(config, records)
    config = replace(
        config, train=with_budget(config.train, config.data.batch_size, data.source.batches_per_epoch)
    )
    sizes, said = network_config(config.model, data.text_widths)
    check_origin(said, data.made_by, f"model.pretrained={config.model.pretrained}")
    check_sizes(sizes, data)
    network = _network(config, sizes)
    if mesh:
        mesh.apply(network)
    loss = FlowLoss(network, config.loss.sigma_min, config.loss.token_drop > 0)
    trainer = Trainer(
        network=network,
        loss=loss,
        batches=_batches(config, sizes, data, records, mesh),
        config=config.train,
        output_path=config.output_path,
        validate=_validator(config, network, data, records),
        fingerprint={"model": sizes.to_dict(), "loss": asdict(config.loss), "data": fingerprint_of(data)},
        mesh=mesh,
        divided=True,
    )
    figures = trainer.fit()
    folder = Path(config.output_path) / FINAL_FOLDER
    trainer.export(folder / WEIGHTS_FILE, {"format": "mg"}, config.export_dtype)
    if mesh is None or mesh.leads:
        write_json(folder / CONFIG_FILE, {**sizes.to_dict(), **conditioning(config, data).to_dict()})
    return {**figures, "steps": config.train.steps}


def network_config(model: TransformerConfig, text_widths: Mapping[str, int]) -> tuple[LlamaConfig, dict[str, Any]]:
    """Return the sizes of the network and what else the folder it starts from says of itself.

    Args:
        model: preset or folder, and what replaces its sizes.
        text_widths: size of the embeddings by encoder.

    Raises:
        UserError: a folder without configuration, one trained on other text encoders, or sizes that do not go together.
    """
    widths = tuple(text_widths.items())
    base, said = (PRESETS[model.preset] if model.preset else None), {}
    folder = None if model.pretrained is None else Path(model.pretrained)
    try:
        if folder is not None and folder.is_dir():
            stored, said = read_config(folder)
            base = base or stored
            if stored.text_widths != widths:
                raise UserError(
                    f"{folder} was trained on the text encoders {_listed(stored.text_widths)}, the data are of "
                    f"{_listed(widths)}; encode the captions with its encoders"
                )
    except (UserError, OSError) as error:  # OSError: a name longer than names may be
        raise UserError(f"model.pretrained: {error}") from error
    if base is None:
        raise UserError(f"model.pretrained: {folder} is no folder with {CONFIG_FILE}; give one, or --model.preset")
    changes = {name: value for name in model.SIZES if (value := getattr(model, name)) is not None}
    try:
        return replace(base, text_widths=widths, **changes), said
    except UserError as error:
        raise UserError(f"model.{error}") from error


def _listed(widths: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{kind} ({width})" for kind, width in widths)


def check_sizes(sizes: LlamaConfig, data: TrainData) -> None:
    """Refuse videos that the network cannot take, before anything is compiled.

    Raises:
        UserError: latents of another number of channels, not a multiple of the patch or beyond the position tables.
    """
    for source in filter(None, (data.source, data.valid)):
        channels = source.latents.record.channels
        if channels != sizes.in_channels:
            raise UserError(f"model: in_channels={sizes.in_channels}, the latents have {channels}; choose other sizes")
        for bucket, size in latent_sizes(source).items():
            try:
                sizes.tokens(*size)
            except UserError as error:
                raise UserError(f"model.max_length={list(sizes.max_length)}: videos of {bucket}: {error}") from error


def conditioning(config: TrainConfig, data: TrainData) -> Conditioning:
    """Return what the trained network knows of texts, for those who use it."""
    settings, source = config.data, data.source
    return Conditioning(
        text_lengths={kind: getattr(settings.text_lengths, kind) for kind in source.texts},
        fps=knows_rates(source.texts, settings.fps),
        unconditional=settings.dropout.all > 0,
        null_text="empty" if all(source.null_prompts.values()) else "zeros",
        attend_padding=settings.attend_padding,
        trained_with=data.made_by,
    )


def _network(config: TrainConfig, sizes: LlamaConfig) -> LlamaModel:
    model = config.model
    network = LlamaModel(
        sizes,
        dtype=model.dtype,
        recompute_every_nth_block=model.recompute_every_nth_block,
        seed=config.train.seed,
    )
    if model.pretrained is not None:
        try:
            load_weights(network, model.pretrained)
        except (UserError, OSError) as error:
            raise UserError(f"model.pretrained: {error}") from error
    return network


def _batches(
    config: TrainConfig, sizes: LlamaConfig, data: TrainData, records: Path, mesh: Mesh | None
) -> Callable[[int], Iterator[dict]]:
    source = data.source
    if config.loss.token_drop:
        source = KeptTokens(source, sizes, config.loss.token_drop, config.data.seed)
    if mesh:
        source = OwnRows(source, mesh.own)

    def batches(start: int) -> Iterator[dict]:
        # The trainer asks once it has resumed: a refused run does not replace the records of the one found there.
        write_text(records / CONFIG_RECORD, cli.dump(config))
        data.source.quarantine.reload()  # of the run that is resumed
        if mesh is None or mesh.leads:
            data.write_plans(Path(config.output_path))
        log_lists(data.source, start)
        workers = 0 if data.source.online else config.workers  # networks run in the main thread only
        return Prefetcher(source, start, config.prefetch, workers, partial(log_lists, data.source))

    return batches


def _validator(
    config: TrainConfig, network: LlamaModel, data: TrainData, records: Path
) -> Callable[[int], dict[str, float]] | None:
    """Return what the trainer calls: the validation loss, and samples where they are due."""
    valid, sample = config.valid, config.sample
    measure = draw = None
    if data.valid is not None:
        batches = validation_batches(data.valid, valid.batch_size or config.data.batch_size, valid.max_items)
        # Without token dropout, whatever the training does.
        measure = FlowValidator(FlowLoss(network, config.loss.sigma_min), batches, valid.sampling_steps)
    if sample.every:
        batch, empty, captions, frames = sample_batches(data, sample.count)
        decode = None if data.tae is None else decoder(data.tae, frames)
        guided = empty if sample.guidance_scale != 1 else None
        draw = VideoSampler(network, sample, batch, guided, captions, decode, records / "samples")
    if measure is None and draw is None:
        return None

    def validate(step: int) -> dict[str, float]:
        if draw is not None and (step % sample.every == 0 or step == config.train.steps):
            draw(step)
        return {} if measure is None else measure(step)

    return validate

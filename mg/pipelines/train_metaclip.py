"""Assemble captions, teacher, student and validation of one fine-tuning of a CLIP text encoder for long captions."""

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from mg import device
from mg.config import cli
from mg.config.metaclip_train import MetaclipTrainConfig
from mg.dataset.long_captions import (
    CaptionRows,
    LongCaptionBatches,
    hold_back,
    joined,
    pieces,
    read_captions,
    read_image_embeddings,
    shortened,
    unit_rows,
)
from mg.dataset.manifest import Item
from mg.errors import UserError
from mg.files import write_text
from mg.models.text_encoders.config import read_config
from mg.models.text_encoders.encoder import MAX_BATCH, TextEncoder
from mg.models.text_encoders.long_clip import (
    DEFAULT_LOGIT_SCALE,
    LongClipLoss,
    choose_trained,
    join_positions,
)
from mg.models.text_encoders.processor import Processor
from mg.trainers.budget import with_budget
from mg.trainers.loop import Trainer
from mg.weights import load_into, open_weights, read_weights

FINAL_FOLDER = "encoder"
CONFIG_RECORD = "config.yaml"


class Teacher:
    """The encoder at its own length, which says where the embeddings of captions should be.

    Args:
        encoder: a CLIP with projection.
        max_length: tokens that the student reads of a caption.

    Raises:
        UserError: the encoder has no projection.
    """

    def __init__(self, encoder: TextEncoder, max_length: int) -> None:
        if not encoder.tower.projection:
            raise UserError(
                "pretrained: the encoder has no text_projection.weight, so whole captions have no embedding; give the "
                "whole CLIP or a CLIPTextModelWithProjection"
            )
        self.encoder, self.length = encoder, encoder.max_length
        self.pad: int = encoder.processor.tokenizer.pad_token_id
        options = replace(encoder.processor.config, max_length=max_length)
        self._tokenize = Processor(encoder.processor.tokenizer, options)

    def rows(self, texts: Sequence[str], short: bool = False) -> CaptionRows:
        """Tokenize captions as the student will, with their targets: the mean direction of their pieces.

        A caption of one piece has its own embedding for a target.

        Args:
            texts: captions, at least one.
            short: cut them to what the teacher reads at once.
        """
        tokens, mask = self._tokenize(texts)
        if short:
            tokens, mask = shortened(tokens, mask, self.length, self.pad)
        parts, part_mask, owners = pieces(tokens, mask, self.length, self.pad)
        units = unit_rows(embed(self.encoder, parts, part_mask, "teacher"))
        target = np.zeros((len(tokens), units.shape[1]), np.float32)
        np.add.at(target, owners, units)
        return CaptionRows(tokens, mask, unit_rows(target))

    def are_long(self, texts: Sequence[str]) -> list[str]:
        """Return the captions that the teacher cannot read at once."""
        if not texts:
            return []
        _, mask = self._tokenize(texts)
        return [text for text, tokens in zip(texts, mask.sum(1), strict=True) if tokens > self.length]


def embed(
    encoder: TextEncoder, tokens: Int[np.ndarray, "b n"], mask: Bool[np.ndarray, "b n"], note: str | None = None
) -> Float[np.ndarray, "b p"]:
    """Embed whole captions in batches of one size, so that one graph is compiled; with a note, show progress."""
    parts = []
    for start in tqdm(range(0, len(tokens), MAX_BATCH), desc=note, disable=None if note else True, leave=False):
        rows = np.minimum(np.arange(start, start + MAX_BATCH), len(tokens) - 1)
        parts.append(encoder.pooled(tokens[rows], mask[rows]))
    return np.concatenate(parts)[: len(tokens)]


@dataclass(frozen=True)
class _Captions:
    """What the teacher has prepared: rows to train on, rows to validate on by the name of their figure."""

    long: CaptionRows
    short: CaptionRows
    valid: dict[str, CaptionRows]


def _read(config: MetaclipTrainConfig) -> tuple[list[Item], list[Item]]:
    """Read the lists: captions to train on and captions to validate on."""
    items = read_captions(config.data.csv_path, videos=config.loss.objective == "contrastive")
    if config.valid.csv_path is None:
        return hold_back(items, config.valid.share, config.data.seed)
    try:
        return items, read_captions(config.valid.csv_path, videos=False)
    except UserError as error:
        raise UserError(f"valid.{error}") from error


def _long_texts(texts: Sequence[str], teacher: Teacher, config: MetaclipTrainConfig) -> list[str]:
    """Return the long captions of a list, or those that are made of it."""
    data = config.data
    if data.join_captions > 1 and texts:
        texts = joined(texts, data.join_captions, data.joined_count, data.seed)
    return teacher.are_long(texts)


def _pictured(items: Sequence[Item], teacher: Teacher, config: MetaclipTrainConfig) -> CaptionRows:
    """Tokenize captions, with their pictures' embeddings for targets."""
    names = [item.name for item in items]
    rows = teacher.rows([item.caption for item in items])
    target = read_image_embeddings(config.data.image_embeddings, names, rows.target.shape[1])
    groups: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        groups.setdefault(name, []).append(row)
    if len(groups) < config.data.batch_size:
        raise UserError(
            f"data.batch_size={config.data.batch_size}: each caption of a batch needs a picture of its own, and there "
            f"are {len(groups)} to train on; choose at most that"
        )
    return replace(rows, target=target, groups=list(groups.values()))


def _prepare(
    teacher: Teacher, items: Sequence[Item], held: Sequence[Item], config: MetaclipTrainConfig
) -> _Captions:
    texts, held_texts = [item.caption for item in items], [item.caption for item in held]
    if config.loss.objective == "contrastive":
        long = _pictured(items, teacher, config)
    else:
        found = _long_texts(texts, teacher, config)
        if not found:
            raise UserError(
                f"data.csv_path: {config.data.csv_path} gives no caption of more than {teacher.length} tokens; "
                "list longer ones, or join more with --data.join_captions"
            )
        long = teacher.rows(found)
    valid = {}
    if held_texts:
        valid["cos_short"] = teacher.rows(held_texts, short=True)
        if held_long := _long_texts(held_texts, teacher, config):
            valid["cos_long"] = teacher.rows(held_long)
    return _Captions(long, teacher.rows(texts, short=True), valid)


def validator(student: TextEncoder, valid: dict[str, CaptionRows]) -> Callable[[int], dict[str, float]]:
    """Return a function that gives the mean cosine between the student's embeddings and the targets, by name."""

    def validate(step: int) -> dict[str, float]:
        student.tower.set_train(False)
        figures = {}
        for name, rows in valid.items():
            found = unit_rows(embed(student, rows.tokens, rows.mask))
            figures[name] = float((found * rows.target).sum(1).mean())
        return figures

    return validate


def logit_scale(folder: Path) -> float:
    """Return the factor of the cosines that a CLIP was trained with, or `DEFAULT_LOGIT_SCALE`."""
    names = ("model.safetensors.index.json", "model.safetensors")
    path = next((folder / name for name in names if (folder / name).is_file()), folder)
    weights = open_weights(path)
    return math.exp(float(weights["logit_scale"])) if "logit_scale" in weights else DEFAULT_LOGIT_SCALE


def _own_length(config: MetaclipTrainConfig) -> int:
    stored = read_config(Path(config.pretrained), "metaclip").positions
    if stored >= config.max_length:
        raise UserError(
            f"max_length={config.max_length}: {config.pretrained} reads {stored} tokens already; choose more than that"
        )
    return stored


def _save(student: TextEncoder, trainer: Trainer, folder: Path, dtype: str) -> None:
    """Write the encoder, with averaged weights where there are averages."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        path = Path(temporary) / "weights.safetensors"
        trainer.export(path)
        load_into(student.tower.model, read_weights(path), path=path)
    join_positions(student.tower)
    TextEncoder(student.config, student.processor, student.tower, dtype).save_pretrained(folder / FINAL_FOLDER)


def train_metaclip(config: MetaclipTrainConfig) -> dict[str, object]:
    """Fine-tune (or resume), write the encoder into the output folder's `encoder`, at the start `config.yaml`.

    Returns:
        The last figures of training and validation, those of validation also as they were `before` the training.

    Raises:
        UserError: bad lists, encoder or pictures, or a checkpoint of another run in the output folder.
    """
    with_budget(config.train, None, None)  # refuses lengths in samples: long and short captions have rows of their own
    items, held = _read(config)  # mistakes in the lists are told before anything is loaded
    device.setup(config.device, config.mode)
    folder, output = Path(config.pretrained), Path(config.output_path)
    own = _own_length(config)
    options = {"kind": "metaclip", "text": "all"}
    teacher = Teacher(TextEncoder.from_pretrained(folder, max_length=own, **options), config.max_length)
    captions = _prepare(teacher, items, held, config)
    mark, scale = teacher.encoder.fingerprint, logit_scale(folder)
    del teacher  # its weights: the student has as many
    student = TextEncoder.from_pretrained(folder, max_length=config.max_length, **options)
    choose_trained(student.tower, config.trainable, own if config.keeps_old_positions else 0)
    long_rows, short_rows = config.data.batch_size, config.short_rows
    loss = LongClipLoss(student.tower, long_rows, short_rows, **asdict(config.loss), logit_scale=scale)
    source = LongCaptionBatches(captions.long, captions.short, long_rows, short_rows, config.train.seed)

    def batches(start: int) -> Iterator[dict[str, np.ndarray]]:
        # The trainer asks once it has resumed: a refused run does not replace the record of the one found there.
        write_text(output / CONFIG_RECORD, cli.dump(config))
        return (source.batch(index) for index in count(start))

    validate = validator(student, captions.valid) if captions.valid else None
    trainer = Trainer(
        network=student.tower.model,
        loss=loss,
        batches=batches,
        config=config.train,
        output_path=output,
        validate=validate,
        fingerprint={
            "teacher": mark,
            "max_length": config.max_length,
            "trainable": config.trainable,
            "freeze_old_positions": config.keeps_old_positions,
            "loss": asdict(config.loss),
            "rows": {"long": long_rows, "short": short_rows},
            "captions": _digest(captions),
        },
    )
    before = {f"{name}_before": value for name, value in validate(0).items()} if validate else {}
    figures = trainer.fit()
    _save(student, trainer, output, config.export_dtype)
    return {**figures, **before}


def _digest(captions: _Captions) -> str:
    """16 hex digits over everything that is trained on; targets are not bit-equal on every machine, tokens are."""
    digest = hashlib.sha256()
    for rows in (captions.long, captions.short):
        digest.update(rows.tokens.tobytes() + rows.mask.tobytes() + repr(rows.groups).encode())
    return digest.hexdigest()[:16]

"""The folder of a text-to-video pipeline, laid out as on the Hub: read its parts, check that they belong together."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mg import __version__
from mg.errors import UserError
from mg.files import writable_folder, write_json
from mg.models.llama import LlamaModel
from mg.models.llama.loading import CONFIG_FILE, WEIGHTS_FILE, load_weights, read_config
from mg.models.tae import TemporalAutoencoder
from mg.models.tae.loading import metadata_of
from mg.models.text_encoders.config import KINDS, LENGTHS
from mg.models.text_encoders.encoder import TextEncoder
from mg.schedulers import grids, solvers
from mg.weights import write_weights

INDEX = "model_index.json"
CLASS = "TextToVideoPipeline"
SCHEDULER_FILE = "scheduler_config.json"
_CLASSES = {
    "transformer": ["mg.models.llama", "LlamaModel"],
    "tae": ["mg.models.tae", "TemporalAutoencoder"],
    "scheduler": ["mg.schedulers", "FlowMatching"],
}
_ENCODER = "text_encoder_"
_REMEDY = "fetch or write the whole folder again"


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What a transformer was trained to be told; stands in its config.json beside its sizes.

    Attributes:
        text_lengths: tokens per encoder.
        fps: the frame rate stands in front of the prompts of videos ("FPS-16 ...").
        unconditional: prompts were dropped in training, so there is something to guide away from.
        null_text: what a dropped prompt became: the "empty" prompt's embeddings, or "zeros" with nothing to attend to.
        attend_padding: padding is attended to, as in the reference.
        ones: encoders that were replaced by ones, as MetaCLIP in the reference.
        trained_with: fingerprints of the autoencoder ("tae") and the text encoders, by name; those known.
    """

    text_lengths: dict[str, int] = field(default_factory=lambda: dict(LENGTHS))
    fps: bool = False
    unconditional: bool = True
    null_text: Literal["empty", "zeros"] = "empty"
    attend_padding: bool = False
    ones: tuple[str, ...] = ()
    trained_with: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check types and ranges."""
        for kind, length in self.text_lengths.items():
            if kind not in KINDS or type(length) is not int or length < 1:
                raise UserError(f"text_lengths: {kind}: {length!r}: give at least 1 for {', '.join(KINDS)}")
        for name in ("fps", "unconditional", "attend_padding"):
            if type(getattr(self, name)) is not bool:
                raise UserError(f"{name}={getattr(self, name)!r}: give true or false")
        if self.null_text not in ("empty", "zeros"):
            raise UserError(f"null_text={self.null_text!r}: give empty or zeros")
        if unknown := [kind for kind in self.ones if kind not in KINDS]:
            raise UserError(f"ones: {unknown[0]!r}: give some of {', '.join(KINDS)}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], kinds: Iterable[str]) -> "Conditioning":
        """Read what stands in a transformer's config.json beside its sizes; entries with an underscore are passed over.

        Raises:
            UserError: an unknown key, or a value out of range.
        """
        given = _known(cls, values)
        if "ones" in given:
            given["ones"] = tuple(given["ones"])
        given["text_lengths"] = {**{kind: LENGTHS[kind] for kind in kinds}, **given.get("text_lengths", {})}
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON can hold them."""
        return {**asdict(self), "ones": list(self.ones)}


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """How a pipeline samples unless it is told otherwise; raises UserError for values out of range.

    Attributes:
        sigma_min: noise left at the data's end of the training path.
        sample_method: spacing of the steps.
        solver: "euler" or "midpoint".
        num_inference_steps: steps.
        guidance_scale: None is 7.5, or 1 for a transformer without an unconditional prediction.
    """

    sigma_min: float = 1e-5
    sample_method: Literal["linear", "linear-quadratic", "linear-quadratic-smooth"] = "linear-quadratic"
    solver: Literal["euler", "midpoint"] = "euler"
    num_inference_steps: int = 50
    guidance_scale: float | None = None

    def __post_init__(self) -> None:
        """Check types and ranges."""
        if not _is_number(self.sigma_min) or not 0 <= self.sigma_min < 1:
            raise UserError(f"sigma_min={self.sigma_min!r}: give a number in [0, 1)")
        if self.sample_method not in tuple(grids.KINDS):
            raise UserError(f"sample_method={self.sample_method!r}: choose {', '.join(grids.KINDS)}")
        if self.solver not in tuple(solvers.SOLVERS):
            raise UserError(f"solver={self.solver!r}: choose {', '.join(solvers.SOLVERS)}")
        if type(self.num_inference_steps) is not int or self.num_inference_steps < 1:
            raise UserError(f"num_inference_steps={self.num_inference_steps!r}: give at least 1")
        if self.guidance_scale is not None and not (_is_number(self.guidance_scale) and self.guidance_scale >= 0):
            raise UserError(f"guidance_scale={self.guidance_scale!r}: give a number of at least 0, or null")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SchedulerConfig":
        """Read what stands in scheduler_config.json; entries with an underscore are passed over."""
        return cls(**_known(cls, values))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _known(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    names = [field.name for field in fields(cls)]
    given = {key: value for key, value in values.items() if not key.startswith("_")}
    if unknown := sorted(set(given) - set(names)):
        raise UserError(f"unknown key {unknown[0]}; known are {', '.join(names)}")
    return given


@dataclass(frozen=True)
class Parts:
    """What a pipeline is made of; `text_encoders` by kind, any of them."""

    transformer: LlamaModel
    conditioning: Conditioning
    tae: TemporalAutoencoder | None = None
    text_encoders: dict[str, TextEncoder] = field(default_factory=dict)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)


def read_parts(
    folder: str | Path,
    *,
    dtype: str = "fp32",
    tae_dtype: str | None = None,
    use_tile: bool = False,
    text_encoders: bool = True,
    max_length: tuple[int, int, int] | None = None,
) -> Parts:
    """Load a pipeline folder; everything that can be missing is looked for before anything is loaded.

    Args:
        folder: with model_index.json.
        dtype: of the transformer's activations.
        tae_dtype: of the autoencoder's; None for the same.
        use_tile: let the autoencoder decode in tiles.
        text_encoders: False leaves them out, for embeddings that are there already.
        max_length: see `read_transformer`.

    Raises:
        UserError: a part or a file is missing, damaged or does not fit the others.
    """
    folder = Path(folder)
    index = _index(folder)
    kinds = [name.removeprefix(_ENCODER) for name in index if name.startswith(_ENCODER)] if text_encoders else []
    for part in ("transformer", "tae", "scheduler", *(_ENCODER + kind for kind in kinds)):
        _check_part(folder, part)
    network, conditioning = read_transformer(folder / "transformer", dtype, max_length)
    scheduler = _parsed(SchedulerConfig.from_dict, folder / "scheduler" / SCHEDULER_FILE)
    tae = read_tae(folder / "tae", tae_dtype or dtype, use_tile)
    types = index.get("_text_dtypes", {})
    encoders = {
        kind: TextEncoder.from_pretrained(folder / f"{_ENCODER}{kind}", kind=kind, dtype=types.get(kind, "fp32"))
        for kind in kinds
        if kind in network.kinds
    }
    return Parts(network, conditioning, tae, encoders, scheduler)


def _index(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"pipeline {folder}: there is no such folder; check the path")
    if not (folder / INDEX).is_file():
        raise UserError(f"pipeline {folder}: {INDEX} is missing; give a pipeline folder, or {_REMEDY}")
    index = read_json(folder / INDEX)
    if index.get("_class_name") != CLASS:
        raise UserError(f"{folder / INDEX}: a {index.get('_class_name')}, not a {CLASS}; give another folder")
    return index


def _check_part(folder: Path, part: str) -> None:
    network = (CONFIG_FILE, WEIGHTS_FILE)
    files = {"scheduler": (SCHEDULER_FILE,), "transformer": network, "tae": network}
    for name in files.get(part, (CONFIG_FILE,)):
        path = folder / part / name
        if not path.is_file() and not (name == WEIGHTS_FILE and path.with_name(f"{name}.index.json").is_file()):
            raise UserError(f"pipeline {folder}: the part {part} lacks {part}/{name}; {_REMEDY}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: the file is missing, or something else.
    """
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); {_REMEDY}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object; {_REMEDY}")
    return values


def _parsed(read: Any, path: Path) -> Any:
    try:
        return read(read_json(path))
    except (UserError, TypeError, ValueError) as error:
        text = str(error)
        raise UserError(text if text.startswith(str(path)) else f"{path}: {text}") from error


def read_transformer(
    folder: Path, dtype: str = "fp32", max_length: tuple[int, int, int] | None = None
) -> tuple[LlamaModel, Conditioning]:
    """Load a folder `transformer` and what it was trained to be told.

    Args:
        folder: with config.json and weights, whole or in shards.
        dtype: of the activations.
        max_length: lengths of the position tables, to which the stored ones are interpolated; None for theirs.

    Raises:
        UserError: files missing or damaged, or NaN in them.
    """
    config, rest = read_config(folder)
    conditioning = _parsed(lambda _: Conditioning.from_dict(rest, config.kinds), folder / CONFIG_FILE)
    if max_length is not None:
        config = type(config).from_dict({**config.to_dict(), "max_length": max_length})
    network = LlamaModel(config, dtype=dtype)
    load_weights(network, _weights(folder))
    network.set_train(False)
    return network, conditioning


def read_tae(folder: Path, dtype: str = "fp32", use_tile: bool = False) -> TemporalAutoencoder:
    """Load a folder `tae`.

    Raises:
        UserError: files missing or damaged, or NaN in them.
    """
    config = {key: value for key, value in read_json(folder / CONFIG_FILE).items() if not key.startswith("_")}
    options = {"sample_deterministic": True, "use_tile": use_tile, "dtype": dtype}
    try:
        tae = TemporalAutoencoder(config, pretrained=str(_weights(folder)), **options)
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder / CONFIG_FILE}: {error}") from error
    tae.set_train(False)
    return tae


def _weights(folder: Path) -> Path:
    index = folder / f"{WEIGHTS_FILE}.index.json"
    return index if index.is_file() else folder / WEIGHTS_FILE


def write_parts(folder: str | Path, parts: Parts, dtype: Literal["fp32", "fp16", "bf16"] = "fp32") -> None:
    """Write a pipeline folder; until it is complete, it has no model_index.json and is refused.

    Args:
        folder: is created.
        parts: all of them; an autoencoder must be there.
        dtype: of the transformer's weights. Those of the autoencoder are stored in FP16 where that loses nothing, so
            that its fingerprint stays; text encoders in their own type.

    Raises:
        UserError: the folder cannot be written.
    """
    if parts.tae is None:
        raise UserError("a pipeline without an autoencoder cannot be saved; load one")
    folder = writable_folder(folder, "folder")
    (folder / INDEX).unlink(missing_ok=True)
    network, tae = parts.transformer, parts.tae
    write_json(folder / "transformer" / CONFIG_FILE, {**network.config.to_dict(), **parts.conditioning.to_dict()})
    write_weights(folder / "transformer" / WEIGHTS_FILE, _tensors(network), {"format": "mg"}, dtype=dtype)
    tensors = _tensors(tae)
    exact = all(np.array_equal(value, value.astype(np.float16)) for value in tensors.values())
    write_json(folder / "tae" / CONFIG_FILE, asdict(tae.config))
    write_weights(
        folder / "tae" / WEIGHTS_FILE, tensors, metadata_of(tae.config), dtype="fp16" if exact else "fp32"
    )
    for kind, encoder in parts.text_encoders.items():
        encoder.save_pretrained(folder / f"{_ENCODER}{kind}")
    write_json(folder / "scheduler" / SCHEDULER_FILE, asdict(parts.scheduler))
    encoders = {f"{_ENCODER}{kind}": ["mg.models.text_encoders", "TextEncoder"] for kind in parts.text_encoders}
    types = {kind: encoder.dtype for kind, encoder in parts.text_encoders.items()}
    index = {"_class_name": CLASS, "_mg_version": __version__, "_text_dtypes": types, **_CLASSES, **encoders}
    write_json(folder / INDEX, index)


def _tensors(network: Any) -> dict[str, np.ndarray]:
    return {name: param.float().asnumpy() for name, param in network.parameters_and_names()}

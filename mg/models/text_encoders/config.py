"""Which text encoder a folder holds, and its sizes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mg.errors import UserError

Kind = Literal["ul2", "metaclip", "byt5"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""The encoders in the order in which their tokens are joined."""

WIDTHS = {"ul2": 4096, "metaclip": 1280, "byt5": 1472}
"""Size of an embedding at full size, by encoder."""

LENGTHS = {"ul2": 512, "metaclip": 256, "byt5": 128}
"""Tokens that a prompt may have, by encoder (Movie Gen, section 3.1.4)."""


@dataclass(frozen=True)
class TowerConfig:
    """A text tower as its Hugging Face configuration describes it.

    Attributes:
        kind: which of the three encoders.
        width: size of an embedding.
        layers: number of blocks.
        positions: rows of the position table; None for relative positions, which have no end.
        values: the configuration of the tower, Hugging Face's keys.
    """

    kind: Kind
    width: int
    layers: int
    positions: int | None
    values: dict[str, Any]


def read_config(folder: Path, kind: Kind | None = None) -> TowerConfig:
    """Read a folder's config.json, of a T5 (UL2, ByT5) or a CLIP, whole or its text tower alone.

    Args:
        folder: a Hugging Face folder.
        kind: None to tell by the configuration; a T5 whose tokenizer is ByT5's is "byt5", another T5 "ul2".

    Raises:
        UserError: no such folder or file, damaged, another kind of model, or sizes that are no sizes.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give a Hugging Face folder with config.json and weights")
    path = folder / "config.json"
    values = read_json(path, "give a Hugging Face folder with config.json and weights")
    model = values.get("model_type")
    if model not in ("t5", "clip", "clip_text_model"):
        raise UserError(f"{path}: model_type is {model!r}; the text encoders are t5 (UL2, ByT5) and clip (MetaCLIP)")
    found = "metaclip" if model != "t5" else "byt5" if _is_byt5(folder, values) else "ul2"
    if kind is not None and (kind == "metaclip") != (found == "metaclip"):
        raise UserError(f"{path}: kind={kind} does not fit model_type {model!r}; choose {found}")
    return describe(kind or found, _text_part(values) if found == "metaclip" else values, path)


def describe(kind: Kind, values: dict[str, Any], path: Path) -> TowerConfig:
    """Take the sizes out of a tower's configuration.

    Raises:
        UserError: one is missing or not a positive number.
    """
    names = ("hidden_size", "num_hidden_layers") if kind == "metaclip" else ("d_model", "num_layers")
    # Configurations leave out what equals CLIP's or T5's defaults, which are these.
    defaults = {"hidden_size": 512, "num_hidden_layers": 12, "d_model": 512, "num_layers": 6}
    sizes = [values.get(name, defaults[name]) for name in names]
    positions = values.get("max_position_embeddings", 77) if kind == "metaclip" else None
    for name, size in zip((*names, "max_position_embeddings"), (*sizes, positions or 1), strict=True):
        if not isinstance(size, int) or size < 1:
            raise UserError(f"{path}: {name} is {size!r}; it must be a positive number, fetch the file again")
    return TowerConfig(kind, sizes[0], sizes[1], positions, values)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        UserError: missing or damaged; the message names the file and ends in the remedy.
    """
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file; {remedy}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())}); {remedy}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: not an object of options; {remedy}")
    return values


def _is_byt5(folder: Path, values: dict[str, Any]) -> bool:
    if "tokenizer_class" in values:
        return values["tokenizer_class"] == "ByT5Tokenizer"
    path = folder / "tokenizer_config.json"
    return path.is_file() and read_json(path, "fetch it again").get("tokenizer_class") == "ByT5Tokenizer"


def _text_part(values: dict[str, Any]) -> dict[str, Any]:
    """Return the text tower's part of a CLIP configuration."""
    if values["model_type"] == "clip_text_model":
        return values
    part = dict(values.get("text_config") or {})
    part.update(values.get("text_config_dict") or {})  # the older place, which wins in Hugging Face's reading
    part.setdefault("projection_dim", values.get("projection_dim", 512))
    return {**part, "model_type": "clip_text_model"}

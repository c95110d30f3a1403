"""Build the autoencoder that a weights file belongs to."""

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mg.errors import UserError
from mg.models.tae.adapter import DEAD_TENSORS, PREFIXES, parameter_shapes
from mg.models.tae.config import PRESETS, TaeConfig
from mg.models.tae.network import TemporalAutoencoder
from mg.weights import read_metadata, read_weights

METADATA_KEY = "mg.tae_config"
"""Key under which weights written by this project carry their configuration, as JSON."""


def metadata_of(config: TaeConfig) -> dict[str, str]:
    """Metadata to store with weights, so that `config_of` finds their configuration."""
    return {METADATA_KEY: json.dumps({key: getattr(config, key) for key in config.__dataclass_fields__})}


def config_of(path: str) -> dict[str, Any]:
    """Find the configuration of a weights file: from its metadata, else from names and shapes.

    Without metadata, a file with the reference's unused tensors is taken for one of the reference's (zero padding in
    the temporal upsampler), any other for one with our defaults.

    Raises:
        UserError: unreadable, or not the weights of a temporal autoencoder.
    """
    stored = read_metadata(path).get(METADATA_KEY)
    if stored is not None:
        return json.loads(stored)
    tensors: dict[str, np.ndarray] = {}
    for name, value in read_weights(path).items():
        for prefix in PREFIXES:
            name = name.replace(prefix, "")
        tensors[name] = value
    dead = any(re.fullmatch(pattern, name) for name in tensors for pattern in DEAD_TENSORS)
    return _from_shapes(path, tensors, PRESETS["reference" if dead else "sd35"])


def _from_shapes(path: str, tensors: Mapping[str, np.ndarray], preset: Mapping[str, Any]) -> dict[str, Any]:
    try:
        ch = tensors["encoder.conv_in.conv_spat.weight"].shape[0]
        z_channels = tensors["decoder.conv_in.conv_spat.weight"].shape[1]
        widths = []
        while (name := f"encoder.down.{len(widths)}.block.0.conv1.conv_spat.weight") in tensors:
            widths.append(tensors[name].shape[0])
        blocks = 0
        while f"encoder.down.0.block.{blocks}.norm1.gamma" in tensors:
            blocks += 1
    except (KeyError, IndexError) as error:
        raise UserError(f"{path}: no tensor {error}: these are not the weights of a temporal autoencoder") from error
    config = dict(preset, ch=ch, z_channels=z_channels, num_res_blocks=blocks)
    config["ch_mult"] = [width // ch for width in widths]
    config["attn_type"] = "vanilla" if "encoder.mid.attn_1.1.norm.gamma" in tensors else "spat_only"
    if not set(parameter_shapes(config)) & set(tensors):
        raise UserError(f"{path}: these are not the weights of a temporal autoencoder")
    return config


def from_checkpoint(path: str, config: Mapping[str, Any] | None = None, **options: Any) -> TemporalAutoencoder:
    """Build the autoencoder of a weights file and load it.

    Args:
        path: .safetensors or .ckpt.
        config: configuration, None to find it in the file.
        options: further arguments of `TemporalAutoencoder`.

    Raises:
        UserError: the file is unreadable or does not fit; the message lists the tensors.
    """
    return TemporalAutoencoder(config_of(path) if config is None else config, pretrained=path, **options)

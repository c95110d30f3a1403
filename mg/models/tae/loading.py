"""Build the autoencoder that a weights file belongs to."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from mg.errors import UserError
from mg.models.tae.adapter import DEAD_TENSORS, PREFIXES
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
        return _from_metadata(path, stored)
    tensors: dict[str, np.ndarray] = {}
    for name, value in read_weights(path).items():
        for prefix in PREFIXES:
            name = name.replace(prefix, "")
        tensors[name] = value
    dead = any(re.fullmatch(pattern, name) for name in tensors for pattern in DEAD_TENSORS)
    return _from_shapes(path, tensors, PRESETS["reference" if dead else "sd35"])


def _from_metadata(path: str, text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
        TaeConfig.from_mapping(config)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged metadata {METADATA_KEY} ({error}); give the configuration") from error
    return config


def _from_shapes(path: str, tensors: Mapping[str, np.ndarray], preset: Mapping[str, Any]) -> dict[str, Any]:
    try:
        ch, in_channels = tensors["encoder.conv_in.conv_spat.weight"].shape[:2]
        config = dict(preset, ch=ch, in_channels=in_channels)
        config["z_channels"] = tensors["decoder.conv_in.conv_spat.weight"].shape[1]
        config["out_ch"] = tensors["decoder.conv_out.conv_spat.weight"].shape[0]
        widths = []
        while (name := f"encoder.down.{len(widths)}.block.0.conv1.conv_spat.weight") in tensors:
            widths.append(tensors[name].shape[0])
        config["ch_mult"] = [width // ch for width in widths]
        levels = range(len(widths))
        blocks = 0
        while f"encoder.down.0.block.{blocks}.norm1.gamma" in tensors:
            blocks += 1
        config["num_res_blocks"] = blocks
        config["attn_type"] = "vanilla" if "encoder.mid.attn_1.1.norm.gamma" in tensors else "spat_only"
        for part in ("quant_conv", "post_quant_conv"):
            config[f"use_{part}"] = f"{part}.conv_spat.weight" in tensors
        for key, part, order in (("down", "encoder.down", levels), ("up", "decoder.up", reversed(levels))):
            name = f"{part}.{{}}.{key}sample_temp.conv.weight"
            config[f"temporal_{key}sample_level"] = [i for i in order if name.format(i) in tensors]
        TaeConfig.from_mapping(config)
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{path}: these are not the weights of a temporal autoencoder ({error})") from error
    groups = config["norm_groups"]
    if any(width % groups for width in (ch, *widths)):
        raise UserError(
            f"{path}: its widths {[ch, *widths]} do not divide into {groups} norm groups, and no metadata tell the "
            "right number; give the configuration"
        )
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


def fingerprint(network: TemporalAutoencoder) -> str:
    """16 hex digits that change with every weight and every value of the configuration, but not with the file's format.

    Latents, and the transformers trained on them, belong to the autoencoder with this fingerprint.
    """
    digest = hashlib.sha256(json.dumps(asdict(network.config), sort_keys=True).encode())
    for name, param in sorted(network.parameters_and_names()):
        value = np.ascontiguousarray(param.asnumpy())
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()[:16]

"""Transformer checkpoints to networks: ours, and those of the reference."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mg.errors import UserError
from mg.models.llama.config import LlamaConfig
from mg.models.llama.network import LlamaModel
from mg.weights import check_finite, load_into, read_weights

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
CONFIG_FILE = "config.json"
PREFIXES = ("network.model.", "network.", "_backbone.")
"""Name parts that training wrappers leave in checkpoints; they are removed wherever they stand in a name."""

_TABLES = tuple(f"pos_embedding_table_{axis}.embedding_table" for axis in "thw")


def resized_table(table: np.ndarray, length: int) -> np.ndarray:
    """Interpolate a position table (n, d) along its positions to (length, d); first and last row stay.

    A table of one row is repeated (an image model's time table, say).
    """
    rows = len(table)
    if rows == length:
        return table
    at = np.linspace(0.0, rows - 1.0, length)
    low = np.minimum(at.astype(int), max(rows - 2, 0))
    high = np.minimum(low + 1, rows - 1)
    share = (at - low)[:, None]
    return (table[low] * (1.0 - share) + table[high] * share).astype(table.dtype)


def adapted(tensors: dict[str, np.ndarray], config: LlamaConfig) -> dict[str, np.ndarray]:
    """Bring the tensors of a checkpoint to a configuration: prefixes, position tables, layout of the patch weight.

    Raises:
        UserError: two tensors have the same name without their prefixes.
    """
    plain: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        for prefix in PREFIXES:
            name = name.replace(prefix, "")
        if name in plain:
            raise UserError(f"checkpoint holds the tensor {name} twice, with a prefix and without; keep one")
        plain[name] = value
    for name, length in zip(_TABLES, config.max_length, strict=True):
        if name in plain and plain[name].ndim == 2:
            plain[name] = resized_table(plain[name], length)
    patch = plain.get("latent_embedder.proj.weight")
    if patch is not None and patch.size == config.hidden_size * config.patch_volume:
        shape: tuple[int, ...] = (config.hidden_size, config.patch_volume)
        if config.patch_embedder == "conv3d":
            shape = (config.hidden_size, config.in_channels, *config.patch_size)
        plain["latent_embedder.proj.weight"] = patch.reshape(shape)
    return plain


def read_config(folder: Path) -> tuple[LlamaConfig, dict[str, Any]]:
    """Read config.json of a transformer's folder: its configuration and all other entries.

    Raises:
        UserError: missing or damaged.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; give a folder with {CONFIG_FILE} and {WEIGHTS_FILE}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object")
    own = {key: value for key, value in values.items() if key in LlamaConfig.__dataclass_fields__}
    rest = {key: value for key, value in values.items() if key not in own}
    try:
        return LlamaConfig.from_dict(own), rest
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def load_weights(network: LlamaModel, path: str | Path) -> None:
    """Load a checkpoint (.safetensors or .ckpt, ours or the reference's) into a network.

    Position tables of another length are interpolated (stage 1 to 2 to 3).

    Raises:
        UserError: unreadable, NaN inside, or tensors that do not fit, all listed.
    """
    tensors = adapted(read_weights(Path(path)), network.config)
    check_finite(tensors, Path(path))
    load_into(network, tensors, path=Path(path))


def load_llama(path: str | Path, config: LlamaConfig | None = None, **options: Any) -> LlamaModel:
    """Build a transformer and load it.

    Args:
        path: folder with config.json and weights, or a weights file.
        config: sizes; None reads the folder's config.json.
        options: further arguments of `LlamaModel`.

    Raises:
        UserError: files missing or damaged, a weights file without a configuration, tensors that do not fit.
    """
    path = Path(path)
    if config is None:
        if path.is_file():
            raise UserError(f"{path}: a weights file says nothing of its sizes; give its folder, or a preset")
        config = read_config(path)[0]
    network = LlamaModel(config, **options)
    load_weights(network, path / WEIGHTS_FILE if path.is_dir() else path)
    return network

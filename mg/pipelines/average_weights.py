"""Average the weights of several trainings of one model (Movie Gen, 3.2.4: the models fine-tuned on different sets)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from mg.errors import UserError
from mg.files import write_json
from mg.weights import check_finite, open_weights, read_metadata, write_weights

MODEL_FILE = "diffusion_pytorch_model.safetensors"
CONFIG_FILE = "config.json"


def average_weights(
    sources: Sequence[str | Path], target: str | Path, dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
) -> dict[str, int]:
    """Write the mean of several weights files, tensor by tensor.

    Args:
        sources: at least two files or folders of weights, each with the same tensors.
        target: a file (.safetensors or .ckpt); anything else is a folder, which gets
            `diffusion_pytorch_model.safetensors` and the sources' `config.json`, which must then be the same in all.
        dtype: of the stored tensors; the mean is taken in float64.

    Returns:
        "files": how many were averaged, "tensors": how many each has.

    Raises:
        UserError: fewer than two sources, tensors that differ in name or shape, sources of different configurations,
            NaN or infinity, integers that differ, or a disk that refuses.
    """
    if len(sources) < 2:
        raise UserError(f"sources: {len(sources)} given; name at least two files or folders of weights")
    target = Path(target)
    opened = {str(path): open_weights(path) for path in sources}
    if len(opened) < len(sources):
        raise UserError("sources: one of them is named twice; name each once")
    _check_alike(opened)
    is_file = target.suffix in (".safetensors", ".ckpt")
    config = None if is_file else _common_config(sources)
    first = next(iter(opened.values()))
    mean = {name: _mean(name, opened) for name in first}
    path = target if is_file else target / MODEL_FILE
    write_weights(path, mean, read_metadata(sources[0]), dtype=dtype)
    if config is not None:
        write_json(target / CONFIG_FILE, config)
    return {"files": len(opened), "tensors": len(mean)}


def _check_alike(opened: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    (first_path, first), *others = opened.items()
    for path, tensors in others:
        odd = sorted(first.keys() ^ tensors.keys())
        if odd:
            raise UserError(
                f"{path}: {len(odd)} tensors are not in both it and {first_path}: {', '.join(odd[:5])}; "
                "average trainings of one model"
            )


def _common_config(sources: Sequence[str | Path]) -> dict:
    """Read the configuration beside each source; raise UserError where one is missing or another."""
    configs = {}
    for source in map(Path, sources):
        path = (source if source.is_dir() else source.parent) / CONFIG_FILE
        try:
            configs[path] = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({error}); name a target ending in .safetensors") from error
    (first_path, first), *others = configs.items()
    for path, config in others:
        if config != first:
            keys = first.keys() | config.keys() if isinstance(config, dict) and isinstance(first, dict) else ()
            odd = sorted(key for key in keys if first.get(key) != config.get(key))
            raise UserError(f"{path}: differs from {first_path} in {', '.join(odd)}; average trainings of one model")
    return first


def _mean(name: str, opened: Mapping[str, Mapping[str, np.ndarray]]) -> np.ndarray:
    total, count = None, 0
    for path, tensors in opened.items():
        array = tensors[name]
        check_finite({name: array}, path)
        if total is None:
            first, total = array, np.zeros(array.shape, np.float64)
        if array.shape != first.shape:
            raise UserError(f"{path}: {name} is {array.shape}, elsewhere {first.shape}; average trainings of one model")
        if not np.issubdtype(array.dtype, np.floating) and not np.array_equal(array, first):
            raise UserError(f"{path}: {name} holds integers and differs; average trainings of one model")
        total += array
        count += 1
    return (total / count).astype(first.dtype)

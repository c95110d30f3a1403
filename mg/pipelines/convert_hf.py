"""Hugging Face weights from PyTorch's .bin to .safetensors, without running what a pickle holds."""

import os
import pickle
import re
import shutil
import struct
import tempfile
import textwrap
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from mg.errors import UserError
from mg.files import atomic_path, sync_folder, writable_folder, write_json
from mg.weights import BF16, shards_of, write_weights

if TYPE_CHECKING:
    import torch

SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
MADE_SINGLE, MADE_INDEX = "model.safetensors", "model.safetensors.index.json"
COMPANIONS = ("*.json", "*.txt", "*.model")
"""Configuration and tokenizer files: config.json, tokenizer.json, merges.txt, spiece.model and their like."""

_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
# What PyTorch raises for files that are no longer what was once written, apart from its own UnpicklingError.
_DAMAGE = (
    RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, EOFError, OSError, struct.error,
)  # fmt: skip


@dataclass
class Conversion:
    """What a conversion did.

    Attributes:
        folder: where the .safetensors are.
        found: the file that made a conversion needless; None if there was one.
        tensors: number of tensors written.
        size: their bytes.
        dtypes: number of tensors by type ("F32", "BF16", ...).
        tied: names left out, each with the name under which the same tensor was written.
    """

    folder: Path
    found: Path | None = None
    tensors: int = 0
    size: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)


def fetch(
    model: str,
    output: str | Path | None = None,
    *,
    revision: str | None = None,
    endpoint: str | None = None,
    force: bool = False,
) -> Path:
    """Download a model from the Hugging Face hub; its .bin files only if it has no .safetensors, or by `force`.

    Args:
        model: id on the hub, such as google/byt5-small.
        output: folder for the files; None: the hub's cache.
        revision: branch, tag or commit; None: the newest.
        endpoint: address of a mirror; None: the hub, or the variable HF_ENDPOINT.
        force: see above.

    Returns:
        The folder with the files.

    Raises:
        UserError: not an id, unknown on the hub, not open to everyone, or no network.
    """
    if not _HUB_ID.fullmatch(model):
        raise UserError(f"{model}: neither a folder nor a model id; give one such as google/byt5-small")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    def download(*patterns: str) -> Path:
        wanted = {"allow_patterns": list(patterns), "ignore_patterns": ["*/*"]}  # other formats live in subfolders
        return Path(snapshot_download(model, revision=revision, endpoint=endpoint, local_dir=output, **wanted))

    try:
        folder = download(*COMPANIONS, "model*.safetensors")
        return folder if _existing(folder) and not force else download("pytorch_model*.bin")
    except GatedRepoError as error:
        raise UserError(f"{model}: its owner gives it on request; accept the terms on the hub and log in") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{model}: there is no such folder, and as a name on the hub it is unknown; check the name"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"--revision {revision}: {model} has no such revision; check the name") from error
    except (OSError, ValueError, RuntimeError) as error:  # no network, a proxy's answer, a full disk
        reason = textwrap.shorten(str(error), 160, placeholder=" ...") or type(error).__name__
        raise UserError(
            f"{model}: there is no such folder, and as a name on the hub it cannot be fetched ({reason}); give a "
            "folder, check the network, or name a mirror in HF_ENDPOINT"
        ) from error


def convert(folder: str | Path, output: str | Path | None = None, force: bool = False) -> Conversion:
    """Convert pytorch_model.bin, or the shards of pytorch_model.bin.index.json, keeping names and types.

    One shard is in memory at a time. A tensor that has several names (tied embeddings) is written under the first.
    Nothing appears under its final name before all shards are converted.

    Args:
        folder: a Hugging Face folder.
        output: folder to write; None: the same. Another one gets the configuration and tokenizer files too.
        force: convert although .safetensors are there.

    Raises:
        UserError: no such folder, no weights, no torch, a file that is damaged, holds more than plain tensors or
            needs code to be run, or a disk that refuses.
    """
    folder = Path(folder)
    output = Path(output) if output is not None else folder
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give a Hugging Face folder with PyTorch weights")
    if not force and (found := _existing(output) or _existing(folder)):
        return Conversion(found.parent, found)
    shards = _shards(folder)
    other = MADE_INDEX if SINGLE in shards else MADE_SINGLE
    if (output / other).is_file():
        # Readers would take one of the two, and not all of them the same one.
        raise UserError(f"{output}: {other} of an earlier conversion is in it; choose another --output_dir")
    result = Conversion(output)
    new = not output.exists()
    writable_folder(output, "--output_dir")
    try:
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=output) as temporary:
            _convert_shards(folder, shards, Path(temporary), result)
            if not output.samefile(folder):
                _copy_companions(folder, output)
            _move(Path(temporary), output)
    except BaseException:
        if new:
            with suppress(OSError):  # the user's folder was not there, and nothing is in it
                output.rmdir()
        raise
    return result


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read a PyTorch state dict as arrays by name, without running what the pickle holds; float types as stored.

    Raises:
        UserError: no torch, a damaged file, or one that holds more than plain tensors.
    """
    return {name: _numpy(path, name, tensor) for name, tensor in _load(path).items()}


def _existing(folder: Path) -> Path | None:
    return next((folder / name for name in (MADE_SINGLE, MADE_INDEX) if (folder / name).is_file()), None)


def _shards(folder: Path) -> dict[str, list[str] | None]:
    """Return the files to convert, each with the names an index promises in it."""
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file() and index.is_file():
        raise UserError(f"{folder}: it holds both {SINGLE} and {INDEX}; move one of them away")
    if index.is_file():
        return dict(shards_of(index, ".bin"))
    if single.is_file():
        return {SINGLE: None}
    raise UserError(f"{folder}: neither {SINGLE} nor {INDEX} is in it; give a folder with PyTorch weights")


def _convert_shards(folder: Path, shards: Mapping[str, list[str] | None], output: Path, result: Conversion) -> None:
    places: dict[str, str] = {}
    for shard, promised in tqdm(shards.items(), unit="file", desc="converting", disable=None):
        path = folder / shard
        tensors, tied = _untie(_load(path))
        if missing := [name for name in promised or () if name not in tensors and name not in tied]:
            raise UserError(f"{path}: the index promises the tensor {missing[0]}, which is not in it; fetch both again")
        if twice := [name for name in (*tensors, *tied) if name in places or name in result.tied]:
            raise UserError(f"{path}: the tensor {twice[0]} is in another shard too; fetch the files again")
        arrays = {name: _numpy(path, name, tensor) for name, tensor in tensors.items()}
        target = Path(shard.replace("pytorch_model", "model", 1)).with_suffix(".safetensors").name
        # transformers refuses a file that does not say whose layout it has.
        write_weights(output / target, arrays, {"format": "pt"}, dtype="keep")
        places.update(dict.fromkeys(arrays, target))
        result.tied.update(tied)
        for array in arrays.values():
            kind = "bf16" if array.dtype == BF16 else str(array.dtype)
            result.dtypes[kind] = result.dtypes.get(kind, 0) + 1
            result.size += array.nbytes
        result.tensors += len(arrays)
    if SINGLE not in shards:
        index = {"metadata": {"total_size": result.size}, "weight_map": dict(sorted(places.items()))}
        write_json(output / MADE_INDEX, index)


def _move(source: Path, target: Path) -> None:
    # The index last: where it is, everything is.
    for path in sorted(source.iterdir(), key=lambda path: path.name == MADE_INDEX):
        try:
            os.replace(path, target / path.name)
        except OSError as error:
            raise UserError(f"cannot write {target / path.name}: {error.strerror}; choose another folder") from error
    sync_folder(target)


def _load(path: Path) -> dict[str, "torch.Tensor"]:
    """Let PyTorch read a state dict, tensors alone, mapped into memory rather than read where it can."""
    try:
        import torch
    except ImportError as error:
        raise UserError("reading .bin needs PyTorch, which is not installed; pip install torch") from error
    try:
        with open(path, "rb") as file:
            mapped = file.read(2) == b"PK"  # written before PyTorch 1.6 it is a bare pickle, which cannot be mapped
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it asks for {code[1]}" if code else "it is no plain state dict"
        raise UserError(f"{path}: refused, and nothing in it was run: {what}; fetch the weights elsewhere") from error
    except _DAMAGE as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"{path}: damaged or incomplete ({reason}); fetch the file again") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: it holds a {type(content).__name__}, not tensors by name; give a plain state dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise UserError(f"{path}: {name!r} is a {type(value).__name__}, no tensor; give a plain state dict")
    return dict(content)


def _untie(tensors: Mapping[str, "torch.Tensor"]) -> tuple[dict[str, "torch.Tensor"], dict[str, str]]:
    """Return each tensor once, under its first name, and the other names with the one that stays."""
    import torch

    first: dict[Any, str] = {}
    tied: dict[str, str] = {}
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.numel() == 0:
            continue  # refused later, or nothing in memory that could be shared
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if first.setdefault(place, name) != name:
            tied[name] = first[place]
    return {name: tensor for name, tensor in tensors.items() if name not in tied}, tied


def _numpy(path: Path, name: str, tensor: "torch.Tensor") -> np.ndarray:
    import torch

    try:
        tensor = tensor.detach().contiguous()
        array = tensor.view(torch.int16).numpy().view(BF16) if tensor.dtype == torch.bfloat16 else tensor.numpy()
    except (TypeError, RuntimeError) as error:
        raise UserError(f"{path}: {name} is {tensor.dtype}, which is not supported; convert it to float32") from error
    if array.dtype.kind == "c":
        raise UserError(f"{path}: {name} is {tensor.dtype}, which is not supported; convert it to float32")
    return array


def _copy_companions(folder: Path, output: Path) -> None:
    for pattern in COMPANIONS:
        for path in sorted(folder.glob(pattern)):
            if path.is_file() and not path.name.endswith(".index.json"):
                with atomic_path(output / path.name) as temporary:
                    shutil.copyfile(path, temporary)

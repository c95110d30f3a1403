"""Weights files: read, write and check tensors by name, and load them into a network; nothing here unpickles."""

import contextlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open

import mg.device  # noqa: F401 - prepares the environment that MindSpore loads in
from mg.errors import UserError
from mg.files import atomic_path

if TYPE_CHECKING:
    from mindspore import nn

# Little-endian, as the format prescribes. BF16 is the upper half of a float32.
_STORED = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1",
}  # fmt: skip
_NAMES = {np.dtype(code): name for name, code in _STORED.items() if name != "BF16"}
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle")
_INDEX = ".safetensors.index.json"
_LISTED = 20


def read_weights(path: str | Path) -> dict[str, np.ndarray]:
    """Read all tensors of a weights file by name; floating tensors come as float32, others as they are.

    Args:
        path: .safetensors, *.safetensors.index.json with its shards beside it, a folder that holds one of these, or a
            MindSpore .ckpt.

    Raises:
        UserError: missing, damaged or unsupported file; a pickle (.bin, .pt, .pth, .pkl), which is never opened.
    """
    path = _resolve(Path(path))
    if path.suffix == ".ckpt":
        return _read_ckpt(path)
    if path.name.endswith(_INDEX):
        return _read_shards(path)
    return _read_safetensors(path)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the texts that `write_weights` stored beside the tensors; shards have none.

    Raises:
        UserError: as for `read_weights`.
    """
    path = _resolve(Path(path))
    if path.suffix == ".ckpt":
        return {name: value for name, value in _load_ckpt(path).items() if isinstance(value, str)}
    if path.name.endswith(_INDEX):
        return {}
    return _header(path)[0].get("__metadata__", {})


def write_weights(
    path: str | Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
    dtype: Literal["fp32", "fp16"] = "fp32",
) -> None:
    """Write tensors by name, atomically; equal tensors and metadata give equal bytes.

    Args:
        path: ends in .safetensors or .ckpt (MindSpore), which decides the format.
        tensors: arrays; floating ones are stored as `dtype`, others as they are.
        metadata: texts to store beside the tensors.
        dtype: "fp32" or "fp16".

    Raises:
        UserError: another suffix or dtype, a value beyond the range of the dtype, or a disk that refuses.
    """
    path = Path(path)
    if dtype not in ("fp32", "fp16"):
        raise UserError(f"{path}: dtype={dtype}: weights are stored as fp32 or fp16")
    if path.suffix not in (".safetensors", ".ckpt"):
        raise UserError(f"{path}: weights are written as .safetensors or .ckpt; choose one of these endings")
    narrow = np.float16 if dtype == "fp16" else np.float32
    arrays = {name: _narrow(path, name, array, narrow) for name, array in tensors.items()}
    with atomic_path(path) as temporary:
        if path.suffix == ".ckpt":
            _save_ckpt(temporary, arrays, metadata or {})
        else:
            _save_safetensors(temporary, arrays, metadata or {})


def check_finite(tensors: Mapping[str, np.ndarray], path: str | Path) -> None:
    """Check that no tensor holds NaN or infinity.

    Raises:
        UserError: some do; the message names the file and the first of them.
    """
    bad = [name for name, array in tensors.items() if not np.isfinite(_plain(array)).all()]
    if bad:
        raise UserError(f"{path}: NaN or infinity in {_some(bad)}; the file is damaged or its training diverged")


def load_into(
    net: "nn.Cell",
    tensors: Mapping[str, np.ndarray],
    *,
    path: str | Path,
    ignore: Sequence[str] = (),
    strip: Sequence[str] = (),
) -> None:
    """Set all parameters of a network, each in its own dtype; either everything fits or nothing is set.

    Args:
        net: the network.
        tensors: arrays by name.
        path: where they come from, for messages.
        ignore: regular expressions; a tensor whose whole name, after stripping, matches one is dropped.
        strip: texts removed wherever they occur in the tensors' names, prefixes of training wrappers for instance.

    Raises:
        UserError: tensors missing, unexpected or of another shape, all in one message.
    """
    from mindspore import Tensor

    given = _rename(tensors, path, ignore, strip)
    wanted = dict(net.parameters_and_names())
    shapes = [
        f"{name} {given[name].shape} instead of {tuple(param.shape)}"
        for name, param in wanted.items()
        if name in given and given[name].shape != tuple(param.shape)
    ]
    faults = {
        "missing": [name for name in wanted if name not in given],
        "unexpected": [name for name in given if name not in wanted],
        "of another shape": shapes,
    }
    if any(faults.values()):
        told = "; ".join(f"{len(names)} {fault}: {_some(names)}" for fault, names in faults.items() if names)
        raise UserError(f"{path}: does not fit this network; {told}; choose the configuration that the file belongs to")
    for name, param in wanted.items():
        param.set_data(Tensor(given[name], param.dtype))


def _rename(
    tensors: Mapping[str, np.ndarray], path: str | Path, ignore: Sequence[str], strip: Sequence[str]
) -> dict[str, np.ndarray]:
    renamed: dict[str, np.ndarray] = {}
    for original, array in tensors.items():
        name = original
        for text in strip:
            name = name.replace(text, "")
        if any(re.fullmatch(pattern, name) for pattern in ignore):
            continue
        if name in renamed:
            raise UserError(f"{path}: two tensors are called {name} without their prefixes; remove {original} from it")
        renamed[name] = array
    return renamed


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _plain(array: np.ndarray) -> np.ndarray:
    # MindSpore hands out bfloat16 arrays of a type that numpy does not count among the floating ones.
    array = np.asarray(array)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _widen(array: np.ndarray) -> np.ndarray:
    array = _plain(array)
    with np.errstate(over="ignore"):  # a float64 too large becomes infinity, which check_finite reports
        return array.astype(np.float32, copy=False) if np.issubdtype(array.dtype, np.floating) else array


def _narrow(path: Path, name: str, array: np.ndarray, dtype: type) -> np.ndarray:
    array = _plain(array)
    if not np.issubdtype(array.dtype, np.floating):
        return array
    with np.errstate(over="ignore"):
        stored = array.astype(dtype, copy=False)
    if (np.isinf(stored) & np.isfinite(array)).any():
        limit = np.finfo(dtype).max
        raise UserError(f"{path}: {name} has values beyond {limit:g}, the limit of {stored.dtype}; store another dtype")
    return stored


# ---- which file


def _resolve(path: Path) -> Path:
    """Return the file that a path stands for, of a known kind."""
    if path.is_dir():
        path = _the_one_in(path)
    if path.suffix in _PICKLES:
        raise UserError(f"{path}: {path.suffix} is a pickle and could run code; convert it to .safetensors first")
    if path.suffix not in (".safetensors", ".ckpt") and not path.name.endswith(_INDEX):
        raise UserError(f"{path}: unknown kind of weights; give .safetensors, *{_INDEX} or a MindSpore .ckpt")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; check the path")
    return path


def _the_one_in(folder: Path) -> Path:
    for ending in (_INDEX, ".safetensors", ".ckpt"):
        found = sorted(file for file in folder.glob(f"*{ending}") if not file.name.startswith("."))
        if len(found) > 1:
            raise UserError(f"{folder}: it holds {_some([file.name for file in found])}; name one of them")
        if found:
            return found[0]
    raise UserError(f"{folder}: a folder without weights; give one with .safetensors or .ckpt in it")


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    try:
        files = json.loads(index.read_text("utf-8"))["weight_map"]
        by_shard: dict[str, list[str]] = {}
        for name, shard in files.items():
            by_shard.setdefault(shard, []).append(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: not an index of shards ({error}); fetch the file again") from error
    for shard in by_shard:
        # An index is a foreign text: it may name its neighbours, and nothing else on this machine.
        if not isinstance(shard, str) or "\\" in shard or Path(shard).name != shard or shard == "..":
            raise UserError(f"{index}: weight_map leads to {shard!r}; shards must be files beside the index")
        if not shard.endswith(".safetensors"):
            raise UserError(f"{index}: the shard {shard!r} is not .safetensors; convert it first")
    tensors: dict[str, np.ndarray] = {}
    for shard, names in by_shard.items():
        file = index.parent / shard
        if not file.is_file():
            raise UserError(f"{index}: the shard {shard} is not beside it; fetch it too")
        tensors.update(_read_safetensors(file, names))
    return tensors


# ---- safetensors: 8 bytes with the header's length, the header (JSON), the tensors' bytes


@contextlib.contextmanager
def _readable(path: Path) -> Any:
    try:
        yield
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or incomplete ({error}); fetch or write the file again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header and where the tensors' bytes begin, after safetensors has approved of the file."""
    with _readable(path):
        with safe_open(path, framework="numpy"):
            pass  # opening checks the header against the file: names, offsets without gaps or overlaps, the length
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            return json.loads(file.read(size)), 8 + size


def _read_safetensors(path: Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    header, start = _header(path)
    header.pop("__metadata__", None)
    tensors: dict[str, np.ndarray] = {}
    with _readable(path), open(path, "rb") as file:
        for name in header if names is None else names:
            if name not in header:
                raise UserError(f"{path}: the index promises the tensor {name}, which is not in it; fetch both again")
            entry = header[name]
            if entry["dtype"] not in _STORED:
                raise UserError(f"{path}: {name} is {entry['dtype']}, which is not supported; convert it to F32")
            file.seek(start + entry["data_offsets"][0])
            count = int(np.prod(entry["shape"], dtype=np.int64))
            flat = np.fromfile(file, _STORED[entry["dtype"]], count)
            if entry["dtype"] == "BF16":
                flat = (flat.astype(np.uint32) << 16).view(np.float32)
            tensors[name] = _widen(flat).reshape(entry["shape"])
    return tensors


def _save_safetensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    # Not safetensors' own writer: that one orders metadata at random, holds every tensor twice and hides the reason
    # of a failure (a full disk) in a text.
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    # The widest items first and a header of a multiple of 8 bytes: every tensor is aligned for its type.
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    offset = 0
    for name in order:
        array = arrays[name]
        if array.dtype not in _NAMES:
            raise UserError(f"{path}: {name} is {array.dtype}, which .safetensors cannot hold; convert it")
        end = offset + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(arrays[name].tobytes())


# ---- MindSpore checkpoints (protobuf)


def _load_ckpt(path: Path) -> dict[str, Any]:
    with _readable(path), open(path, "rb") as file:
        start = file.read(4)
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        raise UserError(f"{path}: a pickle of PyTorch, not MindSpore's .ckpt; convert it to .safetensors first")
    import mindspore as ms

    try:
        return ms.load_checkpoint(str(path))
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: damaged, or not a checkpoint of MindSpore ({reason})") from error


def _read_ckpt(path: Path) -> dict[str, np.ndarray]:
    from mindspore import Tensor

    entries = _load_ckpt(path)  # beside tensors: texts and numbers that a trainer appended
    return {name: _widen(value.asnumpy()) for name, value in entries.items() if isinstance(value, Tensor)}


def _save_ckpt(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    import mindspore as ms

    for name, array in arrays.items():
        if array.size == 0:
            raise UserError(f"{path}: {name} is empty, which .ckpt cannot hold; use .safetensors")
    entries = [{"name": name, "data": ms.Tensor(array)} for name, array in arrays.items()]
    ms.save_checkpoint(entries, str(path), append_dict=dict(metadata) or None)
    path.chmod(0o644)  # MindSpore leaves it read-only

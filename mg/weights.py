"""Weights files: read, write and check tensors by name, and load them into a network; nothing here unpickles."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import mg.device  # noqa: F401 - prepares the environment that MindSpore loads in
from mg.errors import UserError
from mg.files import atomic_path
from mg.tensor_file import BF16, STORED, Kind, read_header, readable, save

if TYPE_CHECKING:
    from mindspore import nn

_DTYPES = {"fp32": np.dtype(np.float32), "fp16": np.dtype(np.float16), "bf16": BF16, "keep": None}
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
    return dict(open_weights(path))


def open_weights(path: str | Path) -> Mapping[str, np.ndarray]:
    """Open a weights file without reading it: as `read_weights`, but a tensor is read when it is asked for.

    A .ckpt is read whole.
    """
    path = _resolve(Path(path))
    return _read_ckpt(path) if path.suffix == ".ckpt" else LazyWeights(path)


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
    return read_header(path)[0].get("__metadata__", {})


def write_weights(
    path: str | Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
    dtype: Literal["fp32", "fp16", "bf16", "keep"] = "fp32",
) -> None:
    """Write tensors by name, atomically; equal tensors and metadata give equal bytes.

    Args:
        path: ends in .safetensors or .ckpt (MindSpore), which decides the format.
        tensors: arrays; floating ones are stored as `dtype`, others as they are.
        metadata: texts to store beside the tensors.
        dtype: "fp32", "fp16" or "bf16", rounded to the nearest, ties to even; "keep": each as it is, `BF16` included.

    Raises:
        UserError: another suffix or dtype, a value beyond the range of the dtype, or a disk that refuses.
    """
    path = Path(path)
    if dtype not in _DTYPES:
        raise UserError(f"{path}: dtype={dtype}: weights are stored as fp32, fp16, bf16 or as they are (keep)")
    if path.suffix not in (".safetensors", ".ckpt"):
        raise UserError(f"{path}: weights are written as .safetensors or .ckpt; choose one of these endings")
    arrays = {name: _narrow(path, name, array, _DTYPES[dtype]) for name, array in tensors.items()}
    with atomic_path(path) as temporary:
        if path.suffix == ".ckpt":
            _save_ckpt(temporary, arrays, metadata or {})
        else:
            kinds = {name: (array.dtype, array.shape) for name, array in arrays.items()}
            save(temporary, kinds, arrays.__getitem__, metadata or {})


def stream_weights(path: str | Path, kinds: Mapping[str, Kind], read: Callable[[str], np.ndarray]) -> None:
    """Write a .safetensors atomically, of tensors that need not be in memory together.

    Args:
        path: of the file.
        kinds: type and shape of each tensor by name.
        read: returns the tensor of a name when its turn comes.

    Raises:
        UserError: a type that cannot be stored, or a disk that refuses.
    """
    with atomic_path(path) as temporary:
        save(temporary, kinds, read, {})


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
        tensors: arrays by name; those of a mapping with an attribute `shapes` are read one at a time.
        path: where they come from, for messages.
        ignore: regular expressions; a tensor whose whole name, after stripping, matches one is dropped.
        strip: texts removed wherever they occur in the tensors' names, prefixes of training wrappers for instance.

    Raises:
        UserError: tensors missing, unexpected or of another shape, all in one message.
    """
    from mindspore import Tensor

    given = _rename(tensors, path, ignore, strip)
    wanted = dict(net.parameters_and_names())
    stored = getattr(tensors, "shapes", None)
    shapes_given = {name: array.shape for name, array in tensors.items()} if stored is None else stored
    shapes = [
        f"{name} {shapes_given[given[name]]} instead of {tuple(param.shape)}"
        for name, param in wanted.items()
        if name in given and shapes_given[given[name]] != tuple(param.shape)
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
        param.set_data(Tensor(tensors[given[name]], param.dtype))


def _rename(
    tensors: Mapping[str, np.ndarray], path: str | Path, ignore: Sequence[str], strip: Sequence[str]
) -> dict[str, str]:
    """Return the names in the file by the names in the network."""
    renamed: dict[str, str] = {}
    for original in tensors:
        name = original
        for text in strip:
            name = name.replace(text, "")
        if any(re.fullmatch(pattern, name) for pattern in ignore):
            continue
        if name in renamed:
            raise UserError(f"{path}: two tensors are called {name} without their prefixes; remove {original} from it")
        renamed[name] = original
    return renamed


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _plain(array: np.ndarray) -> np.ndarray:
    """Return bfloat16, ours or MindSpore's, which numpy does not count among the floating types, as float32."""
    array = np.asarray(array)
    if array.dtype == BF16:
        return (array["bf16"].astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _widen(array: np.ndarray) -> np.ndarray:
    array = _plain(array)
    with np.errstate(over="ignore"):  # a float64 too large becomes infinity, which check_finite reports
        return array.astype(np.float32, copy=False) if np.issubdtype(array.dtype, np.floating) else array


def _narrow(path: Path, name: str, array: np.ndarray, dtype: np.dtype | None) -> np.ndarray:
    if dtype is None:
        array = np.asarray(array)
        return _to_bf16(_plain(array)) if array.dtype.name == "bfloat16" else array
    array = _plain(array)
    if not np.issubdtype(array.dtype, np.floating):
        return array
    with np.errstate(over="ignore"):
        stored = _to_bf16(array) if dtype == BF16 else array.astype(dtype, copy=False)
    if (np.isinf(_plain(stored)) & np.isfinite(array)).any():
        limit, kind = (3.38953e38, "bfloat16") if dtype == BF16 else (np.finfo(dtype).max, str(dtype))
        raise UserError(f"{path}: {name} has values beyond {limit:g}, the limit of {kind}; store another dtype")
    return stored


def _to_bf16(array: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(array, np.float32).reshape(array.shape).view(np.uint32)
    # Half of the last bit kept, less a hair if that bit is even: what is carried over is the rounding to even.
    upper = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    upper = np.where(np.isnan(array), (bits >> 16) | 0x40, upper)  # no carry may make a NaN infinite
    return upper.astype("<u2").view(BF16)


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


def shards_of(index: Path, suffix: str = ".safetensors") -> dict[str, list[str]]:
    """Return the names of the tensors by shard, as an index lists them; shards must end in `suffix`.

    Raises:
        UserError: the index is damaged, or a shard is not a file beside it.
    """
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
        if not shard.endswith(suffix):
            raise UserError(f"{index}: the shard {shard!r} is not {suffix}; convert it first")
        if not (index.parent / shard).is_file():
            raise UserError(f"{index}: the shard {shard} is not beside it; fetch it too")
    return by_shard


class LazyWeights(Mapping[str, np.ndarray]):
    """The tensors of a .safetensors file, or of all shards of an index, each read when it is asked for.

    Floating tensors come as float32, others as they are.

    Attributes:
        shapes: shape of each tensor, known without reading it.

    Raises:
        UserError: the file, the index or a shard is damaged, or a tensor is of a type that is not supported.
    """

    def __init__(self, path: Path) -> None:
        self._places: dict[str, tuple[Path, int, str]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        if path.name.endswith(_INDEX):
            for shard, names in shards_of(path).items():
                self._add(path.parent / shard, names)
        else:
            self._add(path)

    def _add(self, path: Path, names: Iterable[str] | None = None) -> None:
        header, start = read_header(path)
        header.pop("__metadata__", None)
        for name in header if names is None else names:
            if name not in header:
                raise UserError(f"{path}: the index promises the tensor {name}, which is not in it; fetch both again")
            entry = header[name]
            if entry["dtype"] not in STORED:
                raise UserError(f"{path}: {name} is {entry['dtype']}, which is not supported; convert it to F32")
            self._places[name] = (path, start + entry["data_offsets"][0], entry["dtype"])
            self.shapes[name] = tuple(entry["shape"])

    def __getitem__(self, name: str) -> np.ndarray:
        return self._read(name, 0, self.shapes[name])

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read the rows of a tensor from `start` up to `stop`, which is not included, and nothing else of it."""
        rest = self.shapes[name][1:]
        return self._read(name, start * int(np.prod(rest, dtype=np.int64)), (stop - start, *rest))

    def flat(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read the elements from `start` up to `stop` of a tensor as if it had one axis, and nothing else of it."""
        return self._read(name, start, (stop - start,))

    def dtype(self, name: str) -> np.dtype:
        """Tell the type in which a tensor comes, without reading it."""
        kind = np.dtype(STORED[self._places[name][2]])
        return np.dtype(np.float32) if kind == BF16 or np.issubdtype(kind, np.floating) else kind

    def _read(self, name: str, skipped: int, shape: tuple[int, ...]) -> np.ndarray:
        path, offset, dtype = self._places[name]
        count, kind = int(np.prod(shape, dtype=np.int64)), np.dtype(STORED[dtype])
        with readable(path), open(path, "rb") as file:
            file.seek(offset + skipped * kind.itemsize)
            flat = np.fromfile(file, kind, count)
        if len(flat) < count:
            raise UserError(f"{path}: has become shorter since it was opened; fetch or write the file again")
        return _widen(flat).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


# ---- MindSpore checkpoints (protobuf)


def _load_ckpt(path: Path) -> dict[str, Any]:
    with readable(path), open(path, "rb") as file:
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
    entries = [
        {"name": name, "data": ms.Tensor(_plain(array), ms.bfloat16 if array.dtype == BF16 else None)}
        for name, array in arrays.items()
    ]
    ms.save_checkpoint(entries, str(path), append_dict=dict(metadata) or None)
    path.chmod(0o644)  # MindSpore leaves it read-only

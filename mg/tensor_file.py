"""The format safetensors: 8 bytes with the header's length, the header (JSON), the tensors' bytes."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from mg.errors import UserError

BF16 = np.dtype([("bf16", "<u2")])
"""numpy's lack of a bfloat16 made good: the upper half of a float32, and no integer by mistake."""

# Little-endian, as the format prescribes.
STORED = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": BF16, "BOOL": "?",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1",
}  # fmt: skip
NAMES = {np.dtype(code): name for name, code in STORED.items()}

Kind = tuple[np.dtype, tuple[int, ...]]
"""Type and shape of a tensor."""


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what reading a damaged file raises into a UserError."""
    try:
        yield
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or incomplete ({error}); fetch or write the file again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header and where the tensors' bytes begin, after safetensors has approved of the file."""
    with readable(path):
        with safe_open(path, framework="numpy"):
            pass  # opening checks the header against the file: names, offsets without gaps or overlaps, the length
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            return json.loads(file.read(size)), 8 + size


def save(
    path: Path, kinds: Mapping[str, Kind], read: Callable[[str], np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Write a file; each tensor is read, by its name, when its turn comes.

    Raises:
        UserError: a type that the format cannot hold.
        ValueError: a tensor is not of the type or size announced.
    """
    # Not safetensors' own writer: that one orders metadata at random, holds every tensor twice and hides the reason
    # of a failure (a full disk) in a text.
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    # The widest items first and a header of a multiple of 8 bytes: every tensor is aligned for its type.
    order = sorted(kinds, key=lambda name: (-kinds[name][0].itemsize, name))
    offset = 0
    for name in order:
        dtype, shape = kinds[name]
        if dtype not in NAMES:
            raise UserError(f"{path}: {name} is {dtype}, which .safetensors cannot hold; convert it")
        end = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            array = read(name)
            if (array.dtype, array.shape) != kinds[name]:
                raise ValueError(f"{path}: {name} is {array.dtype} {array.shape} instead of {kinds[name]}")
            file.write(array.tobytes())

"""Which elements of a tensor belong to which device, as pure functions of the layout; nothing here needs MindSpore."""

import re
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Shaped

from mg.config.parallel import AXES
from mg.errors import UserError
from mg.parallel.dims import UNIONS, ParallelDims

# Layers of the transformer that tensor parallelism divides, as mg.parallel.cells does (a test compares the two).
_BY_OUTPUTS = re.compile(r"layers\.\d+\.((self|cross)_attn\.[qkv]|mlp\.(gate|up))_proj\.(weight|bias)")
_BY_INPUTS = re.compile(r"layers\.\d+\.((self|cross)_attn\.o|mlp\.down)_proj\.weight")


@dataclass(frozen=True)
class Piece:
    """Elements `start` up to `stop` of a flattened block of a tensor; `blocks` equal blocks lie along `axis`."""

    start: int
    stop: int
    axis: int | None = None
    """None: the tensor is one block. Never 0: blocks along the first axis are ranges of the flattened tensor."""
    blocks: int = 1
    block: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.stop - self.start

    def of(self, array: np.ndarray) -> Shaped[np.ndarray, " k"]:
        """Cut the piece out of the whole tensor."""
        if self.axis is not None:
            array = np.split(array, self.blocks, self.axis)[self.block]
        return np.ascontiguousarray(array).reshape(-1)[self.start : self.stop]


def size_of(shape: tuple[int, ...]) -> int:
    """Return the number of elements."""
    return int(np.prod(shape, dtype=np.int64))


def part_length(size: int, parts: int) -> int:
    """Length of one of several equal flat parts; the last is filled up."""
    return -(-size // parts)


def divides(dims: ParallelDims) -> bool:
    """Tell whether ZeRO divides anything."""
    return dims.zero_stage > 0 and dims.size("shard") > 1


def block_of(shape: tuple[int, ...], axis: int | None, dims: ParallelDims, rank: int) -> Piece:
    """Return what tensor parallelism leaves to a rank of a tensor that it divides along `axis` (None: all of it).

    Raises:
        ValueError: the axis cannot be divided evenly.
    """
    if axis is None or dims.tensor == 1:
        return Piece(0, size_of(shape))
    if shape[axis] % dims.tensor:
        raise ValueError(f"tensor={dims.tensor} cannot divide {shape} along axis {axis}")
    size, place = size_of(shape) // dims.tensor, _coordinates(dims, rank)["tensor"]
    if axis == 0:
        return Piece(place * size, (place + 1) * size)
    return Piece(0, size, axis, dims.tensor, place)


def piece_of(shape: tuple[int, ...], axis: int | None, dims: ParallelDims, rank: int) -> Piece:
    """Return what is a rank's own of a tensor: its block, or its flat part of it where ZeRO divides.

    The fill of the last parts is left out: a piece may be shorter than others, or empty.
    """
    block = block_of(shape, axis, dims, rank)
    if not divides(dims):
        return block
    length = part_length(block.size, dims.size("shard"))
    start = min(_shard(dims, rank) * length, block.size)
    stop = min(start + length, block.size)
    return Piece(block.start + start, block.start + stop, block.axis, block.blocks, block.block)


def is_first(axis: int | None, dims: ParallelDims, rank: int) -> bool:
    """Tell whether a rank is the first one with its piece: the one that writes it."""
    apart = set(UNIONS["shard"]) if divides(dims) else set()
    apart |= {"tensor"} if axis is not None else set()
    return all(at == 0 for name, at in _coordinates(dims, rank).items() if name not in apart)


@cache
def _coordinates(dims: ParallelDims, rank: int) -> dict[str, int]:
    return dims.coordinates(rank)


@cache
def _shard(dims: ParallelDims, rank: int) -> int:
    return dims.index("shard", rank)


def tensor_axis(name: str) -> int | None:
    """Return the axis that tensor parallelism divides of a tensor of a checkpoint, a weight or a moment of one."""
    name = name.rpartition("/")[2]
    return 0 if _BY_OUTPUTS.fullmatch(name) else 1 if _BY_INPUTS.fullmatch(name) else None


def dims_of(text: str) -> ParallelDims:
    """Read a layout such as `data=1,zero=4,tensor=2`; what is left out is 1.

    zero_stage, if left out, is 3 where there is something to divide: the stages do not differ in a checkpoint.

    Raises:
        UserError: another name, or a value out of range.
    """
    given: dict[str, int] = {}
    for entry in text.split(","):
        name, _, value = (word.strip() for word in entry.partition("="))
        if name not in (*AXES, "zero_stage") or name in given or not value.isdigit():
            raise UserError(f"layout {text!r}: {entry!r} is not understood; give {', '.join(AXES)} or zero_stage once "
                            "each, as in data=1,zero=4")  # fmt: skip
        given[name] = int(value)
    if any(given.get(name, 1) < 1 for name in AXES) or given.get("zero_stage", 0) > 3:
        raise UserError(f"layout {text!r}: degrees must be 1 or above, zero_stage 0, 1, 2 or 3")
    dims = ParallelDims(**given)
    if "zero_stage" not in given and dims.size("shard") > 1:
        dims = ParallelDims(**given, zero_stage=3)
    return dims

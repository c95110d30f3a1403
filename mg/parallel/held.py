"""Tensors of the serial network and what this device has of them: the whole, a block, or a flat part."""

from collections.abc import Callable
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from jaxtyping import Shaped
from mindspore import Parameter, Tensor

from mg.parallel.dims import ParallelDims
from mg.parallel.groups import Groups
from mg.parallel.kernels import Gather
from mg.parallel.pieces import Piece, block_of, piece_of


@dataclass(frozen=True)
class Part:
    """How one parameter of the network on this device comes from the serial network's."""

    shape: tuple[int, ...]
    """In the serial network."""
    axis: int | None = None
    """Axis divided by tensor parallelism; None: every device of a tensor group has it whole."""
    flat: bool = False
    """The network's parameter is a flat part of it itself (stage 3)."""

    def local(self, tensor: int) -> tuple[int, ...]:
        """Shape on one of `tensor` devices before ZeRO divides it."""
        return tuple(n // tensor if i == self.axis else n for i, n in enumerate(self.shape))


@dataclass(frozen=True)
class Held:
    """One tensor; floating ones are float32 in a checkpoint, whatever they are here."""

    param: Parameter | Tensor
    part: Part
    """Its shape in the serial network, and what tensor parallelism divides."""
    flat: bool
    """The value is a flat part of its block, filled up with zeros."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor."""
        return self.part.shape

    @property
    def axis(self) -> int | None:
        """What tensor parallelism divides."""
        return self.part.axis

    @property
    def dtype(self) -> np.dtype:
        """Type in a checkpoint."""
        return np.dtype(np.float32 if self.param.is_floating_point() else ms.dtype_to_nptype(self.param.dtype))

    def whole(self, groups: Groups) -> np.ndarray:
        """Join what the devices have; all of them have to call it. The array is a copy."""
        value, local = self.param, self.part.local(groups.dims.tensor)
        if self.flat:
            row = Gather(groups["shard"]).construct(value.reshape(1, -1)).asnumpy().reshape(-1)
            value = Tensor(row[: int(np.prod(local))].copy())
        if self.axis is None or groups.dims.tensor == 1:
            return on_host(value).reshape(local).copy()
        rows = Gather(groups["tensor"]).construct(value.reshape(1, -1)).asnumpy()
        return np.concatenate([row.reshape(local) for row in rows], self.axis)

    def own(self, dims: ParallelDims, rank: int) -> Shaped[np.ndarray, " k"]:
        """Return the elements of this device's piece (`mg.parallel.pieces.piece_of`)."""
        piece, values = piece_of(self.shape, self.axis, dims, rank), on_host(self.param).reshape(-1)
        start = 0 if self.flat else piece.start - block_of(self.shape, self.axis, dims, rank).start
        return values[start : start + piece.size]

    def fill(self, read: Callable[[Piece], np.ndarray], dims: ParallelDims, rank: int) -> None:
        """Set the value here to what `read` returns of the whole tensor."""
        wanted = (piece_of if self.flat else block_of)(self.shape, self.axis, dims, rank)
        values = read(wanted)
        if self.flat:
            values = np.pad(values, (0, self.param.size - wanted.size))
        self.param.set_data(Tensor(values.reshape(self.param.shape), dtype=self.param.dtype))


def on_host(param: Parameter | Tensor) -> np.ndarray:
    """Return the value, floating ones as float32; it may share memory with the parameter."""
    if param.dtype == ms.bfloat16:
        param = param.float()
    array = param.asnumpy()
    return array.astype(np.float32, copy=False) if np.issubdtype(array.dtype, np.floating) else array

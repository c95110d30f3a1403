"""Collectives with explicit gradients, for tensors of any rank along any axis; of one member, they do nothing.

A gradient depends on what becomes of the result. Where the members go on with different work (other tokens, other
heads), the loss is the sum of what they do, and the gradient is the adjoint: AllGather, ReduceScatter, AllToAll,
Slice. Where all members do the same work with the result, so that each holds the whole gradient already, it must not be
summed again: SumAlike, GatherAlike.
"""

from jaxtyping import Float
from mindspore import Tensor, nn, ops

from mg.errors import UserError
from mg.parallel import kernels
from mg.parallel.groups import Group


@ops.constexpr
def _parted(shape: tuple[int, ...], axis: int, parts: int, name: str) -> tuple[tuple[int, ...], ...]:
    """Shape with the axis as (parts, rest), the order that puts parts first and its inverse, the shape of one part."""
    axis = axis % len(shape)
    if shape[axis] % parts:
        raise UserError(
            f"axis {axis} of length {shape[axis]} cannot be divided among the {parts} devices of parallel.{name}; "
            f"choose a size that is a multiple of {parts}, or a smaller degree"
        )
    piece = (*shape[:axis], shape[axis] // parts, *shape[axis + 1 :])
    split = (*shape[:axis], parts, *piece[axis:])
    first = (axis, *range(axis), *range(axis + 1, len(split)))
    back = (*range(1, axis + 1), 0, *range(axis + 1, len(split)))
    return split, first, back, piece


@ops.constexpr
def _joined(piece: tuple[int, ...], axis: int, parts: int) -> tuple[int, ...]:
    axis = axis % len(piece)
    return (*piece[:axis], piece[axis] * parts, *piece[axis + 1 :])


class _Parts(nn.Cell):
    """Cuts a tensor along an axis into the members' rows, and joins rows along an axis."""

    def __init__(self, group: Group) -> None:
        super().__init__(auto_prefix=False)
        self.parts, self.label = group.size, group.name
        self.transpose = ops.Transpose()

    def cut(self, x: Tensor, axis: int) -> Float[Tensor, "p m"]:
        split, first, _, _ = _parted(x.shape, axis, self.parts, self.label)
        return self.transpose(x.reshape(split), first).reshape(self.parts, -1)

    def join(self, rows: Float[Tensor, "p m"], piece: tuple[int, ...], axis: int) -> Tensor:
        whole = _joined(piece, axis, self.parts)
        _, _, back, _ = _parted(whole, axis, self.parts, self.label)
        return self.transpose(rows.reshape(self.parts, *piece), back).reshape(whole)

    def piece(self, shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
        return _parted(shape, axis, self.parts, self.label)[3]


class _Axis(_Parts):
    """What both directions of the collectives along one axis need."""

    def __init__(self, group: Group, axis: int) -> None:
        super().__init__(group)
        self.axis, self.index = axis, group.index
        self.gather_rows, self.scatter_rows = kernels.Gather(group), kernels.Scatter(group)

    def gathered(self, x: Tensor) -> Tensor:
        return self.join(self.gather_rows(x.reshape(1, -1)), x.shape, self.axis)

    def scattered(self, x: Tensor) -> Tensor:
        return self.scatter_rows(self.cut(x, self.axis)).reshape(self.piece(x.shape, self.axis))

    def own(self, x: Tensor) -> Tensor:
        rows = self.cut(x, self.axis)
        return ops.slice(rows, (self.index, 0), (1, rows.shape[1])).reshape(self.piece(x.shape, self.axis))

    def alone(self, x: Tensor) -> Tensor:
        return self.join(self.gather_rows.alone(x.reshape(1, -1)), x.shape, self.axis)


class AllGather(_Axis):
    """Join the members' parts along an axis; gradient: summed over the members, own part of it."""

    def construct(self, x: Tensor) -> Tensor:
        return self.gathered(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """See the class."""
        return (self.scattered(dout),)


class ReduceScatter(_Axis):
    """Sum over the members, own part of it along an axis; gradient: the members' parts joined."""

    def construct(self, x: Tensor) -> Tensor:
        return self.scattered(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """See the class."""
        return (self.gathered(dout),)


class Slice(_Axis):
    """Own part along an axis of what all members have; gradient: zero elsewhere, to be summed with the others'."""

    def construct(self, x: Tensor) -> Tensor:
        return self.own(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """See the class."""
        return (self.alone(dout),)


class GatherAlike(_Axis):
    """Join the members' parts along an axis for work that all do alike; gradient: own part."""

    def construct(self, x: Tensor) -> Tensor:
        return self.gathered(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """See the class."""
        return (self.own(dout),)


class AllToAll(_Parts):
    """Exchange: cut along one axis, the parts of all members joined along another; gradient: the way back.

    Args:
        group: the members.
        split: axis that is cut.
        join: axis that grows.
    """

    def __init__(self, group: Group, split: int, join: int) -> None:
        super().__init__(group)
        self.split_axis, self.join_axis = split, join
        self.exchange = kernels.Exchange(group)

    def swapped(self, x: Tensor, split: int, join: int) -> Tensor:
        """Exchange along two axes."""
        return self.join(self.exchange(self.cut(x, split)), self.piece(x.shape, split), join)

    def construct(self, x: Tensor) -> Tensor:
        return self.swapped(x, self.split_axis, self.join_axis)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """See the class."""
        return (self.swapped(dout, self.join_axis, self.split_axis),)


class AllReduce(nn.Cell):
    """Sum over the members, each of which goes its own way with it; gradient: the sum, too."""

    def __init__(self, group: Group) -> None:
        super().__init__(auto_prefix=False)
        self.sum = kernels.Sum(group)

    def construct(self, x: Tensor) -> Tensor:
        return self.sum(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """See the class."""
        return (self.sum(dout),)


class SumAlike(nn.Cell):
    """Sum over the members for work that all do alike (a loss, say); gradient: unchanged."""

    def __init__(self, group: Group) -> None:
        super().__init__(auto_prefix=False)
        self.sum = kernels.Sum(group)

    def construct(self, x: Tensor) -> Tensor:
        return self.sum(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """See the class."""
        return (dout,)


class Broadcast(nn.Cell):
    """One member's value for all; gradient: the sum at that member, zero at the others.

    Args:
        group: the members.
        root: place of that member in the group.
    """

    def __init__(self, group: Group, root: int = 0) -> None:
        super().__init__(auto_prefix=False)
        self.spread, self.sum = kernels.Spread(group, root), kernels.Sum(group)

    def construct(self, x: Tensor) -> Tensor:
        return self.spread(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """See the class."""
        return (self.spread.fill(self.sum(dout), self.spread.elsewhere, 0.0),)

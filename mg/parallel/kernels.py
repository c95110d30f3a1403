"""What the processes of a group can do together, without gradients: the backend's collectives, or sums alone.

Every operand is a matrix whose rows belong to the members in their order. MindSpore's CPU has a sum over a group and
little else, so there the others are built from it; elsewhere they are the backend's own.

Collectives that do not depend on each other run in the order of the compiled graph, and this must be the same on all
ranks. So a rank may show in a graph as the value of a constant, but never in its structure: own rows are put in place
with a mask, not with a list of tensors as long as the rank.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import mindspore as ms
import numpy as np
from jaxtyping import Bool, Float
from mindspore import Tensor, nn, ops

from mg.parallel.groups import Group

KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast")


class Traffic:
    """Calls and bytes of collectives, by kind and name of the group; the bytes are those of one member's operand."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[str, str]] = Counter()
        self.bytes: Counter[tuple[str, str]] = Counter()

    def add(self, kind: str, group: str, size: int) -> None:
        """Count one call."""
        self.calls[kind, group] += 1
        self.bytes[kind, group] += size


_counting: list[Traffic] = []


@contextmanager
def counted() -> Iterator[Traffic]:
    """Count the collectives that run inside the block, in PyNative mode: a compiled graph runs without Python."""
    traffic = Traffic()
    _counting.append(traffic)
    try:
        yield traffic
    finally:
        _counting.remove(traffic)


@ms.ops.constexpr
def _note(kind: str, group: str, size: int, width: int) -> int:
    if ms.get_context("mode") == ms.PYNATIVE_MODE:
        for traffic in _counting:
            traffic.add(kind, group, size * width)
    return size


@ms.ops.constexpr
def _width(dtype: ms.Type) -> int:
    return ms.Tensor(0, dtype).itemsize


def other_rows(group: Group) -> Bool[Tensor, "p 1"]:
    """Mask of the rows that are not this member's."""
    return Tensor(np.arange(group.size).reshape(-1, 1) != group.index)


class _Kernel(nn.Cell):
    """One collective on a group."""

    kind = ""

    def __init__(self, group: Group) -> None:
        super().__init__(auto_prefix=False)
        self.name, self.label, self.size, self.index = group.handle, group.name, group.size, group.index
        self.native = group.native
        self.sum = ops.AllReduce(ops.ReduceOp.SUM, group.handle) if group.size > 1 else None
        self.fill, self.others = ops.MaskedFill(), other_rows(group)

    def alone(self, row: Float[Tensor, "1 m"]) -> Float[Tensor, "p m"]:
        """Put a row in this member's place, zeros in all others."""
        return self.fill(row, self.others, 0.0)


class Sum(_Kernel):
    """Sum over the members: (...) -> (...)."""

    def construct(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if self.size == 1:
            return x
        _note("all_reduce", self.label, x.size, _width(x.dtype))
        return self.sum(x)


class Gather(_Kernel):
    """The members' rows one above the other: (1, m) -> (size, m)."""

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        self.gather = ops.AllGather(group.handle) if group.native and group.size > 1 else None

    def construct(self, x: Float[Tensor, "1 m"]) -> Float[Tensor, "p m"]:
        if self.size == 1:
            return x
        _note("all_gather", self.label, x.size, _width(x.dtype))
        if self.native:
            return self.gather(x)
        return self.sum(self.alone(x))


class Scatter(_Kernel):
    """Own row of the sum over the members: (size, m) -> (1, m)."""

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        self.scatter = ops.ReduceScatter(ops.ReduceOp.SUM, group.handle) if group.native and group.size > 1 else None

    def construct(self, x: Float[Tensor, "p m"]) -> Float[Tensor, "1 m"]:
        if self.size == 1:
            return x
        _note("reduce_scatter", self.label, x.size, _width(x.dtype))
        if self.native:
            return self.scatter(x)
        return ops.slice(self.sum(x), (self.index, 0), (1, x.shape[1]))


class Exchange(_Kernel):
    """Row j of member i becomes row i of member j: (size, m) -> (size, m)."""

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        self.exchange = ops.AlltoAll(group.size, 0, 0, group.handle) if group.native and group.size > 1 else None

    def construct(self, x: Float[Tensor, "p m"]) -> Float[Tensor, "p m"]:
        if self.size == 1:
            return x
        _note("all_to_all", self.label, x.size, _width(x.dtype))
        if self.native:
            return self.exchange(x)
        p, m = self.size, x.shape[1]
        rows = self.sum(self.alone(x.reshape(1, p * m)))
        return ops.slice(rows, (0, self.index * m), (p, m))


class Spread(_Kernel):
    """The value of one member for all: (...) -> (...).

    Args:
        group: the members.
        root: place of that member in the group.
    """

    def __init__(self, group: Group, root: int = 0) -> None:
        super().__init__(group)
        self.elsewhere = Tensor(group.index != root)
        self.spread = ops.Broadcast(group.ranks[root], group.handle) if group.native and group.size > 1 else None

    def construct(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if self.size == 1:
            return x
        _note("broadcast", self.label, x.size, _width(x.dtype))
        if self.native:
            return self.spread((x,))[0]
        return self.sum(self.fill(x, self.elsewhere, 0.0))

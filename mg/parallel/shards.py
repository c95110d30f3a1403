"""Gradients and parameters divided among devices (ZeRO): summed gradients, global norm, owned parts, whole weights.

The optimizer works on what a device owns, whatever that is: whole parameters without ZeRO, or flat parts of equal
length, filled up with zeros that stay zero. Collectives take many parameters at once, in buckets.
"""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from jaxtyping import Float
from mindspore import Parameter, ParameterTuple, Tensor, mint, nn, ops

from mg.parallel.groups import Groups
from mg.parallel.held import Held, Part
from mg.parallel.kernels import Gather, Scatter, Sum
from mg.parallel.pieces import divides, part_length

BUCKET = 1 << 24
"""Elements that one collective takes at once."""


def flat_part(value: np.ndarray, parts: int, index: int) -> Float[np.ndarray, " k"]:
    """One of several equal flat parts of an array, filled up with zeros."""
    length = part_length(value.size, parts)
    padded = np.zeros(parts * length, np.float32)
    padded[: value.size] = value.reshape(-1)
    return padded[index * length : (index + 1) * length]


def buckets(keys: Sequence[object], sizes: Sequence[int], limit: int = BUCKET) -> list[list[int]]:
    """Numbers of the parameters that go together: those of one key, up to a limit."""
    made: list[list[int]] = []
    filled: dict[object, tuple[list[int], int]] = {}
    for i, (key, size) in enumerate(zip(keys, sizes, strict=True)):
        bucket, total = filled.get(key, (None, 0))
        if bucket is None or total + size > limit:
            bucket, total = [], 0
            made.append(bucket)
        bucket.append(i)
        filled[key] = (bucket, total + size)
    return made


class Shards:
    """What this device owns of the parameters trained, and how it is kept in step with the others.

    Args:
        params: the parameters of the network on this device.
        parts: one per parameter.
        groups: of this device.
        limit: see `BUCKET`.
    """

    def __init__(
        self, params: Sequence[Parameter], parts: Sequence[Part], groups: Groups, limit: int = BUCKET
    ) -> None:
        self.params, self.parts, self.groups = tuple(params), tuple(parts), groups
        self.stage = groups.dims.zero_stage
        shard = groups["shard"]
        self.divides = divides(groups.dims)
        tensor = groups.dims.tensor
        sizes = [int(np.prod(part.local(tensor))) for part in parts]
        lengths = [part_length(size, shard.size if self.divides else 1) for size in sizes]
        keys = [(part.axis is not None, part.flat) for part in parts]
        chosen = buckets(keys, lengths, max(1, limit // (shard.size if self.divides else 1)))
        self.owned = ParameterTuple([self._own(*pair) for pair in zip(params, parts, strict=True)])
        self.reduce = Reduce(parts, sizes, lengths, chosen, groups, self.divides)
        self.norm = Norm([part.axis is not None for part in parts], groups, self.divides)
        self._publish = None
        if self.divides and not all(part.flat for part in parts):
            self._publish = Publish(self.params, self.owned, parts, sizes, lengths, chosen, groups)

    @property
    def cells(self) -> tuple[nn.Cell, ...]:
        """Graphs of its own."""
        found = (self.reduce, self.norm, self._publish)
        return tuple(cell for cell in found if cell is not None)

    def publish(self) -> None:
        """Bring the network's parameters up to what their owners have now."""
        if self._publish is not None:
            self._publish()

    def take(self) -> None:
        """Bring what is owned up to the network's parameters, after these were loaded."""
        if not self.divides:
            return
        group = self.groups["shard"]
        for param, own, part in zip(self.params, self.owned, self.parts, strict=True):
            if not part.flat:
                own.set_data(Tensor(flat_part(param.asnumpy(), group.size, group.index)))

    @property
    def is_whole(self) -> bool:
        """Whether every parameter is on this device as the serial network has it, with all of the optimizer's state."""
        return not self.divides and all(part.axis is None and not part.flat for part in self.parts)

    def held(self, place: int, value: Parameter | Tensor) -> Held:
        """Tell how the devices divide a tensor that is as large as an owned parameter: a moment, for instance."""
        part = self.parts[place]
        return Held(value, part, part.flat or self.divides)

    def _own(self, param: Parameter, part: Part) -> Parameter:
        if not self.divides or part.flat:
            return param
        group = self.groups["shard"]
        value = Tensor(flat_part(param.asnumpy(), group.size, group.index))
        return Parameter(value, name=f"shard.{param.name}", requires_grad=False)


class Reduce(nn.Cell):
    """Sum gradients over the devices, each then has the sum for what it owns: construct(*gradients) -> gradients.

    Gradients of flat parts (stage 3) are summed over the shards already, by the cells that use them.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        sizes: Sequence[int],
        lengths: Sequence[int],
        chosen: Sequence[Sequence[int]],
        groups: Groups,
        divides: bool,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.lengths, self.sizes = tuple(lengths), tuple(sizes)
        self.shapes = tuple(part.local(groups.dims.tensor) for part in parts)
        self.count, self.divides, self.parts = len(parts), divides, groups["shard"].size if divides else 1
        self.buckets = tuple(tuple(bucket) for bucket in chosen)
        self.flat = tuple(parts[bucket[0]].flat for bucket in chosen)
        self.split = tuple(parts[bucket[0]].axis is not None for bucket in chosen)
        order = [i for bucket in chosen for i in bucket]
        self.order = tuple(order.index(i) for i in range(self.count))
        self.scatter, self.over_tensor = Scatter(groups["shard"]), Sum(groups["tensor"])
        self.over_rest = Sum(groups["data" if divides else "replica"])

    def construct(self, *grads: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        done = ()
        for b in range(len(self.buckets)):
            rows = self._rows(grads, b)  # (parts, k), or (1, k) of flat parts
            if self.divides and not self.flat[b]:
                rows = self.scatter(rows)
            if not self.split[b]:
                rows = self.over_tensor(rows)
            done += self._cut(self.over_rest(rows), b)
        found = ()
        for i in range(self.count):
            found += (done[self.order[i]],)
        return found

    def _rows(self, grads: tuple[Tensor, ...], b: int) -> Float[Tensor, "p k"]:
        columns = []
        for i in self.buckets[b]:
            if self.flat[b]:
                columns.append(grads[i].reshape(1, -1))
            else:
                columns.append(_padded(grads[i].reshape(1, -1), self.parts * self.lengths[i]).reshape(self.parts, -1))
        return columns[0] if len(columns) == 1 else mint.cat(columns, 1)

    def _cut(self, row: Float[Tensor, "1 k"], b: int) -> tuple[Tensor, ...]:
        found, start = (), 0
        for i in self.buckets[b]:
            piece = ops.slice(row, (0, start), (1, self.lengths[i]))
            found += (piece.reshape(-1) if self.divides else piece.reshape(self.shapes[i]),)
            start += self.lengths[i]
        return found


def _padded(row: Float[Tensor, "1 k"], length: int) -> Float[Tensor, "1 n"]:
    missing = length - row.shape[1]
    return row if missing == 0 else mint.cat((row, ops.zeros((1, missing), row.dtype)), 1)


class Norm(nn.Cell):
    """Global L2 norm of summed gradients, every element counted once: construct(*gradients) -> float32 ().

    Args:
        split: per gradient, whether the devices of a tensor group have different parts of it.
        groups: of this device.
        divides: whether the devices of a shard group do.
    """

    def __init__(self, split: Sequence[bool], groups: Groups, divides: bool) -> None:
        super().__init__(auto_prefix=False)
        self.half_square = ops.L2Loss()
        self.split, self.divides = tuple(split), divides
        self.over_tensor, self.over_shards = Sum(groups["tensor"]), Sum(groups["shard"])

    def construct(self, *grads: Tensor) -> Float[Tensor, ""]:
        """See the class."""
        own, whole = ops.zeros((1,), ms.float32), ops.zeros((1,), ms.float32)
        for i in range(len(self.split)):
            square = self.half_square(grads[i]).reshape(1)
            if self.split[i]:
                own = own + square
            else:
                whole = whole + square
        total = self.over_tensor(own) + whole
        if self.divides:
            total = self.over_shards(total)
        return ops.sqrt(2.0 * total).reshape(())


class Publish(nn.Cell):
    """Set whole parameters to the parts of their owners: construct() -> True."""

    def __init__(
        self,
        params: Sequence[Parameter],
        owned: Sequence[Parameter],
        parts: Sequence[Part],
        sizes: Sequence[int],
        lengths: Sequence[int],
        chosen: Sequence[Sequence[int]],
        groups: Groups,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.params, self.owned = ParameterTuple(list(params)), ParameterTuple(list(owned))
        self.shapes = tuple(part.local(groups.dims.tensor) for part in parts)
        self.sizes, self.lengths = tuple(sizes), tuple(lengths)
        self.buckets = tuple(tuple(bucket) for bucket in chosen if not parts[bucket[0]].flat)
        self.gather, self.parts = Gather(groups["shard"]), groups["shard"].size

    def construct(self) -> bool:
        """See the class."""
        for bucket in self.buckets:
            row = []
            for i in bucket:
                row.append(self.owned[i].reshape(1, -1))
            rows = self.gather(row[0] if len(row) == 1 else mint.cat(row, 1))  # (parts, k)
            start = 0
            for i in bucket:
                columns = ops.slice(rows, (0, start), (self.parts, self.lengths[i])).reshape(1, -1)
                whole = ops.slice(columns, (0, 0), (1, self.sizes[i])).reshape(self.shapes[i])
                ops.assign(self.params[i], whole)
                start += self.lengths[i]
        return True

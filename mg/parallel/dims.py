"""The mesh of devices: degrees, coordinates and groups, as pure functions of the rank."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mg.config.parallel import AXES, ParallelConfig
from mg.errors import UserError

UNIONS: dict[str, tuple[str, ...]] = {
    "batch": ("data", "zero"),
    "tokens": ("context", "sequence", "tensor"),
    "shard": ("zero", "context", "sequence"),
    "replica": ("data", "zero", "context", "sequence"),
    "world": AXES,
}
"""Groups over several axes. batch: its members have different rows of the batch. tokens: different tokens of the same
rows. shard: share what ZeRO divides. replica: all that use the same part of a weight that is split by tensor."""

GROUPS = (*AXES, *UNIONS)
"""Names of all groups."""


@dataclass(frozen=True, kw_only=True)
class ParallelDims:
    """Degrees of parallelism of a run with `world` devices; see `mg.config.parallel.ParallelConfig`.

    Ranks are numbered along the axes of `AXES`, the last one fastest.

    Raises:
        UserError: the product is not the number of devices, or zero_stage has nothing to divide among.
    """

    data: int = 1
    zero: int = 1
    context: int = 1
    sequence: int = 1
    tensor: int = 1
    zero_stage: int = 0

    @classmethod
    def of(cls, config: ParallelConfig, world: int) -> "ParallelDims":
        """Fit a configuration to a number of devices: -1 becomes what is left."""
        degrees = {name: getattr(config, name) for name in AXES}
        fixed = math.prod(value for value in degrees.values() if value != -1)
        shown = " x ".join(f"{name}={value}" for name, value in degrees.items() if value not in (1, -1)) or "all 1"
        free = next((name for name, value in degrees.items() if value == -1), None)
        if free is None and fixed != world:
            raise UserError(
                f"parallel: {shown} is {fixed} devices, the run has {world}; change a degree, set one to -1 (what is "
                f"left), or start {fixed} processes"
            )
        if world % fixed:
            raise UserError(
                f"parallel: {world} devices cannot be divided by {shown} ({fixed}); change these degrees, or start a "
                f"multiple of {fixed} processes"
            )
        if free is not None:
            degrees[free] = world // fixed
        dims = cls(**degrees, zero_stage=config.zero_stage)
        if config.zero_stage and world > 1 and dims.size("shard") == 1:
            raise UserError(
                f"parallel.zero_stage={config.zero_stage} has nothing to divide among: zero, context and sequence are "
                "all 1; use zero in place of data, or set zero_stage to 0"
            )
        return dims

    @property
    def world(self) -> int:
        """Number of devices."""
        return self.size("world")

    def size(self, group: str) -> int:
        """Members of a group: an axis or one of `UNIONS`."""
        return math.prod(getattr(self, axis) for axis in _axes(group))

    def coordinates(self, rank: int) -> dict[str, int]:
        """Position of a rank along every axis."""
        if not 0 <= rank < self.world:
            raise ValueError(f"rank {rank} of {self.world}")
        found = {}
        for axis in reversed(AXES):
            rank, found[axis] = divmod(rank, getattr(self, axis))
        return {axis: found[axis] for axis in AXES}

    def rank(self, coordinates: Mapping[str, int]) -> int:
        """Rank at a position; axes left out are at 0."""
        rank = 0
        for axis in AXES:
            at = coordinates.get(axis, 0)
            if not 0 <= at < getattr(self, axis):
                raise ValueError(f"{axis}={at} of {getattr(self, axis)}")
            rank = rank * getattr(self, axis) + at
        return rank

    def members(self, group: str, rank: int) -> tuple[int, ...]:
        """Ranks of the group that a rank belongs to, in ascending order."""
        axes = _axes(group)
        own = self.coordinates(rank)
        return tuple(
            other for other in range(self.world)
            if all(at == own[axis] for axis, at in self.coordinates(other).items() if axis not in axes)
        )  # fmt: skip

    def index(self, group: str, rank: int) -> int:
        """Position of a rank within its group."""
        return self.members(group, rank).index(rank)

    def groups(self, group: str) -> tuple[tuple[int, ...], ...]:
        """All groups of one name: every rank is in exactly one."""
        return tuple(sorted({self.members(group, rank) for rank in range(self.world)}))

    def batch_rows(self, rank: int, rows: int) -> slice:
        """Rows of a global batch that belong to a rank: r::R, r and R its place in the group `batch` and its size.

        Ranks that differ in context, sequence or tensor alone get the same rows, and with them the same noise and drop
        masks.

        Raises:
            UserError: the rows cannot be divided evenly.
        """
        parts = self.size("batch")
        if rows % parts:
            raise UserError(
                f"a global batch of {rows} rows cannot be divided among data x zero = {parts} devices; choose a "
                f"batch size that is a multiple of {parts}, or other degrees"
            )
        return slice(self.index("batch", rank), rows, parts)


def _axes(group: str) -> tuple[str, ...]:
    if group in AXES:
        return (group,)
    if group not in UNIONS:
        raise ValueError(f"group {group}: choose from {', '.join(GROUPS)}")
    return UNIONS[group]

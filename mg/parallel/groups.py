"""The groups of processes a rank belongs to, and this process' place among all."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from mg import device
from mg.parallel.dims import ParallelDims


@dataclass(frozen=True)
class Group:
    """Members of one group as one of them sees it."""

    name: str
    """One of `mg.parallel.dims.GROUPS`."""
    ranks: tuple[int, ...]
    """Members in ascending order; more than one of them talk to each other under `handle`."""
    index: int
    """Own place among them."""
    handle: str
    """MindSpore's name of the group."""
    native: bool = False
    """Use the backend's own collectives; False: only its sum, from which the others are built (CPU)."""

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self.ranks)


class Groups:
    """The groups of one rank by name; MindSpore's are made when first asked for, one per set of members.

    All members have to ask for a group in the same order.

    Args:
        dims: the mesh.
        rank: own rank.
        create: makes a group of MindSpore's, given its name and ranks.
        native: see `Group`; None chooses by backend, the only place that does.
    """

    def __init__(
        self,
        dims: ParallelDims,
        rank: int,
        create: Callable[[str, list[int]], None] | None = None,
        native: bool | None = None,
    ) -> None:
        self.dims, self.rank = dims, rank
        self._create = create or _create
        self._native = device.is_ascend() if native is None else native
        self._handles: dict[tuple[int, ...], str] = {}

    def __getitem__(self, name: str) -> Group:
        """Return the group of a name that this rank is a member of."""
        ranks = self.dims.members(name, self.rank)
        if ranks not in self._handles:
            handle = "mg-" + "-".join(map(str, ranks)) if len(ranks) <= 8 else f"mg-{name}-{ranks[0]}"
            if len(ranks) > 1:
                self._create(handle, list(ranks))
            self._handles[ranks] = handle
        return Group(name, ranks, ranks.index(self.rank), self._handles[ranks], self._native)


def join_world() -> tuple[int, int]:
    """Join the other processes that `msrun` started; return own rank and their number, (0, 1) without `msrun`.

    In msrun's scheduler, a process that runs the same program, it does not return before the others have ended.
    """
    if not is_launched():
        return 0, 1
    from mindspore import communication

    if not communication.GlobalComm.INITED:
        communication.init()
    return communication.get_rank(), communication.get_group_size()


def is_launched() -> bool:
    """Tell whether `msrun` started this process as one of several."""
    return os.environ.get("MS_ROLE") in ("MS_WORKER", "MS_SCHED") and int(os.environ.get("MS_WORKER_NUM", "1")) > 1


def _create(handle: str, ranks: list[int]) -> None:
    from mindspore import communication

    communication.create_group(handle, ranks)

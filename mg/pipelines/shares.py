"""A list of work shared out among processes, and how what each of them reports comes together."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mg.files import atomic_path
from mg.log import get_logger
from mg.parallel.mesh import Mesh

Item = TypeVar("Item")
_LOOK_SECONDS = 0.2


class Share:
    """This process' part of a list. What the parts report meets in files of the output folder, which all must see.

    Files rather than collectives: nobody knows how long the others take, and a collective has a time limit and cannot
    be interrupted.

    Args:
        mesh: the processes; None: one does everything.
        folder: of the output, on all processes the same. All have to come here.

    Attributes:
        count: number of shares.
        index: which one is this process': number `index`, `index + count` and so on of the list.
        writes: whether this process writes the results of its share: others may work on the same share with it.
        leads: whether it writes what is about all shares.
    """

    def __init__(self, mesh: Mesh | None, folder: Path) -> None:
        self.count = mesh.groups["batch"].size if mesh else 1
        self.index = mesh.groups["batch"].index if mesh else 0
        self.writes = mesh is None or mesh.groups["tokens"].index == 0
        self.leads = mesh is None or mesh.leads
        self._folder = folder
        self._own: tuple[dict, dict] = ({}, {})
        if mesh is None:
            return
        if self.leads:
            for path in folder.glob(".share-*"):  # of a run that was broken off
                path.unlink(missing_ok=True)
        mesh.total(0.0)  # nobody writes before that

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Cut this share out of a list."""
        return items[self.index :: self.count]

    def within(self, part: int, parts: int) -> tuple[int, int]:
        """Number of this share, and how many there are, of a list of which only every parts-th is to be done."""
        return part + self.index * parts, self.count * parts

    def leave(
        self, report: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None, finished: bool = True
    ) -> None:
        """Report on this share: what JSON can hold, and arrays; not finished is what a failure has left."""
        self._own = json.loads(json.dumps(report)), dict(arrays or {})
        if self.writes and not self.leads:
            with atomic_path(self._path(self.index, finished)) as temporary:
                np.savez(temporary, report=np.array(json.dumps(report)), **self._own[1])

    def wait(self) -> None:
        """Wait, on the process that leads, until all have finished; one that fails is the launcher's to tell."""
        for index in range(1, self.count) if self.leads else ():
            path = self._path(index)
            if not path.exists():
                get_logger().info("waiting for share %d of %d", index + 1, self.count)
            while not path.exists():
                time.sleep(_LOOK_SECONDS)

    def collect(self) -> list[tuple[dict, dict[str, np.ndarray]]]:
        """Return what has been left: on the process that leads of all shares, on the others of their own."""
        found = [self._own]
        for index in range(1, self.count) if self.leads else ():
            for path in filter(Path.exists, (self._path(index), self._path(index, finished=False))):
                with np.load(path, allow_pickle=False) as stored:
                    arrays = {name: stored[name] for name in stored.files if name != "report"}
                    found.append((json.loads(str(stored["report"])), arrays))
                path.unlink()
        return found

    def _path(self, index: int, finished: bool = True) -> Path:
        return self._folder / f".share-{index}{'' if finished else '-unfinished'}.npz"


def in_order(found: Sequence[tuple[dict, dict]], name: str) -> list:
    """Join the lists of a name in all reports, of (number, value), by number."""
    return [value for _, value in sorted((pair for report, _ in found for pair in report[name]), key=lambda p: p[0])]

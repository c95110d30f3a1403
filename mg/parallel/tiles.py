"""Tiles of a video that several processes send through a network together."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np
from mindspore import Tensor

from mg.parallel.groups import Group
from mg.parallel.kernels import Gather


class SharedTiles:
    """As `map`, with the work shared out: each member runs one of as many tiles as there are members, all get all.

    Members have to be given the same tiles. No result is changed on its way: what is made of them has the bits that it
    has on one device.

    Args:
        group: the members.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self._gather = Gather(group)

    def __call__(
        self, run: Callable[[np.ndarray], np.ndarray], tiles: Iterable[np.ndarray]
    ) -> Iterator[np.ndarray]:
        """Yield the results, FP32 with five axes, in the order of the tiles."""
        rest, size, index = iter(tiles), self._group.size, self._group.index
        while turn := list(islice(rest, size)):
            own = run(turn[index]) if index < len(turn) else np.zeros((0,) * 5, np.float32)
            yield from self._exchanged(own)[: len(turn)]

    def _exchanged(self, own: np.ndarray) -> list[np.ndarray]:
        """Every member's result; at the end of a video they may have different shapes."""
        shapes = self._rows(np.float32(own.shape)).astype(int)
        sizes = shapes.prod(1)
        padded = np.zeros(sizes.max(), np.float32)
        padded[: own.size] = own.reshape(-1)
        rows = self._rows(padded)
        return [row[:size].reshape(shape) for row, size, shape in zip(rows, sizes, shapes, strict=True)]

    def _rows(self, own: np.ndarray) -> np.ndarray:
        return self._gather(Tensor(own.reshape(1, -1))).asnumpy()

"""Exchange of cells that a backend has no kernel for, in networks that are not ours."""

from collections.abc import Callable, Mapping

import mindspore as ms
from jaxtyping import Float, Int
from mindspore import Tensor, mint, nn

from mg import device


class GatherEmbedding(nn.Cell):
    """Rows of a table by index; holds the very parameter of the embedding that it stands for."""

    def __init__(self, embedding: nn.Cell) -> None:
        super().__init__()
        self.weight = embedding.weight

    def construct(self, index: Int[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        return ms.ops.gather(self.weight, index, 0)


class Gelu(nn.Cell):
    """x * Phi(x), exactly."""

    def construct(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return ms.ops.gelu(x, approximate="none")


Table = Mapping[type[nn.Cell], Callable[[nn.Cell], nn.Cell]]

PORTABLE: Table = {mint.nn.Embedding: GatherEmbedding, mint.nn.GELU: lambda _: Gelu()}
"""Cells of MindSpore whose kernels only Ascend has, each with the maker of its substitute."""


def exchange_cells(network: nn.Cell, table: Table = PORTABLE, always: bool = False) -> int:
    """Exchange the cells inside a network that are of a type in the table; returns how many places changed.

    A cell used in several places stays one cell. Nothing happens on Ascend, which has the kernels, unless `always`.

    Args:
        network: altered in place; its parameters keep their names.
        table: type of cell to a function that makes the substitute from it.
        always: exchange on every backend.
    """
    if device.is_ascend() and not always:
        return 0
    names = {id(param): param.name for param in network.get_parameters()}
    made: dict[int, nn.Cell] = {}
    changed = 0
    for _, parent in list(network.cells_and_names()):
        for place, (name, child) in enumerate(list(parent.name_cells().items())):
            if type(child) not in table:
                continue
            if id(child) not in made:
                made[id(child)] = table[type(child)](child)
            if isinstance(parent, nn.SequentialCell | nn.CellList):  # these keep a list besides
                parent[place] = made[id(child)]
            else:
                setattr(parent, name, made[id(child)])
            changed += 1
    for param in network.get_parameters():  # setting a cell puts its prefix before the names once more
        param.name = names.get(id(param), param.name)
    return changed

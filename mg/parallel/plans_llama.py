"""Parallelism of the transformer: applied to the plain network, in place."""

from mindspore import nn

from mg.errors import UserError
from mg.models.llama.modules import Block, FinalLayer
from mg.models.llama.network import LlamaModel
from mg.ops import Linear, exchange_cells
from mg.parallel.cells import ParallelBlock, ParallelFinalLayer, ParallelLinear, Parts
from mg.parallel.groups import Groups


def parallelise_llama(network: LlamaModel, groups: Groups) -> Parts:
    """Divide a transformer's heads, widths, tokens and, at stage 3, weights among devices; tell what was divided.

    The order is tensor parallelism, sequence and context parallelism, recomputation, then ZeRO. Every parameter keeps
    its name. The gradient of a parameter on one device is a part of a sum: see `mg.parallel.shards.Reduce`.

    Raises:
        UserError: heads or widths cannot be divided evenly. Tokens are checked when a graph is compiled.
    """
    dims, parts = groups.dims, Parts()
    recomputed = [getattr(block, "_recompute_cell", None) is not None for block in network.layers]
    if dims.size("tokens") > 1:
        first = network.layers[0]
        table = {
            Block: lambda block: ParallelBlock(block, block is first, groups, parts),
            FinalLayer: lambda layer: ParallelFinalLayer(layer, groups),
        }
        exchange_cells(network, table, always=True)
    if dims.zero_stage == 3 and dims.size("shard") > 1:
        exchange_cells(network, {Linear: lambda layer: ParallelLinear(layer, None, groups, parts)}, always=True)
        for _, cell in network.cells_and_names():
            if isinstance(cell, ParallelLinear):
                cell.share_out(groups, parts)
    for block, again in zip(network.layers, recomputed, strict=True):
        if again and isinstance(block, ParallelBlock):
            block.recompute()
    return parts


def check_plain(network: nn.Cell, groups: Groups) -> Parts:
    """Say what data parallelism and ZeRO 1 and 2 divide of a network they need to know nothing of: nothing.

    Raises:
        UserError: a degree or stage that needs a plan for the network.
    """
    dims = groups.dims
    if dims.size("tokens") > 1:
        raise UserError(
            f"parallel: context, sequence and tensor divide transformers only, not a {type(network).__name__}; set "
            "them to 1"
        )
    if dims.zero_stage == 3:
        raise UserError(f"parallel.zero_stage=3 is for transformers, not for a {type(network).__name__}; choose 2")
    return Parts()

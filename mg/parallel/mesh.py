"""One process' part in a parallel run: what it does to network, loss and parameters."""

from collections.abc import Mapping, Sequence

import numpy as np
from mindspore import Parameter, Tensor, nn

from mg.config.parallel import ParallelConfig
from mg.errors import UserError
from mg.models.llama.network import LlamaModel
from mg.models.tae.network import TemporalAutoencoder
from mg.parallel.cells import Parts
from mg.parallel.dims import ParallelDims
from mg.parallel.groups import Groups, join_world
from mg.parallel.held import Held
from mg.parallel.kernels import Sum
from mg.parallel.plans_llama import check_plain, parallelise_llama
from mg.parallel.shards import Shards
from mg.parallel.tiles import SharedTiles
from mg.parallel.weighted import BatchLoss


class Mesh:
    """This process among all that take part.

    Args:
        config: degrees and stage.
        rank: own number.
        world: number of processes.

    Raises:
        UserError: the degrees do not fit the number of processes.
    """

    def __init__(self, config: ParallelConfig, rank: int, world: int) -> None:
        self.dims = ParallelDims.of(config, world)
        self.rank = rank
        self.groups = Groups(self.dims, rank)
        self._parts = Parts()

    @property
    def leads(self) -> bool:
        """Whether this process writes checkpoints and records for all."""
        return self.rank == 0

    def total(self, *values: float) -> list[float]:
        """Add up numbers over all processes; each of them has to call it at the same place."""
        return Sum(self.groups["world"]).construct(Tensor(np.array(values, np.float32))).asnumpy().tolist()

    @classmethod
    def joined(cls, config: ParallelConfig) -> "Mesh | None":
        """Join the processes that `msrun` started; None without it. The device has to be set up before.

        Raises:
            UserError: the degrees do not fit the number of processes, which is 1 without it.
        """
        rank, world = join_world()
        if world == 1:
            ParallelDims.of(config, world)
            return None
        return cls(config, rank, world)

    def apply(self, network: nn.Cell) -> None:
        """Divide a network among the devices, in place; its parameters keep their names.

        Raises:
            UserError: something cannot be divided evenly, or not at all.
        """
        divided = parallelise_llama if isinstance(network, LlamaModel) else check_plain
        self._parts.update(divided(network, self.groups))

    def share_tiles(self, network: TemporalAutoencoder) -> None:
        """Let the devices that work on the same rows share out the tiles that an autoencoder works in, in place.

        Raises:
            UserError: there are several such devices, and it does not work in tiles.
        """
        if self.dims.size("tokens") > 1:
            if not network.use_tile:
                raise UserError(
                    f"parallel: the {self.dims.size('tokens')} devices of context, sequence and tensor would share "
                    "out tiles of an autoencoder; let it work in tiles, or use parallel.data"
                )
            network.map_tiles = SharedTiles(self.groups["tokens"])

    def loss(self, loss: nn.Cell) -> nn.Cell:
        """Return the loss over the rows of all devices."""
        return BatchLoss(loss, self.groups["batch"])

    def shards(self, params: Sequence[Parameter]) -> Shards:
        """Return what this device owns of parameters, those of networks that `apply` has divided among them."""
        return Shards(params, [self._parts.of(param) for param in params], self.groups)

    def held(self, param: Parameter) -> Held:
        """Tell how the devices divide a network's parameter."""
        part = self._parts.of(param)
        return Held(param, part, part.flat)

    def own(self, rows: int) -> range:
        """Return which rows of a global batch of so many are this device's; raises UserError if they do not divide."""
        return range(rows)[self.dims.batch_rows(self.rank, rows)]

    def rows(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Cut this device's rows out of a global batch; every entry but a text has one row per sample.

        Raises:
            UserError: the rows cannot be divided evenly.
            ValueError: entries of different lengths.
        """
        divided = {name: value for name, value in batch.items() if not isinstance(value, str)}  # a bucket's name is one
        lengths = {name: len(value) for name, value in divided.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"entries of a batch must have one row per sample to be divided: {lengths}")
        rows = {name: value[self.dims.batch_rows(self.rank, len(value))] for name, value in divided.items()}
        return {**batch, **rows}

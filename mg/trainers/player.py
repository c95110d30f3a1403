"""What the training loop trains: players, each with a network, a loss and an optimizer of its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from mindspore import nn

from mg.config.trainer import OptimizerConfig


class Memory(Protocol):
    """Numbers an objective carries from step to step; they live on the host and in every checkpoint."""

    def inputs(self, step: int) -> dict[str, np.ndarray]:
        """Return float32 arrays by name for all micro-batches of a step (1 and up): numbers, or switches by rank."""

    def observe(self, step: int, terms: Mapping[str, float]) -> None:
        """Take "loss" and the player's terms of a step whose update was applied; a skipped step is never observed."""

    def state(self) -> dict:
        """Return what a resumed run needs, as JSON values."""

    def restore(self, state: Mapping) -> None:
        """Go on from what `state` returned."""


@dataclass(frozen=True)
class Player:
    """One network trained beside others on the same micro-batches, such as a discriminator beside an autoencoder."""

    name: str
    """Stands before its figures in the logs (`name.loss`) and its files in checkpoints (`name.model`)."""
    network: nn.Cell
    """What is saved, under the names it gives its own parameters."""
    loss: nn.Cell
    """A cell as the trainer's `loss`. Trained are its trainable parameters without those of other players' networks."""
    optimizer: OptimizerConfig
    """Clipping included; the learning rate follows the run's schedule, counted from start_step on."""
    start_step: int = 1
    """First step in which it takes part; until then it is neither compiled, computed nor changed."""
    memory: Memory | None = None
    """Its inputs reach this player's loss alone."""

    def __post_init__(self) -> None:
        """Check the name and the range; raises ValueError."""
        if self.start_step < 1:
            raise ValueError(f"player {self.name}: start_step={self.start_step} must be 1 or above")
        if not self.name.isidentifier():
            raise ValueError(f"player name {self.name!r}: choose letters, digits and underscores")

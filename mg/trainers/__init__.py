"""The one training loop."""

from mg.trainers.feed import BatchSource
from mg.trainers.loop import Trainer
from mg.trainers.player import Memory, Player

__all__ = ["BatchSource", "Memory", "Player", "Trainer"]

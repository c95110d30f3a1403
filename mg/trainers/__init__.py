"""The one training loop."""

from mg.trainers.loop import BatchSource, Trainer

__all__ = ["BatchSource", "Trainer"]

"""How long a run is and how many micro-batches a step has, where that is told in samples or passes over the data."""

import math
from dataclasses import replace

from mg.config.trainer import TrainerConfig
from mg.errors import UserError


def with_budget(config: TrainerConfig, batch_size: int | None, batches_per_epoch: float | None) -> TrainerConfig:
    """Return the settings with `epochs`, `samples` and `global_batch` turned into `steps` and `accumulation`.

    Args:
        config: settings as the user gave them; returned as they are where none of the three is set.
        batch_size: samples of a micro-batch; None where batches have no fixed size.
        batches_per_epoch: micro-batches of one pass over the training data, a whole number or not; None if unknown.

    Raises:
        UserError: a global batch that micro-batches do not divide, or a setting that this training cannot follow.
    """
    for name, known in (("epochs", batches_per_epoch), ("samples", batch_size), ("global_batch", batch_size)):
        if getattr(config, name) and known is None:
            raise UserError(f"train.{name}={getattr(config, name):g}: this training is told its length by train.steps "
                            "and its micro-batches by train.accumulation")
    accumulation = config.accumulation
    if config.global_batch:
        accumulation = _accumulation(config.global_batch, batch_size)
    steps = config.steps
    if config.samples:
        steps = math.ceil(config.samples / (batch_size * accumulation))
    elif config.epochs:
        # Rounded first: 3 * (7 / 3) must be 7 batches, not 8.
        steps = math.ceil(round(config.epochs * batches_per_epoch / accumulation, 6))
    return replace(config, steps=max(steps, 1), accumulation=accumulation, epochs=0.0, samples=0, global_batch=0)


def _accumulation(global_batch: int, batch_size: int) -> int:
    if global_batch % batch_size:
        below = global_batch // batch_size * batch_size
        nearest = [str(size) for size in (below, below + batch_size) if size]
        raise UserError(f"train.global_batch={global_batch} is not a multiple of data.batch_size={batch_size}; "
                        f"the nearest are {' and '.join(nearest)}")
    return global_batch // batch_size

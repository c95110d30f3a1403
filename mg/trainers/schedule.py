"""Learning rate as a pure function of the step."""

import math

from mg.config.trainer import ScheduleConfig


def learning_rate(step: int, peak: float, config: ScheduleConfig, total: int) -> float:
    """Return the learning rate of one step.

    step: 1 for the first step up to `total` for the last one.
    peak: the rate reached at step == config.warmup_steps, and held or left along half a cosine afterwards.
    """
    if step < config.warmup_steps:
        return peak * step / config.warmup_steps
    if config.name == "constant":
        return peak
    done = (step - config.warmup_steps) / max(total - config.warmup_steps, 1)
    return config.end_lr + (peak - config.end_lr) * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))

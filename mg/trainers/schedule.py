"""Learning rate as a pure function of the step."""

import math

from mg.config.trainer import ScheduleConfig


def learning_rate(step: int, peak: float, config: ScheduleConfig, total: int) -> float:
    """Return the learning rate of one step.

    step: 1 for the first step up to `total` for the last one.
    peak: the rate reached at the last step of the warm-up, then held, or left along half a cosine or a straight line.
    """
    warmup = config.warmup_steps or round(config.warmup_ratio * total)
    if step < warmup:
        return peak * step / warmup
    if config.name == "constant":
        return peak
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    left = 1.0 - done if config.name == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return config.end_lr + (peak - config.end_lr) * left

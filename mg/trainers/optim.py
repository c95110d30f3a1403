"""AdamW: one fused kernel per parameter, its bias correction folded into scalars on the host."""

import math

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, ops

from mg.config.trainer import OptimizerConfig

_kernel = ops.AdamWeightDecay()


def adamw_update(
    scalars: tuple[Tensor, ...], scale: Tensor, param: Parameter, first: Parameter, second: Parameter, grad: Tensor
) -> bool:
    """Update one parameter and its two moments in place; `scalars` come from `adamw_scalars`, `scale` clips."""
    rate, beta1, beta2, eps, decay = scalars
    _kernel(param, first, second, rate, beta1, beta2, eps, decay, grad * scale)
    return True


def adamw_scalars(config: OptimizerConfig, lr: float, updates: int) -> tuple[Tensor, ...]:
    """Return the kernel's five scalars for update number `updates` (1 for the first).

    The kernel computes p -= rate * (m / (sqrt(v) + eps) + decay * p) without bias correction. AdamW (Loshchilov and
    Hutter 2019, algorithm 2) is p -= lr * (m / c1) / (sqrt(v / c2) + eps) + lr * wd * p with c = 1 - beta^updates.
    Multiplying through by sqrt(c2) makes the two equal.
    """
    beta1, beta2 = config.betas
    root = math.sqrt(1.0 - beta2**updates)
    correction = root / (1.0 - beta1**updates)
    values = (lr * correction, beta1, beta2, config.eps * root, config.weight_decay / correction)
    return tuple(Tensor(np.float32(value)) for value in values)


def zeros_like(params: ParameterTuple, prefix: str) -> ParameterTuple:
    """Return one float32 zero parameter per parameter, named prefix.name (names must differ inside a graph)."""
    return ParameterTuple(
        [
            Parameter(Tensor(np.zeros(param.shape, np.float32)), name=f"{prefix}.{param.name}", requires_grad=False)
            for param in params
        ]
    )

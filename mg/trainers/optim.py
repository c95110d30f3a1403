"""Updates of one parameter, and which parameter gets which: AdamW, SOAP for matrices, plain descent.

AdamW is one fused kernel per parameter, its bias correction folded into scalars on the host.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, ops

from mg.config.trainer import OptimizerConfig
from mg.trainers import soap
from mg.trainers.select import check_patterns

_kernel = ops.AdamWeightDecay()


@dataclass(frozen=True)
class Group:
    """Parameters that are updated alike, by their places in the list of all trained ones."""

    kind: str
    """"adamw", "soap", "sgd", or "momentum" for descent with momentum."""
    lr_factor: float
    weight_decay: float
    places: tuple[int, ...]


MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "soap": ("exp_avg", "exp_avg_sq"), "momentum": ("momentum",), "sgd": ()}
"""Tensors of a weight's shape that each kind of update keeps beside the weight."""


def grouped(names: Sequence[str], shapes: Sequence[tuple[int, ...]], config: OptimizerConfig) -> list[Group]:
    """Sort parameters of these names and shapes into groups, the smallest number of them.

    Raises:
        UserError: a pattern of `lr_factors` or `weight_decays` fits no name.
    """
    check_patterns("optimizer.lr_factors", config.lr_factors, names)
    check_patterns("optimizer.weight_decays", config.weight_decays, names)
    found: dict[tuple[str, float, float], list[int]] = {}
    for place, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        kind = config.name
        if kind == "soap" and not soap.is_matrix(shape):
            kind = "adamw"
        if kind == "sgd" and config.momentum > 0:
            kind = "momentum"
        spared = config.decay_on == "matrices" and len(shape) < 2
        decay = _first(config.weight_decays, name, 0.0 if spared else config.weight_decay)
        found.setdefault((kind, _first(config.lr_factors, name, 1.0), decay), []).append(place)
    ordered = sorted(found, key=lambda key: key[0] != "soap")  # SOAP's host work begins with its first places
    return [Group(*key, tuple(found[key])) for key in ordered]


def _first(table: Mapping[str, float], name: str, otherwise: float) -> float:
    return next((value for pattern, value in table.items() if fnmatchcase(name, pattern)), otherwise)


def group_scalars(config: OptimizerConfig, group: Group, lr: float, updates: int) -> tuple[Tensor, ...]:
    """Return what the update function of a group wants, for update number `updates` (1 for the first)."""
    lr = lr * group.lr_factor
    if group.kind in ("sgd", "momentum"):
        values = (lr, group.weight_decay, *((config.momentum,) if group.kind == "momentum" else ()))
        return tuple(Tensor(np.float32(value)) for value in values)
    return adamw_scalars(config, lr, updates, group.weight_decay)


def adamw_update(
    scalars: tuple[Tensor, ...], scale: Tensor, param: Parameter, first: Parameter, second: Parameter, grad: Tensor
) -> bool:
    """Update one parameter and its two moments in place; `scalars` come from `adamw_scalars`, `scale` clips."""
    rate, beta1, beta2, eps, decay = scalars
    _kernel(param, first, second, rate, beta1, beta2, eps, decay, grad * scale)
    return True


def adamw_scalars(config: OptimizerConfig, lr: float, updates: int, weight_decay: float) -> tuple[Tensor, ...]:
    """Return the kernel's five scalars for update number `updates` (1 for the first).

    The kernel computes p -= rate * (m / (sqrt(v) + eps) + decay * p) without bias correction. AdamW (Loshchilov and
    Hutter 2019, algorithm 2) is p -= lr * (m / c1) / (sqrt(v / c2) + eps) + lr * wd * p with c = 1 - beta^updates.
    Multiplying through by sqrt(c2) makes the two equal.
    """
    beta1, beta2 = config.betas
    root = math.sqrt(1.0 - beta2**updates)
    correction = root / (1.0 - beta1**updates)
    values = (lr * correction, beta1, beta2, config.eps * root, weight_decay / correction)
    return tuple(Tensor(np.float32(value)) for value in values)


def sgd_update(scalars: tuple[Tensor, ...], scale: Tensor, param: Parameter, grad: Tensor) -> bool:
    """Step down the clipped gradient in place: p -= lr * (g + wd * p)."""
    rate, decay = scalars
    ops.assign(param, param * (1.0 - rate * decay) - grad * (scale * rate))
    return True


def momentum_update(
    scalars: tuple[Tensor, ...], scale: Tensor, param: Parameter, velocity: Parameter, grad: Tensor
) -> bool:
    """Heavy ball in place: v = momentum * v + g, p -= lr * (v + wd * p)."""
    rate, decay, momentum = scalars
    moved = velocity * momentum + grad * scale
    ops.assign(velocity, moved)
    ops.assign(param, param * (1.0 - rate * decay) - moved * rate)
    return True


def zeros_like(params: ParameterTuple, prefix: str) -> ParameterTuple:
    """Return one float32 zero parameter per parameter, named prefix.name (names must differ inside a graph)."""
    return ParameterTuple(
        [
            Parameter(Tensor(np.zeros(param.shape, np.float32)), name=f"{prefix}.{param.name}", requires_grad=False)
            for param in params
        ]
    )

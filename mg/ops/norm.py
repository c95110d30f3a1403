"""Group normalisation and RMS normalisation."""

import mindspore as ms
import mindspore.ops.operations as prim
import numpy as np
from jaxtyping import Float
from mindspore import Parameter, Tensor, mint, nn

from mg import device
from mg.ops.backend import on_cpu
from mg.ops.bias import AddBias
from mg.ops.spread import spread


class GroupNorm(nn.Cell):
    """Group normalisation with statistics over a group's channels and all positions, in FP32.

    Ascend runs its own kernel. Elsewhere MindSpore's group norm is up to ten times slower than need be, so the groups
    are laid out as the channels of a batch normalisation (the same statistics, a fast kernel in both directions), and
    the per-channel scale and shift run as a depthwise 1x1 convolution.

    Args:
        channels: number of channels, a multiple of `groups`.
        groups: number of groups.
        eps: added to the variance.
        fused: True for the backend's own kernel, None to choose by backend.

    Raises:
        ValueError: channels are not a multiple of groups.
    """

    def __init__(self, channels: int, groups: int = 32, eps: float = 1e-6, fused: bool | None = None) -> None:
        super().__init__()
        if channels % groups:
            raise ValueError(f"channels={channels} is not a multiple of norm_groups={groups}; choose a divisor of it")
        self.channels, self.groups, self.eps = channels, groups, eps
        self.fused = device.is_ascend() if fused is None else fused
        self.gamma = Parameter(Tensor(np.ones(channels, np.float32)), name="gamma")
        self.beta = Parameter(Tensor(np.zeros(channels, np.float32)), name="beta")
        # The kernel updates running statistics in place; momentum 0 leaves them, and the constants they are, alone.
        self.normalise = prim.BatchNorm(is_training=True, epsilon=eps, momentum=0.0)
        # Being such an operator, it must not be recomputed: the graph would have a circle and not compile.
        self.normalise.recompute(False)
        self.affine = prim.Conv2D(channels, (1, 1), group=channels)
        self.shift = AddBias()

    def construct(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        if self.fused:
            return mint.nn.functional.group_norm(x, self.groups, self.gamma, self.beta, self.eps)
        shape, dtype = x.shape, x.dtype
        b = shape[0]
        rows = b * self.groups
        one, zero = mint.ones((rows,), dtype=ms.float32), mint.zeros((rows,), dtype=ms.float32)
        y = x.astype(ms.float32).reshape(1, rows, -1, shape[4])  # (1, b*groups, c/groups*t*h, w)
        y = self.normalise(y, one, zero, zero, one)[0]
        y = self.affine(y.reshape(b, self.channels, -1, shape[4]), self.gamma.reshape(-1, 1, 1, 1))  # (b, c, t*h, w)
        y = self.shift(y, self.beta)
        return y.reshape(shape).astype(dtype)


def rms_norm(x: Float[Tensor, "*n d"], weight: Float[Tensor, " d"], eps: float) -> Float[Tensor, "*n d"]:
    """Return x / sqrt(mean(x^2) + eps) * weight over the last axis, computed in FP32, in FP32.

    On the CPU, where a product of operands of different shapes takes six times as long as one of equal shapes, the
    mean and the factors of all elements are matrix products.
    """
    y = x.astype(ms.float32)
    weight = weight.astype(ms.float32)
    if not on_cpu():
        return y * mint.rsqrt(mint.mean(y * y, -1, keepdim=True) + eps) * weight
    d = weight.shape[0]
    y = y.reshape(-1, d)
    mean = mint.matmul(y * y, ms.ops.full((d, 1), 1.0 / d, dtype=ms.float32))  # (n, 1)
    return (y * mint.matmul(mint.rsqrt(mean + eps), weight.reshape(1, d))).reshape(x.shape)


def modulated_rms_norm(
    x: Float[Tensor, "b n d"],
    weight: Float[Tensor, " d"],
    scale: Float[Tensor, "b d"],
    shift: Float[Tensor, "b d"],
    eps: float,
) -> Float[Tensor, "b n d"]:
    """Return rms_norm(x) * (1 + scale) + shift, each sample with its own scale and shift (adaLN); in the type of x."""
    b, n, d = x.shape
    if on_cpu():
        y = x.astype(ms.float32)
        square = (y * y).reshape(b * n, d)
        mean = mint.matmul(square, ms.ops.full((d, 1), 1.0 / d, dtype=ms.float32))
        factors = (weight.astype(ms.float32).reshape(1, d) * (scale + 1.0)).reshape(b, 1, d)
        y = y * prim.BatchMatMul()(mint.rsqrt(mean + eps).reshape(b, n, 1), factors)
    else:
        y = rms_norm(x, weight, eps) * (1.0 + scale.reshape(b, 1, d))
    return (y + spread(shift, n)).astype(x.dtype)


class RMSNorm(nn.Cell):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, statistics in FP32 (Movie Gen, section 3.1.3).

    Args:
        features: size of the last axis.
        eps: added to the mean square.
        fused: True for the backend's own kernel, which the CPU lacks; None to choose by backend.
    """

    def __init__(self, features: int, eps: float = 1e-5, fused: bool | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.fused = device.is_ascend() if fused is None else fused
        self.weight = Parameter(Tensor(np.ones(features, np.float32)), name="weight")

    def construct(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        if self.fused:
            return ms.ops.rms_norm(x, self.weight.astype(x.dtype), self.eps)[0]
        return rms_norm(x, self.weight, self.eps).astype(x.dtype)

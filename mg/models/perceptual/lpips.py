"""LPIPS on VGG-16: how different two pictures look (Zhang et al. 2018, version 0.1, with the convolutions' biases)."""

from pathlib import Path

import mindspore as ms
import mindspore.ops.operations as prim
import numpy as np
from jaxtyping import Float
from mindspore import Parameter, Tensor, mint, nn

from mg.models.perceptual.adapter import CHANNELS
from mg.weights import check_finite, load_into, read_weights

LEAST_SIDE = 16
"""Height and width that a picture must have: four poolings."""
# Mean and deviation of the photographs VGG-16 was trained on, for pictures in [-1, 1].
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)


class _Conv(nn.Cell):
    """3x3 convolution with bias and ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = Parameter(
            Tensor(np.zeros((out_channels, in_channels, 3, 3), np.float32)), name="weight", requires_grad=False
        )
        self.bias = Parameter(Tensor(np.zeros(out_channels, np.float32)), name="bias", requires_grad=False)
        self.conv = prim.Conv2D(out_channels, (3, 3), pad_mode="pad", pad=(1, 1, 1, 1))
        self.shift = prim.BiasAdd()

    def construct(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n o h w"]:
        return mint.nn.functional.relu(self.shift(self.conv(x, self.weight), self.bias))


class Lpips(nn.Cell):
    """Distance of pictures; frozen, float32, and without dropout, so that training mode changes nothing.

    Features of five depths are normalised over channels; their squared differences are weighted per channel, averaged
    over positions and added up. The weights are zero until they are loaded.

    Args:
        value_range: smallest and largest value of the pictures, (-1, 1) or (0, 255) for instance.
    """

    def __init__(self, value_range: tuple[float, float] = (-1.0, 1.0)) -> None:
        super().__init__()
        low, high = value_range
        if not low < high:
            raise ValueError(f"value_range={value_range}: give the smallest value, then a larger one")
        # ((x - low) / (high - low) * 2 - 1 - shift) / scale as one factor and one addition per channel.
        self.factor = Tensor((2.0 / (high - low) / _SCALE).reshape(1, 3, 1, 1).astype(np.float32))
        self.offset = Tensor(((-2.0 * low / (high - low) - 1.0 - _SHIFT) / _SCALE).reshape(1, 3, 1, 1))
        convs, inputs = [], 3
        for width in (width for group in CHANNELS for width in group):
            convs.append(_Conv(inputs, width))
            inputs = width
        self.convs = nn.CellList(convs)
        self.lin = ms.ParameterTuple(
            [
                Parameter(Tensor(np.zeros(group[-1], np.float32)), name=f"lin.{tap}", requires_grad=False)
                for tap, group in enumerate(CHANNELS)
            ]
        )
        self.depths = tuple(len(group) for group in CHANNELS)
        self.pool = prim.MaxPool(kernel_size=2, strides=2, pad_mode="valid")
        self.update_parameters_name("lpips.")  # unlike any other network's in the same graph

    def features(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Tensor, ...]:
        """Features of the five depths, each of length 1 over channels."""
        x = x.astype(ms.float32) * self.factor + self.offset
        taps, number = (), 0
        for group in range(len(self.depths)):
            if group > 0:
                x = self.pool(x)
            for _ in range(self.depths[group]):
                x = self.convs[number](x)
                number += 1
            # The first small number only keeps the root's slope finite where all channels are zero.
            length = mint.sqrt((x * x).sum(1, keepdims=True) + 1e-20)
            taps = (*taps, x / (length + 1e-10))
        return taps

    def construct(self, a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
        """Return the distance of each pair, 0 for equal pictures; gradients reach `a` alone."""
        total = 0.0
        theirs = self.features(ms.ops.stop_gradient(b))
        ours = self.features(a)
        for tap in range(len(self.depths)):
            difference = ours[tap] - ms.ops.stop_gradient(theirs[tap])
            per_channel = (difference * difference).mean((2, 3))  # (n, c)
            total = total + mint.matmul(per_channel, self.lin[tap].reshape(-1, 1)).reshape(-1)
        return total


def from_weights(path: str | Path, value_range: tuple[float, float] = (-1.0, 1.0)) -> Lpips:
    """Build the network with the weights that tools/convert_lpips.py writes.

    Raises:
        UserError: unreadable file, NaN or infinity in it, or tensors missing, unexpected or of another shape.
    """
    tensors = read_weights(path)
    check_finite(tensors, path)
    network = Lpips(value_range)
    load_into(network, tensors, path=path)
    return network

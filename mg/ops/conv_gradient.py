"""2-D convolution of stride 1 whose gradients take the CPU's quickest kernels."""

from collections.abc import Callable

import mindspore as ms
import mindspore.ops.operations as prim
import numpy as np
from jaxtyping import Float
from mindspore import Tensor, mint, nn
from mindspore.ops.operations._grad_ops import Conv2DBackpropFilter

from mg import device


def stride_one_conv(
    in_channels: int, out_channels: int, kernel: tuple[int, int], pad: tuple[int, int]
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a convolution of (n, c, h, w) with (o, c, kh, kw): off the CPU the operator with its own gradients.

    Args:
        in_channels: channels of the images.
        out_channels: channels of the result.
        kernel: height and width of the kernel.
        pad: zero rows above and below, zero columns left and right.
    """
    if device.is_cpu():
        return StrideOneConv(in_channels, out_channels, kernel, pad)
    return prim.Conv2D(out_channels, kernel, pad_mode="pad", pad=_sides(pad))


def _sides(pad: tuple[int, int]) -> tuple[int, int, int, int]:
    return (pad[0], pad[0], pad[1], pad[1])


@ms.ops.constexpr
def _reversal(taps: int) -> Tensor:
    """Matrix that puts the taps of a kernel in reversed order."""
    return Tensor(np.ascontiguousarray(np.eye(taps, dtype=np.float32)[::-1]))


def turned(weight: Float[Tensor, "o i kh kw"]) -> Float[Tensor, "i o kh kw"]:
    """Exchange inputs and outputs and turn the kernel by 180 degrees: the weight of the transposed convolution."""
    o, i, kh, kw = weight.shape
    # A product with a permutation is several times as quick as the CPU's reversal of an axis.
    taps = mint.matmul(weight.reshape(o * i, kh * kw), _reversal(kh * kw).astype(weight.dtype))
    return ms.ops.transpose(taps.reshape(o, i, kh * kw), (1, 0, 2)).reshape(i, o, kh, kw)


class StrideOneConv(nn.Cell):
    """Convolution whose gradients are up to four times as quick on the CPU as the operator's own.

    The gradient of the input is a convolution with the turned weight, where that is small beside the images: the kernel
    made for it takes up to three times as long. With fewer outputs than inputs the gradient of the weight is taken of
    the turned convolution, since its cost goes with the number of inputs.

    The arguments are those of `stride_one_conv`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, int], pad: tuple[int, int]) -> None:
        super().__init__()
        self.kernel, sides = kernel, _sides(pad)
        self.conv = prim.Conv2D(out_channels, kernel, pad_mode="pad", pad=sides)
        rest = _sides((kernel[0] - 1 - pad[0], kernel[1] - 1 - pad[1]))
        self.conv_back = prim.Conv2D(in_channels, kernel, pad_mode="pad", pad=rest)
        self.back = prim.Conv2DTranspose(out_channels, kernel, pad_mode="pad", pad=sides)
        self.narrow = rest == sides and out_channels < in_channels
        outputs = in_channels if self.narrow else out_channels
        self.by_weight = Conv2DBackpropFilter(outputs, kernel, "pad", sides, sides)

    def construct(self, x: Float[Tensor, "n c h w"], weight: Float[Tensor, "o c kh kw"]) -> Float[Tensor, "n o h2 w2"]:
        return self.conv(x, weight)

    def bprop(self, x: Tensor, weight: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of images and weight."""
        _, _, h, w = x.shape
        if h * w >= 4 * weight.shape[0]:
            by_image = self.conv_back(dout, turned(weight))
        else:
            by_image = self.back(dout, weight, x.shape)
        if self.narrow:
            return by_image, turned(self.by_weight(x, dout, (weight.shape[1], weight.shape[0], *self.kernel)))
        return by_image, self.by_weight(dout, x, weight.shape)

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


STRIP = 384
"""Positions per image up to which the CPU's gradient of a small weight was found to be quick."""


@ms.ops.constexpr
def strip_rows(height: int, width: int, weights: int) -> int:
    """Rows of the strips that images are cut into for the gradient of a 3x3 weight; 0 to leave them whole.

    As measured: with few channels, images of 512 and 1,024 positions take 2 to 3 times as long as strips of up to 352
    (the kernel has a cost per image there); beyond 4,096 positions, or with 64 channels, strips gain nothing.
    """
    if not STRIP < height * width <= 2048 or weights > 1024:
        return 0
    return max((rows for rows in range(2, height) if height % rows == 0 and rows * width <= STRIP), default=0)


@ms.ops.constexpr
def _strips(images: int, channels: int, height: int, rows: int, border: int) -> Tensor:
    """Row numbers of (images, channels, height) cut into (images * strips, channels, rows + 2 * border).

    What lies above and below an image is row images * channels * height. Without a border, numbers of whole strips.
    """
    strips = height // rows
    if border == 0:
        numbers = np.arange(images * channels * strips).reshape(images, channels, strips).transpose(0, 2, 1)
        return Tensor(np.ascontiguousarray(numbers.reshape(-1).astype(np.int32)))
    inside = np.arange(strips)[:, None] * rows + np.arange(-border, rows + border)  # (strips, rows + 2 * border)
    planes = np.arange(images * channels).reshape(images, 1, channels, 1) * height
    numbers = np.where((inside >= 0) & (inside < height), inside, -1)[None, :, None]
    numbers = np.where(numbers < 0, images * channels * height, numbers + planes)
    return Tensor(numbers.reshape(-1).astype(np.int32))


class WeightGradient(nn.Cell):
    """Gradient of the weight of a convolution of stride 1: construct(dout, x, shape) -> (o, c, kh, kw).

    Args:
        out_channels: channels of the convolution's result.
        kernel: height and width of the kernel.
        pad: zero rows above and below, zero columns left and right.
    """

    def __init__(self, out_channels: int, kernel: tuple[int, int], pad: tuple[int, int]) -> None:
        super().__init__()
        sides = _sides(pad)
        self.whole = Conv2DBackpropFilter(out_channels, kernel, "pad", sides, sides)
        self.divides = kernel == (3, 3) and pad == (1, 1)
        between = _sides((0, pad[1]))
        self.strips = Conv2DBackpropFilter(out_channels, kernel, "pad", between, between)
        self.gather = prim.Gather()

    def construct(
        self, dout: Float[Tensor, "n o h2 w2"], x: Float[Tensor, "n c h w"], shape: tuple[int, int, int, int]
    ) -> Float[Tensor, "o c kh kw"]:
        n, c, h, w = x.shape
        rows = strip_rows(h, w, shape[0] * shape[1]) if self.divides else 0
        if rows == 0:
            return self.whole(dout, x, shape)
        count = n * (h // rows)
        x = mint.cat((x.reshape(n * c * h, w), ms.ops.zeros((1, w), x.dtype)), 0)
        x = self.gather(x, _strips(n, c, h, rows, 1), 0).reshape(count, c, rows + 2, w)
        dout = dout.reshape(n * shape[0] * (h // rows), rows * w)
        dout = self.gather(dout, _strips(n, shape[0], h, rows, 0), 0).reshape(count, shape[0], rows, w)
        return self.strips(dout, x, shape)


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
        self.by_weight = WeightGradient(outputs, kernel, pad)

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

"""Factorised video convolutions: spatial (per frame) and temporal (per pixel), with fast resampling.

All cells take and return (b, c, t, h, w). Temporal kernels keep the layout (out, in, 1, k) of the reference's weights.
A spatial convolution folds time into the batch; a temporal one is a 2-D convolution with a (k, 1) kernel over
(t, h*w), the formulation that was fastest in both directions.
"""

import mindspore as ms
import mindspore.ops.operations as prim
import numpy as np
from jaxtyping import Float
from mindspore import Parameter, Tensor, mint, nn

from mg.ops.backend import on_cpu
from mg.ops.bias import AddBias
from mg.ops.conv_gradient import stride_one_conv
from mg.ops.layout import SwapFrames
from mg.ops.pad import pad_edge, pad_frames

FOLD_FROM = 1 << 19
"""Elements from which on a constant per channel goes through the weights on the CPU: below, ten kernels cost more."""


def _parameter(*shape: int, name: str) -> Parameter:
    return Parameter(Tensor(np.zeros(shape, np.float32)), name=name)


class SpatialConv(nn.Cell):
    """2-D convolution of every frame, stride 1, zero padding that keeps the size.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: 1 or 3.
        add_bias: False leaves the bias to the caller (who folds it into a later linear step).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, add_bias: bool = True) -> None:
        super().__init__()
        self.kernel, self.out_channels, self.add_bias = kernel, out_channels, add_bias
        self.weight = _parameter(out_channels, in_channels, kernel, kernel, name="weight")
        self.bias = _parameter(out_channels, name="bias")
        self.conv = stride_one_conv(in_channels, out_channels, (kernel, kernel), (kernel // 2, kernel // 2))
        self.shift = AddBias()
        self.fold, self.unfold = FoldTime(), UnfoldTime()

    def construct(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b o t h w"]:
        b, c, t, h, w = x.shape
        weight = self.weight.astype(x.dtype)
        if self.kernel == 1:
            y = self.conv(x.reshape(b, c, t * h, w), weight)  # (b, o, t*h, w)
            y = self.shift(y, self.bias) if self.add_bias else y
            return y.reshape(b, self.out_channels, t, h, w)
        y = self.conv(self.fold(x), weight)  # (b*t, o, h, w)
        y = self.shift(y, self.bias) if self.add_bias else y
        return self.unfold(y, b)


class FoldTime(nn.Cell):
    """Make every frame an image of the batch: (b, c, t, h, w) to (b*t, c, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.swap = SwapFrames()

    def construct(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "bt c h w"]:
        b, c, t, h, w = x.shape
        return (x if t == 1 else self.swap(x)).reshape(b * t, c, h, w)


class UnfoldTime(nn.Cell):
    """Undo `FoldTime` for a batch of b videos: (b*t, c, h, w) to (b, c, t, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.swap = SwapFrames()

    def construct(self, x: Float[Tensor, "bt c h w"], b: int) -> Float[Tensor, "b c t h w"]:
        bt, c, h, w = x.shape
        if bt == b:
            return x.reshape(b, c, 1, h, w)
        return self.swap(x.reshape(b, bt // b, c, h, w))


BAND_FRAMES, BAND_ROWS = 4, 512
"""Frames, and channels times frames, up to which a temporal convolution on the CPU is one product over both."""


@ms.ops.constexpr
def _placing(kernel: int, frames: int) -> Tensor:
    """Matrix (kernel, frames^2): which tap stands between which output and input frame, borders repeated."""
    places = np.zeros((kernel, frames, frames), np.float32)
    for tap in range(kernel):
        for frame in range(frames):
            places[tap, frame, min(max(frame + tap - kernel // 2, 0), frames - 1)] = 1
    return Tensor(places.reshape(kernel, frames * frames))


class TemporalConv(nn.Cell):
    """1-D convolution along time with replicate padding; the output has ceil(t / stride) frames.

    A few frames are convolved by one product on the CPU: the padding, its gradient and the kernels for small images
    take longer than the zeros between distant frames.

    Args:
        channels: channels in and out.
        kernel: 1 or 3.
        stride: 1 or 2.
    """

    def __init__(self, channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.channels, self.kernel, self.stride = channels, kernel, stride
        self.weight = _parameter(channels, channels, 1, kernel, name="weight")
        self.bias = _parameter(channels, name="bias")
        if stride == 1:
            self.conv = stride_one_conv(channels, channels, (kernel, 1), (0, 0))
        else:
            self.conv = prim.Conv2D(channels, (kernel, 1), pad_mode="valid", stride=(stride, 1))
        self.conv_frame = prim.Conv2D(channels, (1, 1))
        self.shift = AddBias()
        self.pad = pad_frames(kernel // 2)
        self.banded = kernel == 3 and stride == 1
        self.product, self.batch_product = prim.MatMul(), prim.BatchMatMul()

    def construct(
        self, x: Float[Tensor, "b c t h w"], input_bias: Float[Tensor, " c"] | None = None
    ) -> Float[Tensor, "b c t2 h w"]:
        """Convolve; `input_bias` is a constant per channel that x lacks, added to a small x, or through the weights."""
        b, c, t, h, w = x.shape
        bias = self.bias
        if input_bias is not None and on_cpu() and x.size < FOLD_FROM:
            x = self.shift(x.reshape(b, c, t * h, w), input_bias).reshape(x.shape)
        elif input_bias is not None:
            # Replicate padding repeats the constant too, so every output sees the sum of all taps of it.
            # A product is quicker than the sum over taps, and so are its gradients.
            repeated = mint.matmul(input_bias.reshape(c, 1), mint.ones((1, self.kernel), dtype=ms.float32))
            folded = mint.matmul(self.weight.reshape(c, c * self.kernel), repeated.reshape(c * self.kernel, 1))
            bias = bias + folded.reshape(c)
        weight = self.weight.astype(x.dtype)
        if t == 1:  # every tap sees the same frame
            y = self.conv_frame(x.reshape(b, c, h, w), weight.sum(-1, keepdims=True))
            return self.shift(y, bias).reshape(b, c, 1, h, w)
        if self.banded and t <= BAND_FRAMES and c * t <= BAND_ROWS and on_cpu():
            y = self.batch_product(self._bands(weight, b, t), x.reshape(b, c * t, h * w))
            return self.shift(y.reshape(b, c, t * h * w), bias).reshape(x.shape)
        x = self.pad(x)
        y = self.conv(x.reshape(b, c, x.shape[2], h * w), weight.reshape(c, c, self.kernel, 1))  # (b, c, t2, h*w)
        return self.shift(y, bias).reshape(b, c, -1, h, w)

    def _bands(self, weight: Float[Tensor, "c c 1 k"], b: int, t: int) -> Float[Tensor, "b ct ct"]:
        """Return the weight of the product over channels and frames, once for each video."""
        c = self.channels
        band = self.product(weight.reshape(c * c, self.kernel), _placing(self.kernel, t).astype(weight.dtype))
        band = ms.ops.transpose(band.reshape(c, c, t, t), (0, 2, 1, 3)).reshape(1, c * t * c * t)
        # A product with ones repeats it, since its gradient then sums over the videos by a product, too.
        return self.product(ms.ops.ones((b, 1), weight.dtype), band).reshape(b, c * t, c * t)

    def weight_gradient(
        self, x: Float[Tensor, "b c t h w"], input_bias: Float[Tensor, " c"], slope: Float[Tensor, "b c t h w"]
    ) -> Float[Tensor, "c c 1 k"]:
        """Gradient of the weight given the input and the gradient of the output, FP32; for stride 1.

        A plain formula: it can stand in a forward pass, where automatic differentiation cannot go twice.
        """
        b, c, t, h, w = x.shape
        x = self.shift(x.astype(ms.float32).reshape(b, c, t * h, w), input_bias).reshape(b, c, t, h * w)
        x = pad_edge(x, 2, self.kernel // 2, self.kernel // 2)  # (b, c, t+k-1, h*w)
        slope = slope.reshape(b, c, t * h * w)
        taps = []
        for tap in range(self.kernel):
            seen = mint.narrow(x, 2, tap, t).reshape(b, c, t * h * w)
            taps.append(mint.matmul(slope, mint.permute(seen, (0, 2, 1))).sum(0).reshape(c, c, 1, 1))
        return mint.cat(taps, 3)


class SpatialDownsampleConv(nn.Cell):
    """3x3 convolution with stride 2 on every frame; zero padding only at the right and the bottom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = _parameter(channels, channels, 3, 3, name="weight")
        self.bias = _parameter(channels, name="bias")
        self.conv = prim.Conv2D(channels, (3, 3), pad_mode="pad", pad=(0, 1, 0, 1), stride=2)
        self.shift = AddBias()
        self.fold, self.unfold = FoldTime(), UnfoldTime()

    def construct(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h2 w2"]:
        y = self.conv(self.fold(x), self.weight.astype(x.dtype))
        return self.unfold(self.shift(y, self.bias), x.shape[0])


# Four taps of a transposed convolution with stride 2 that equals nearest x2, then three taps: an input stands at two
# neighbouring enlarged positions, so output position 2i + d sees it through the taps d = -1: last,
# d = 0: middle + last, d = 1: first + middle, d = 2: first.
_TAPS = np.float32([[0, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0]])


@ms.ops.constexpr
def _upsampling(axes: int) -> Tensor:
    """Matrix from the taps of a kernel of 3 along 1 or 2 axes to those of the transposed convolution."""
    return Tensor(_TAPS if axes == 1 else np.kron(_TAPS, _TAPS))


def _upsampling_taps(weight: Float[Tensor, "o i h w"], axes: int) -> Float[Tensor, "i o taps"]:
    """Return the kernel of the transposed convolution that equals nearest x2 along 1 or 2 axes, then `weight`."""
    o, i, h, w = weight.shape
    # One product: slices, sums and concatenations, and their gradients, are some twenty kernels.
    taps = mint.matmul(weight.reshape(o * i, h * w), _upsampling(axes).astype(weight.dtype))
    return ms.ops.transpose(taps.reshape(o, i, -1), (1, 0, 2))  # transposed convolutions have inputs first


class SpatialUpsampleConv(nn.Cell):
    """Nearest x2 in height and width, then a 3x3 convolution, without ever building the enlarged input.

    Both together are one transposed convolution with a 4x4 kernel and stride 2: 16 instead of 36 multiplications per
    input position.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.weight = _parameter(channels, channels, 3, 3, name="weight")
        self.bias = _parameter(channels, name="bias")
        self.conv = prim.Conv2DTranspose(channels, (4, 4), pad_mode="pad", pad=(1, 1, 1, 1), stride=(2, 2))
        self.shift = AddBias()
        self.fold, self.unfold = FoldTime(), UnfoldTime()

    def construct(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t 2*h 2*w"]:
        b, c, t, h, w = x.shape
        taps = _upsampling_taps(self.weight.astype(x.dtype), 2).reshape(c, c, 4, 4)
        y = self.conv(self.fold(x), taps, (b * t, c, 2 * h, 2 * w))
        return self.unfold(self.shift(y, self.bias), b)


class TemporalUpsampleConv(nn.Cell):
    """Nearest x2 in time, then a 3-tap temporal convolution, without building the repeated frames.

    Args:
        channels: channels in and out.
        zero_pad: True pads the repeated frames with zeros (the reference), False replicates the border (the paper).
    """

    def __init__(self, channels: int, zero_pad: bool = False) -> None:
        super().__init__()
        self.border = 0 if zero_pad else 1
        self.weight = _parameter(channels, channels, 1, 3, name="weight")
        self.bias = _parameter(channels, name="bias")
        # A replicated frame in front and behind adds two output frames each, which the padding cuts off again.
        rows = 1 + 2 * self.border
        self.conv = prim.Conv2DTranspose(channels, (4, 1), pad_mode="pad", pad=(rows, rows, 0, 0), stride=(2, 1))
        self.shift = AddBias()
        self.pad = pad_frames(self.border)

    def construct(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c 2*t h w"]:
        b, c, t, h, w = x.shape
        taps = _upsampling_taps(self.weight.astype(x.dtype), 1).reshape(c, c, 4, 1)
        x = self.pad(x)
        y = self.conv(x.reshape(b, c, x.shape[2], h * w), taps, (b, c, 2 * t, h * w))
        return self.shift(y, self.bias).reshape(b, c, 2 * t, h, w)

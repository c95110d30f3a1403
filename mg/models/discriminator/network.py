"""A 3-D PatchGAN: one logit per patch of space and time (Isola et al. 2017, in three dimensions)."""

import mindspore as ms
import mindspore.ops.operations as prim
import numpy as np
from jaxtyping import Float
from mindspore import Parameter, Tensor, mint, nn

from mg.config.discriminator import PatchConfig
from mg.ops import GroupNorm
from mg.rng import stream

KERNEL = 4
"""Height and width of every convolution's kernel."""
SLOPE = 0.2
"""Of the leaky ReLU below zero."""


@ms.ops.constexpr
def _taps(frames: int, kernel: int, stride: int) -> Tensor:
    """Which frame each tap of each output frame sees: 0 or 1, (outputs * kernel, frames); beyond the clip none."""
    outputs = -(-frames // stride)
    seen = np.arange(outputs)[:, None] * stride + np.arange(kernel) - kernel // 2  # (outputs, kernel)
    return Tensor((seen.reshape(-1, 1) == np.arange(frames)).astype(np.float32))


class VideoConv(nn.Cell):
    """3-D convolution of frames with zero padding in all directions, beyond each clip's last valid frame too.

    The taps in time are gathered by a product with zeros and ones and become channels of a 2-D convolution: kernels
    that every backend has, and that can be differentiated twice. The result is that of the clip without its padding.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        time_kernel: taps in time, an odd number.
        time_stride: step in time; ceil(t / time_stride) frames come out.
        stride: step in height and width.
    """

    def __init__(self, in_channels: int, out_channels: int, time_kernel: int, time_stride: int, stride: int) -> None:
        super().__init__()
        self.time_kernel, self.time_stride, self.out_channels = time_kernel, time_stride, out_channels
        shape = (out_channels, in_channels, time_kernel, KERNEL, KERNEL)
        self.weight = Parameter(Tensor(np.zeros(shape, np.float32)), name="weight")
        self.bias = Parameter(Tensor(np.zeros(out_channels, np.float32)), name="bias")
        self.conv = prim.Conv2D(out_channels, (KERNEL, KERNEL), pad_mode="pad", pad=(1, 1, 1, 1), stride=stride)
        self.shift = prim.BiasAdd()
        # Not mint.matmul, whose gradient does not compile for a single image, (1, k, 1) x (1, 1, n).
        self.gather = prim.BatchMatMul()

    def construct(
        self, x: Float[Tensor, "b t c h w"], mask: Float[Tensor, "b t"]
    ) -> tuple[Float[Tensor, "b t2 o h2 w2"], Float[Tensor, "b t2"]]:
        b, t, c, h, w = x.shape
        weight = mint.permute(self.weight, (0, 2, 1, 3, 4))  # (o, k, c, 4, 4)
        kernel = self.time_kernel
        if t == 1:  # an image: the other taps see padding only
            kernel, weight = 1, mint.narrow(weight, 1, self.time_kernel // 2, 1)
        seen = _taps(t, kernel, self.time_stride).reshape(1, -1, t) * mask.reshape(b, 1, t)  # (b, t2*k, t)
        x = self.gather(seen, x.reshape(b, t, c * h * w))  # (b, t2*k, c*h*w)
        x = x.reshape(-1, kernel * c, h, w)  # (b*t2, k*c, h, w)
        y = self.shift(self.conv(x, weight.reshape(self.out_channels, kernel * c, KERNEL, KERNEL)), self.bias)
        y = y.reshape(b, -1, self.out_channels, y.shape[2], y.shape[3])
        return y, mint.matmul(mask, mint.permute(_taps(t, 1, self.time_stride), (1, 0)))


class FrameNorm(nn.Cell):
    """Group norm of each frame on its own: no running statistics, and padding does not reach valid frames.

    Args:
        channels: number of channels, a multiple of `groups`.
        groups: number of groups.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, groups)

    def construct(self, x: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b t c h w"]:
        b, t, c, h, w = x.shape
        return self.norm(x.reshape(b * t, c, 1, h, w)).reshape(b, t, c, h, w)


class PatchDiscriminator(nn.Cell):
    """Logits of patches of a video, positive for real; images are videos of one frame.

    Padded frames, those with mask 0 behind the valid ones, change nothing and get no gradient.

    Args:
        config: the layers.
        in_channels: channels of the video.
        seed: of the initial weights: normal with standard deviation 0.02, biases zero (pix2pix).

    Raises:
        ValueError: frames too small for the layers, when it is called (not where it is part of a graph).
    """

    def __init__(self, config: PatchConfig, in_channels: int = 3, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        convs, norms, channels = [], [], in_channels
        for i, wider in enumerate(config.channels):
            time_stride, stride = (config.strides[i], 2) if i < config.layers else (1, 1)
            convs.append(VideoConv(channels, wider, config.time_kernel, time_stride, stride))
            has_norm = i > 0 and config.norm == "group"
            norms.append(FrameNorm(wider, config.norm_groups) if has_norm else nn.Identity())
            channels = wider
        self.convs, self.norms = nn.CellList(convs), nn.CellList(norms)
        self.last = VideoConv(channels, 1, config.time_kernel, 1, 1)
        for name, parameter in self.parameters_and_names():
            if name.endswith("weight"):
                drawn = stream(seed, f"init.discriminator.{name}").standard_normal(parameter.shape, np.float32)
                parameter.set_data(Tensor(0.02 * drawn))
        self.update_parameters_name("discriminator.")  # unlike any other network's in the same graph

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError if frames of this size are too small for the layers."""
        least = 3 * 2**self.config.layers
        if min(height, width) < least:
            raise ValueError(
                f"frames of {height} x {width} are too small for a discriminator of layers={self.config.layers}; "
                f"give at least {least} pixels, or fewer layers"
            )

    def __call__(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Check the size, then see construct."""
        self.check_size(*x.shape[3:])  # not in construct: a graph with a `raise` in it cannot be differentiated twice
        return super().__call__(x, mask)

    def construct(
        self, x: Float[Tensor, "b t c h w"], mask: Float[Tensor, "b t"]
    ) -> tuple[Float[Tensor, "b t2 h2 w2"], Float[Tensor, "b t2"]]:
        """Return the logits, and which of their frames belong to valid frames; frames stand before channels."""
        for i in range(len(self.convs)):
            y, mask = self.convs[i](x, mask)
            y = self.norms[i](y)
            x = SLOPE * y + (1.0 - SLOPE) * mint.nn.functional.relu(y)
        y, mask = self.last(x, mask)
        return y.reshape(y.shape[0], y.shape[1], y.shape[3], y.shape[4]), mask

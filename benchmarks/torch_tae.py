"""A plain PyTorch twin of the temporal autoencoder: the other half of paired speed runs, and a peer for values.

It reads the same config mapping and has the same parameter names and shapes as `mg.models.tae.TemporalAutoencoder`
(gamma and beta in norms, 4-D temporal kernels), so one set of tensors serves both. Layout (b, c, t, h, w), pixels in
[-1, 1]. It is eager FP32 PyTorch as a competent user would write it, without tiling, padding or sampling.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _merge_frames(x: Tensor) -> Tensor:
    """(b, c, t, h, w) -> (b*t, c, h, w)."""
    b, c, t, h, w = x.shape
    return x.transpose(1, 2).reshape(b * t, c, h, w)


def _split_frames(x: Tensor, t: int) -> Tensor:
    """(b*t, c, h, w) -> (b, c, t, h, w)."""
    return x.reshape(-1, t, *x.shape[1:]).transpose(1, 2)


class Norm(nn.Module):
    """Group norm whose statistics run over (t, h, w) together; x is (b, c, t, h, w)."""

    def __init__(self, channels: int, num_groups: int) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, t, h, w) -> the same shape."""
        return F.group_norm(x, self.num_groups, self.gamma, self.beta, 1e-6)


class TemporalConv(nn.Module):
    """Convolution along t only, weight (c_out, c_in, 1, k); `pad_mode` is "replicate" or "zeros"."""

    def __init__(self, channels: int, kernel: int, stride: int = 1, pad_mode: str = "replicate") -> None:
        super().__init__()
        self.stride, self.pad_mode = stride, pad_mode
        self.weight = nn.Parameter(torch.randn(channels, channels, 1, kernel) / (channels * kernel) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, t, h, w) -> (b, c, ceil(t / stride), h, w)."""
        if self.weight.shape[-1] == 3:
            if self.pad_mode == "replicate":
                x = torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2)
            else:
                x = F.pad(x, (0, 0, 0, 0, 1, 1))
        kernel = self.weight.squeeze(2)[..., None, None]  # (c_out, c_in, k, 1, 1)
        return F.conv3d(x, kernel, self.bias, stride=(self.stride, 1, 1))


class Conv2_5d(nn.Module):
    """A spatial convolution followed by a temporal one."""

    def __init__(self, channels: int, width: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv_spat = nn.Conv2d(channels, width, kernel, padding=kernel // 2)
        self.conv_temp = TemporalConv(width, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, t, h, w) -> (b, width, t, h, w)."""
        return self.conv_temp(_split_frames(self.conv_spat(_merge_frames(x)), x.shape[2]))


class ResBlock(nn.Module):
    """Norm, swish, convolution, twice, plus the input."""

    def __init__(self, channels: int, width: int, num_groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = Norm(channels, num_groups), Conv2_5d(channels, width)
        self.norm2, self.conv2 = Norm(width, num_groups), Conv2_5d(width, width)
        if channels != width:
            self.nin_shortcut = Conv2_5d(channels, width, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, t, h, w) -> (b, width, t, h, w)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class SpatialAttention(nn.Module):
    """Single-head attention over the pixels of each frame."""

    def __init__(self, channels: int, num_groups: int) -> None:
        super().__init__()
        self.norm = Norm(channels, num_groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, t, h, w) -> the same shape."""
        y = _merge_frames(self.norm(x))
        # (b*t, c, h, w) -> (b*t, 1, h*w, c)
        q, k, v = (conv(y).flatten(2).transpose(1, 2)[:, None] for conv in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(y.shape)
        return x + _split_frames(self.proj_out(out), x.shape[2])


class TemporalAttention(nn.Module):
    """Single-head attention over the frames of each pixel."""

    def __init__(self, channels: int, num_groups: int) -> None:
        super().__init__()
        self.norm = Norm(channels, num_groups)
        self.to_q, self.to_k, self.to_v, self.proj_out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, t, h, w) -> the same shape."""
        b, c, t, h, w = x.shape
        y = self.norm(x).permute(0, 3, 4, 2, 1).reshape(b * h * w, 1, t, c)
        out = F.scaled_dot_product_attention(self.to_q(y), self.to_k(y), self.to_v(y))
        return x + self.proj_out(out).reshape(b, h, w, t, c).permute(0, 4, 3, 1, 2)


class SpatialDownsample(nn.Module):
    """3x3 convolution of stride 2, padded on the right and at the bottom."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, t, h, w) -> (b, c, t, h // 2, w // 2)."""
        return _split_frames(self.conv(F.pad(_merge_frames(x), (0, 1, 0, 1))), x.shape[2])


class SpatialUpsample(nn.Module):
    """Nearest upsampling by 2, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, t, h, w) -> (b, c, t, 2h, 2w)."""
        return _split_frames(self.conv(F.interpolate(_merge_frames(x), scale_factor=2, mode="nearest")), x.shape[2])


class TemporalDownsample(nn.Module):
    """Temporal convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = TemporalConv(channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, t, h, w) -> (b, c, ceil(t / 2), h, w)."""
        return self.conv(x)


class TemporalUpsample(nn.Module):
    """Every frame twice, then a temporal convolution."""

    def __init__(self, channels: int, pad_mode: str) -> None:
        super().__init__()
        self.conv = TemporalConv(channels, 3, pad_mode=pad_mode)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, t, h, w) -> (b, c, 2t, h, w)."""
        return self.conv(x.repeat_interleave(2, 2))


class Mid(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, num_groups: int, attn_type: str) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, num_groups)
        self.attn_1 = nn.Sequential(SpatialAttention(channels, num_groups))
        if attn_type == "vanilla":
            self.attn_1.append(TemporalAttention(channels, num_groups))
        self.block_2 = ResBlock(channels, channels, num_groups)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, t, h, w) -> the same shape."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The residual blocks of one resolution and its resampling, run in the order in which they were attached."""

    def __init__(self, channels: int, width: int, num_blocks: int, num_groups: int) -> None:
        super().__init__()
        inputs = [channels] + [width] * (num_blocks - 1)
        self.block = nn.Sequential(*(ResBlock(size, width, num_groups) for size in inputs))

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, t, h, w) -> (b, width, t', h', w')."""
        for module in self.children():
            x = module(x)
        return x


class Encoder(nn.Module):
    """Pixels to the mean and log-variance of the latents."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        num_groups = config["norm_groups"]
        widths = [config["ch"] * mult for mult in config["ch_mult"]]
        self.conv_in = Conv2_5d(config["in_channels"], config["ch"])
        self.down = nn.Sequential()
        for index, width in enumerate(widths):
            channels = widths[index - 1] if index else config["ch"]
            level = Level(channels, width, config["num_res_blocks"], num_groups)
            if index < len(widths) - 1:
                level.downsample_spat = SpatialDownsample(width)
            if index in config["temporal_downsample_level"]:
                level.downsample_temp = TemporalDownsample(width)
            self.down.append(level)
        self.mid = Mid(widths[-1], num_groups, config["attn_type"])
        self.norm_out = Norm(widths[-1], num_groups)
        self.conv_out = Conv2_5d(widths[-1], 2 * config["z_channels"])

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, t, h, w) -> (b, 2 * z_channels, t', h', w')."""
        return self.conv_out(F.silu(self.norm_out(self.mid(self.down(self.conv_in(x))))))


class Decoder(nn.Module):
    """Latents to pixels."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        num_groups, pad_mode = config["norm_groups"], config["temporal_upsample_padding"]
        widths = [config["ch"] * mult for mult in config["ch_mult"]]
        self.conv_in = Conv2_5d(config["z_channels"], widths[-1])
        self.mid = Mid(widths[-1], num_groups, config["attn_type"])
        self.up = nn.ModuleList()
        for index, width in enumerate(widths):
            channels = widths[min(index + 1, len(widths) - 1)]  # level 0 runs last
            level = Level(channels, width, config["num_res_blocks"] + 1, num_groups)
            if index > 0:
                level.upsample_spat = SpatialUpsample(width)
            if index in config["temporal_upsample_level"]:
                level.upsample_temp = TemporalUpsample(width, pad_mode)
            self.up.append(level)
        self.norm_out = Norm(widths[0], num_groups)
        self.conv_out = Conv2_5d(widths[0], config["out_ch"])

    def forward(self, z: Tensor) -> Tensor:
        """(b, z_channels, t', h', w') -> (b, 3, t, h, w)."""
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class TorchTAE(nn.Module):
    """The temporal autoencoder of Movie Gen (3.1.1) in PyTorch, from a full config such as a TAE preset.

    Raises KeyError if the config lacks a key that this network needs.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (b, 3, t, h, w) -> mean and log-variance, each (b, z_channels, t', h/8, w/8)."""
        mean, logvar = self.encoder(x).chunk(2, 1)
        return mean, logvar.clamp(-30, 20)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (b, z_channels, t', h', w') -> pixels (b, 3, 8t', 8h', 8w')."""
        return self.decoder(z)

    def load_arrays(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Set every parameter from arrays under the TAE's names; raises RuntimeError unless they fit exactly."""
        self.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in tensors.items()})

"""Building blocks of the temporal autoencoder; names and shapes follow the reference's weights."""

from jaxtyping import Float
from mindspore import Tensor, mint, nn

from mg.models.tae.config import TaeConfig
from mg.ops import (
    GroupNorm,
    Linear,
    SpatialConv,
    SpatialDownsampleConv,
    SpatialUpsampleConv,
    TemporalConv,
    TemporalUpsampleConv,
    attention,
    silu,
)


class Conv2_5d(nn.Cell):
    """A 2-D convolution of every frame followed by a 1-D convolution along time (Movie Gen, 3.1.1).

    The spatial bias is folded into the temporal one, which saves a pass over the activations.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv_spat = SpatialConv(in_channels, out_channels, kernel, add_bias=False)
        self.conv_temp = TemporalConv(out_channels, kernel)

    def construct(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b o t h w"]:
        return self.conv_temp(self.conv_spat(x), self.conv_spat.bias)


class ResnetBlock(nn.Cell):
    """Two normalised convolutions around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(in_channels, groups)
        self.conv1 = Conv2_5d(in_channels, out_channels, 3)
        self.norm2 = GroupNorm(out_channels, groups)
        self.conv2 = Conv2_5d(out_channels, out_channels, 3)
        self.has_shortcut = in_channels != out_channels
        if self.has_shortcut:
            self.nin_shortcut = Conv2_5d(in_channels, out_channels, 1)

    def construct(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b o t h w"]:
        h = self.conv1(silu(self.norm1(x)))
        h = self.conv2(silu(self.norm2(h)))
        if self.has_shortcut:
            x = self.nin_shortcut(x)
        return x + h


class SpatialAttention(nn.Cell):
    """Single-head attention among the positions of each frame."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, groups)
        self.q = SpatialConv(channels, channels, 1)
        self.k = SpatialConv(channels, channels, 1)
        self.v = SpatialConv(channels, channels, 1)
        self.proj_out = SpatialConv(channels, channels, 1)

    def _tokens(self, x: Tensor) -> Tensor:
        b, c, t, h, w = x.shape
        return mint.permute(x.reshape(b, c, t, h * w), (0, 2, 3, 1)).reshape(b * t, 1, h * w, c)  # (b*t, 1, h*w, c)

    def construct(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        b, c, t, h, w = x.shape
        y = self.norm(x)
        y = attention(self._tokens(self.q(y)), self._tokens(self.k(y)), self._tokens(self.v(y)))
        y = mint.permute(y.reshape(b, t, h * w, c), (0, 3, 1, 2)).reshape(b, c, t, h, w)
        return x + self.proj_out(y)


class TemporalAttention(nn.Cell):
    """Single-head attention among the frames at each position."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, groups)
        self.to_q = Linear(channels, channels)
        self.to_k = Linear(channels, channels)
        self.to_v = Linear(channels, channels)
        self.proj_out = Linear(channels, channels)

    def construct(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        b, c, t, h, w = x.shape
        y = mint.permute(self.norm(x).reshape(b, c, t, h * w), (0, 3, 2, 1)).reshape(b * h * w, 1, t, c)
        y = self.proj_out(attention(self.to_q(y), self.to_k(y), self.to_v(y)))  # (b*h*w, 1, t, c)
        return x + mint.permute(y.reshape(b, h * w, t, c), (0, 3, 2, 1)).reshape(b, c, t, h, w)


class Mid(nn.Cell):
    """Residual block, attention in space and time, residual block."""

    def __init__(self, channels: int, groups: int, temporal_attention: bool) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        attentions: list[nn.Cell] = [SpatialAttention(channels, groups)]
        if temporal_attention:
            attentions.append(TemporalAttention(channels, groups))
        self.attn_1 = nn.SequentialCell(attentions)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def construct(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        return self.block_2(self.attn_1(self.block_1(x)))


class Resample(nn.Cell):
    """Holds one resampling convolution under the name `conv`, as the weights have it."""

    def __init__(self, conv: nn.Cell) -> None:
        super().__init__()
        self.conv = conv

    def construct(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t2 h2 w2"]:
        return self.conv(x)


class DownLevel(nn.Cell):
    """The blocks of one resolution, then downsampling in space and in time where the level has it."""

    def __init__(self, blocks: list[ResnetBlock], channels: int, spatial: bool, temporal: bool) -> None:
        super().__init__()
        self.block = nn.CellList(blocks)
        self.has_spatial, self.has_temporal = spatial, temporal
        if spatial:
            self.downsample_spat = Resample(SpatialDownsampleConv(channels))
        if temporal:
            self.downsample_temp = Resample(TemporalConv(channels, 3, stride=2))

    def construct(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c2 t2 h2 w2"]:
        for block in self.block:
            x = block(x)
        if self.has_spatial:
            x = self.downsample_spat(x)
        if self.has_temporal:
            x = self.downsample_temp(x)
        return x


class UpLevel(nn.Cell):
    """The blocks of one resolution, then upsampling in space and in time where the level has it."""

    def __init__(self, blocks: list[ResnetBlock], channels: int, spatial: bool, temporal: bool, zero_pad: bool) -> None:
        super().__init__()
        self.block = nn.CellList(blocks)
        self.has_spatial, self.has_temporal = spatial, temporal
        if spatial:
            self.upsample_spat = Resample(SpatialUpsampleConv(channels))
        if temporal:
            self.upsample_temp = Resample(TemporalUpsampleConv(channels, zero_pad))

    def construct(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c2 t2 h2 w2"]:
        for block in self.block:
            x = block(x)
        if self.has_spatial:
            x = self.upsample_spat(x)
        if self.has_temporal:
            x = self.upsample_temp(x)
        return x


class Encoder(nn.Cell):
    """Pixels to the moments (mean and log-variance, stacked along channels) of the latent."""

    def __init__(self, config: TaeConfig) -> None:
        super().__init__()
        groups = config.norm_groups
        self.conv_in = Conv2_5d(config.in_channels, config.ch, 3)
        self.down = nn.CellList()
        channels = config.ch
        last = len(config.ch_mult) - 1
        for i, multiplier in enumerate(config.ch_mult):
            blocks = []
            for _ in range(config.num_res_blocks):
                blocks.append(ResnetBlock(channels, config.ch * multiplier, groups))
                channels = config.ch * multiplier
            self.down.append(DownLevel(blocks, channels, i < last, i in config.temporal_downsample_level))
        self.mid = Mid(channels, groups, config.attn_type == "vanilla")
        self.norm_out = GroupNorm(channels, groups)
        self.conv_out = Conv2_5d(channels, 2 * config.z_channels, 3)

    def construct(self, x: Float[Tensor, "b 3 t h w"]) -> Float[Tensor, "b 2*z t8 h8 w8"]:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(silu(self.norm_out(self.mid(x))))


class Decoder(nn.Cell):
    """Latent to pixels; `up.3` is the lowest resolution, as in the reference's names."""

    def __init__(self, config: TaeConfig) -> None:
        super().__init__()
        groups = config.norm_groups
        channels = config.ch * config.ch_mult[-1]
        self.conv_in = Conv2_5d(config.z_channels, channels, 3)
        self.mid = Mid(channels, groups, config.attn_type == "vanilla")
        levels: list[UpLevel] = []
        zero_pad = config.temporal_upsample_padding == "zeros"
        for i in reversed(range(len(config.ch_mult))):
            blocks = []
            for _ in range(config.num_res_blocks + 1):
                blocks.append(ResnetBlock(channels, config.ch * config.ch_mult[i], groups))
                channels = config.ch * config.ch_mult[i]
            levels.insert(0, UpLevel(blocks, channels, i > 0, i in config.temporal_upsample_level, zero_pad))
        self.up = nn.CellList(levels)
        self.top_down = tuple(reversed(range(len(levels))))
        self.norm_out = GroupNorm(channels, groups)
        self.conv_out = Conv2_5d(channels, config.out_ch, 3)

    def before_last(self, z: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b 3 t8 h8 w8"]:
        """What the last layer, the temporal convolution of conv_out, takes in."""
        x = self.mid(self.conv_in(z))
        for i in self.top_down:
            x = self.up[i](x)
        return self.conv_out.conv_spat(silu(self.norm_out(x)))

    def last(self, x: Float[Tensor, "b 3 t8 h8 w8"]) -> Float[Tensor, "b 3 t8 h8 w8"]:
        """Apply the last layer."""
        return self.conv_out.conv_temp(x, self.conv_out.conv_spat.bias)

    def construct(self, z: Float[Tensor, "b z t h w"]) -> Float[Tensor, "b 3 t8 h8 w8"]:
        return self.last(self.before_last(z))

"""Parts of the Movie Gen transformer (Movie Gen, section 3.1.3), parameter names as in the reference."""

import math

import mindspore as ms
import mindspore.ops.operations as prim
import numpy as np
from jaxtyping import Float
from mindspore import Parameter, Tensor, mint, nn

from mg.models.llama.config import LlamaConfig, count_tokens
from mg.ops import Linear, RMSNorm, attention, modulated_rms_norm, silu, spread

FREQUENCIES = 256
"""Width of the sinusoidal embedding of a timestep."""


class Attention(nn.Cell):
    """Multi-head attention of tokens to themselves or to the text; keys and values may have fewer heads."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        d, bias = config.hidden_size, config.attention_bias
        self.heads, self.kv_heads, self.head_dim = config.num_attention_heads, config.kv_heads, config.head_dim
        self.q_proj = Linear(d, d, bias)
        self.k_proj = Linear(d, self.kv_heads * self.head_dim, bias)
        self.v_proj = Linear(d, self.kv_heads * self.head_dim, bias)
        self.o_proj = Linear(d, d, bias)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.transpose = prim.Transpose()

    def construct(
        self, x: Float[Tensor, "b n d"], context: Float[Tensor, "b m d"], mask: Float[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Attend from x to context, or to that part of it where the mask is 1."""
        b, n, d = x.shape
        q = self.q_proj(x).reshape(b, n, self.heads, self.head_dim)
        k = self.k_proj(context).reshape(b, -1, self.kv_heads, self.head_dim)
        v = self.v_proj(context).reshape(b, -1, self.kv_heads, self.head_dim)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (self.transpose(y, (0, 2, 1, 3)) for y in (q, k, v))  # (b, heads, n, head_dim)
        if self.kv_heads != self.heads:
            k, v = self._repeated(k), self._repeated(v)
        out = attention(q, k, v, mask)
        return self.o_proj(self.transpose(out, (0, 2, 1, 3)).reshape(b, n, d))

    def _repeated(self, x: Float[Tensor, "b g m k"]) -> Float[Tensor, "b h m k"]:
        b, g, m, k = x.shape
        times = self.heads // g
        return mint.cat([x.reshape(b, g, 1, m, k)] * times, 2).reshape(b, self.heads, m, k)


class FeedForward(nn.Cell):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        d, f = config.hidden_size, config.intermediate_size
        self.gate_proj, self.up_proj = Linear(d, f, bias=False), Linear(d, f, bias=False)
        self.down_proj = Linear(f, d, bias=False)

    def construct(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Cell):
    """Self-attention, attention to the text, feed-forward; the first and the last are modulated by the timestep."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.scale_shift_table = Parameter(Tensor(np.zeros((1, 6, d), np.float32)), name="scale_shift_table")
        self.self_attn = Attention(config)
        self.cross_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = RMSNorm(d, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(d, config.rms_norm_eps)

    def construct(
        self,
        x: Float[Tensor, "b n d"],
        positions: Float[Tensor, "b n d"],
        text: Float[Tensor, "b m d"],
        mask: Float[Tensor, "b m"],
        modulation: Float[Tensor, "b 6 d"],
    ) -> Float[Tensor, "b n d"]:
        """Positions are added to the input of every block (Movie Gen, section 3.1.3)."""
        n = x.shape[1]
        table = modulation + self.scale_shift_table  # (b, 6, d) in FP32
        shift1, scale1, gate1, shift2, scale2, gate2 = (table[:, i] for i in range(6))  # each (b, d)
        x = x + positions
        y = modulated_rms_norm(x, self.input_layernorm.weight, scale1, shift1, self.input_layernorm.eps)
        x = x + spread(gate1, n).astype(x.dtype) * self.self_attn(y, y)
        x = x + self.cross_attn(x, text, mask)
        norm = self.post_attention_layernorm
        y = modulated_rms_norm(x, norm.weight, scale2, shift2, norm.eps)
        return x + spread(gate2, n).astype(x.dtype) * self.mlp(y)


class FinalLayer(nn.Cell):
    """Tokens to the numbers of their patches."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.scale_shift_table = Parameter(Tensor(np.zeros((1, 2, d), np.float32)), name="scale_shift_table")
        self.input_layernorm = RMSNorm(d, config.rms_norm_eps)
        self.proj = Linear(d, config.patch_volume, bias=False)

    def construct(self, x: Float[Tensor, "b n d"], timestep: Float[Tensor, "b d"]) -> Float[Tensor, "b n k"]:
        """Modulate by the embedding of the timestep itself, then project."""
        table = self.scale_shift_table + timestep.reshape(timestep.shape[0], 1, -1)  # (b, 2, d)
        norm = self.input_layernorm
        return self.proj(modulated_rms_norm(x, norm.weight, table[:, 1], table[:, 0], norm.eps))


class TimestepEmbedder(nn.Cell):
    """Noise level in [0, 1000] to an embedding: cosines and sines, then two linear layers; FP32."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.mlp = nn.SequentialCell(Linear(FREQUENCIES, d, bias=False), nn.SiLU(), Linear(d, d, bias=False))
        half = FREQUENCIES // 2
        frequencies = np.exp(-math.log(10000.0) * np.arange(half) / half)
        self.frequencies = Tensor(frequencies.astype(np.float32).reshape(1, half))

    def construct(self, timestep: Float[Tensor, " b"]) -> Float[Tensor, "b d"]:
        angle = timestep.reshape(-1, 1).astype(ms.float32) * self.frequencies  # (b, 128)
        return self.mlp(mint.cat((mint.cos(angle), mint.sin(angle)), -1))


class PatchEmbedder(nn.Cell):
    """Patches to tokens; the numbers of a patch are in the order (c, p, q, r)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        shape = (config.hidden_size, config.patch_volume)
        if config.patch_embedder == "conv3d":
            shape = (config.hidden_size, config.in_channels, *config.patch_size)
        self.proj = nn.Cell()
        self.proj.weight = Parameter(Tensor(np.zeros(shape, np.float32)), name="weight")

    def construct(self, patches: Float[Tensor, "b n k"]) -> Float[Tensor, "b n d"]:
        weight = self.proj.weight.reshape(self.proj.weight.shape[0], -1)
        return mint.nn.functional.linear(patches, weight.astype(patches.dtype))


class PositionTable(nn.Cell):
    """Learned embeddings of the positions along one axis."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.embedding_table = Parameter(Tensor(np.zeros((length, width), np.float32)), name="embedding_table")


@ms.ops.constexpr
def position_selector(
    size: tuple[int, int, int], patch: tuple[int, int, int], lengths: tuple[int, int, int]
) -> Float[Tensor, "n lengths"]:
    """Matrix of ones and zeros: times the three tables, one above the other, it gives every token's position.

    A product instead of gathers: its gradient is a product too, where a gather's is a slow scatter.
    """
    t, h, w = count_tokens(size, patch, lengths)
    n = t * h * w
    selector = np.zeros((n, sum(lengths)), np.float32)
    row = np.arange(n)
    for index, offset in zip(
        (row // (h * w), row // w % h, row % w), (0, lengths[0], lengths[0] + lengths[1]), strict=True
    ):
        selector[row, offset + index] = 1.0
    return Tensor(selector)

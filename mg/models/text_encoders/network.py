"""The text towers of mindone as networks of (tokens, mask)."""

import contextlib
import io
import math
import warnings
from collections.abc import Iterator

import mindspore as ms
import mindspore.ops.operations as prim
import numpy as np
from jaxtyping import Bool, Float, Int
from mindspore import Tensor, mint, nn

from mg.models.text_encoders.config import TowerConfig
from mg.ops import PORTABLE, exchange_cells, gelu_tanh, rms_norm


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # mindone prints and warns about models that have nothing to do with these.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


with _quiet():
    from mindone.transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel
    from mindone.transformers.activations import GELUActivation, NewGELUActivation
    from mindone.transformers.models.clip.modeling_clip import CLIPAttention, CLIPTextTransformer
    from mindone.transformers.models.t5.modeling_t5 import T5Attention, T5LayerNorm
    from transformers import CLIPTextConfig, T5Config


# As in mg.ops.attention: a hidden key's weight becomes exactly 0.
_HIDDEN = -1e30


def position_buckets(length: int, buckets: int, max_distance: int) -> Int[np.ndarray, "n n"]:
    """Bucket of (key position - query position) in T5's encoder (Raffel et al. 2020, section 2.1).

    Half of the buckets are for keys after the query. Of each half, one half is for single distances and the other for
    ranges that grow up to `max_distance`. FP32 throughout, as where the weights were trained: 16 tokens are the start
    of a range, and a logarithm a little too small puts them into the one before.
    """
    position = np.arange(length)[None] - np.arange(length)[:, None]  # (queries, keys)
    half = buckets // 2
    single = half // 2
    distance = np.abs(position)
    share = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(single))
    ranged = single + (share / np.float32(math.log(max_distance / single)) * np.float32(half - single)).astype(np.int64)
    bucket = np.where(distance < single, distance, np.minimum(ranged, half - 1))
    return (bucket + (position > 0) * half).astype(np.int32)


@ms.ops.constexpr
def _bucket_tensor(length: int, buckets: int, max_distance: int) -> Tensor:
    return Tensor(position_buckets(length, buckets, max_distance))


class _ExactT5Attention(T5Attention):
    """mindone's attention with the buckets of relative positions as constants: its own logarithm is off by one bucket
    at 16 and 32 tokens on the CPU.
    """

    def compute_bias(self, query_length, key_length, cache_position=None):
        """Position bias (1, heads, n, n) of an encoder, whose queries and keys are the same tokens."""
        index = _bucket_tensor(
            key_length, self.relative_attention_num_buckets, self.relative_attention_max_distance
        )
        bias = self.relative_attention_bias(index)  # (n, n, heads)
        return mint.permute(bias, (2, 0, 1)).reshape(1, self.n_heads, key_length, key_length)


def _exact(cell: T5Attention) -> T5Attention:
    cell.__class__ = _ExactT5Attention
    return cell


@ms.ops.constexpr
def _future(batch: int, length: int) -> Tensor:
    """What a causal tower adds to its scores, (b, n, n): a key after the query is hidden."""
    return Tensor(np.tile(np.triu(np.full((length, length), _HIDDEN, np.float32), 1), (batch, 1, 1)))


class _QuickClipText(CLIPTextTransformer):
    """mindone's text tower with its two masks made into one, most of it before the graph runs."""

    def construct(self, input_ids, attention_mask, **unused):
        b, n = input_ids.shape
        hidden = (attention_mask.astype(ms.float32) - 1.0) * -_HIDDEN
        # The same row for every query: a product with ones, because the CPU's sums of different shapes are slow.
        mask = prim.BatchMatMul()(ms.ops.ones((b, n, 1), ms.float32), hidden.reshape(b, 1, n)) + _future(b, n)
        mask = mint.cat([mask.reshape(b, 1, n, n)] * self.config.num_attention_heads, 1)
        x = self.embeddings(input_ids=input_ids)
        x = self.encoder(inputs_embeds=x, causal_attention_mask=mask.astype(x.dtype), return_dict=False)[0]
        x = self.final_layer_norm(x)
        # Where the text ends: its first end-of-text token, or, in the oldest configurations, its greatest token.
        ends = input_ids if self.eos_token_id == 2 else (input_ids == self.eos_token_id).astype(ms.int32)
        rows = ms.ops.argmax(ends, -1) + _firsts(b, n)
        return x, ms.ops.gather(x.reshape(b * n, -1), rows, 0)


@ms.ops.constexpr
def _firsts(batch: int, length: int) -> Tensor:
    return Tensor(np.arange(batch, dtype=np.int64) * length)


class _QuickClipAttention(CLIPAttention):
    """mindone's attention, for a mask that has the shape of its scores."""

    def construct(self, hidden_states, attention_mask=None, causal_attention_mask=None, output_attentions=False):
        b, n, d = hidden_states.shape
        q = self._heads(self.q_proj(hidden_states) * self.scale, b, n)  # (b, heads, n, d / heads)
        k = self._heads(self.k_proj(hidden_states), b, n)
        v = self._heads(self.v_proj(hidden_states), b, n)
        scores = prim.BatchMatMul(transpose_b=True)(q, k) + causal_attention_mask  # (b, heads, n, n)
        out = prim.BatchMatMul()(ms.ops.softmax(scores, -1), v)
        return self.out_proj(prim.Transpose()(out, (0, 2, 1, 3)).reshape(b, n, d)), None

    def _heads(self, x, b, n):
        return prim.Transpose()(x.reshape(b, n, self.num_heads, self.head_dim), (0, 2, 1, 3))


def _quick_attention(cell):
    cell.__class__ = _QuickClipAttention
    return cell


def _quick_text(cell):
    cell.__class__ = _QuickClipText
    return cell


class _QuickT5LayerNorm(T5LayerNorm):
    """mindone's norm by the quickest kernels; in the type of its weight, as the original."""

    def construct(self, hidden_states):
        return rms_norm(hidden_states, self.weight, self.variance_epsilon).astype(self.weight.dtype)


def _quick(cell: T5LayerNorm) -> T5LayerNorm:
    cell.__class__ = _QuickT5LayerNorm
    return cell


class GeluTanh(nn.Cell):
    """x * Phi(x) by the tanh formula; one kernel, or a few, instead of mindone's eight."""

    def construct(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return gelu_tanh(x)


_EXACT = {T5Attention: _exact}
_EXCHANGED = {
    **PORTABLE,
    GELUActivation: PORTABLE[mint.nn.GELU],
    NewGELUActivation: lambda _: GeluTanh(),
    CLIPAttention: _quick_attention,
    CLIPTextTransformer: _quick_text,
    T5LayerNorm: _quick,
}


class TextTower(nn.Cell):
    """A text tower: token ids and their mask to one embedding per token.

    Args:
        config: which tower and its sizes.
        projection: also give the projected embedding of the whole text (CLIP).
    """

    def __init__(self, config: TowerConfig, projection: bool = False) -> None:
        super().__init__()
        self.projection = projection
        self.model = _build(config, projection)

    def construct(
        self, tokens: Int[Tensor, "b n"], mask: Int[Tensor, "b n"] | Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b n d"] | tuple[Float[Tensor, "b p"], Float[Tensor, "b n d"]]:
        """Embed tokens.

        Returns:
            The embedding of every token (after the tower's last norm), of those that are padding too; with
            `projection` the pair of text and token embeddings.
        """
        out = self.model(input_ids=tokens, attention_mask=mask, return_dict=False)
        return (out[0], out[1]) if self.projection else out[0]


def _build(config: TowerConfig, projection: bool) -> nn.Cell:
    values = {name: value for name, value in config.values.items() if name not in ("dtype", "torch_dtype")}
    with _quiet():
        if config.kind == "metaclip":
            hf = CLIPTextConfig(**values)
            hf._attn_implementation = "eager"
            model = (CLIPTextModelWithProjection if projection else CLIPTextModel)(hf)
        else:
            # The encoder half alone: no cache, no decoder.
            model = T5EncoderModel(T5Config(**{**values, "is_encoder_decoder": False, "use_cache": False}))
    exchange_cells(model, _EXACT, always=True)
    exchange_cells(model, _EXCHANGED)
    return model.set_train(False)

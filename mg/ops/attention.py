"""Scaled dot-product attention: Ascend's fused kernel, elsewhere one with a bounded score matrix."""

from collections.abc import Callable

import mindspore as ms
import mindspore.ops.operations as prim
from jaxtyping import Bool, Float
from mindspore import Tensor, mint

from mg import device
from mg.ops.backend import on_cpu

# Score elements (batch x heads x queries x keys) held at once; 64 M FP32 elements are 256 MB.
MAX_SCORES = 1 << 26

# Added to the score of a key that is not to be seen: its weight becomes exactly 0, without the NaN that -inf would give
# where no key is left.
_HIDDEN = -1e30


@ms.ops.constexpr
def _on_ascend() -> bool:
    return device.is_ascend()


def attention(
    q: Float[Tensor, "b heads n d"],
    k: Float[Tensor, "b heads m d"],
    v: Float[Tensor, "b heads m d"],
    key_mask: Bool[Tensor, "b m"] | Float[Tensor, "b m"] | None = None,
    fused: bool | None = None,
) -> Float[Tensor, "b heads n d"]:
    """Attend to all keys, or to those where `key_mask` is True (or 1); softmax in FP32.

    A batch entry without a single True gives zeros.

    Args:
        q: queries.
        k: keys.
        v: values.
        key_mask: None attends to all.
        fused: True for Ascend's flash attention, False for the portable way, None to choose by backend. The portable
            way takes long sequences in chunks of queries or of the batch, chosen from the static shapes, so that the
            score matrix never holds more than `MAX_SCORES` elements (one row of one batch entry is the least).
    """
    attend = flash_attention if (_on_ascend() if fused is None else fused) else _portable_attention
    if key_mask is None:
        return attend(q, k, v, None)
    b, m = key_mask.shape
    seen = key_mask.reshape(b, 1, 1, m).astype(ms.float32)  # (b, 1, 1, m)
    out = attend(q, k, v, seen)
    return out * mint.max(seen, -1, keepdim=True)[0].astype(out.dtype)


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor | None,
    kernel: Callable[..., Tensor] = ms.ops.flash_attention_score,
    narrow: ms.Type = None,
) -> Tensor:
    """Call Ascend's kernel, which knows 16-bit types only and takes a mask of what is hidden.

    Args:
        q: (b, heads, n, d).
        k: keys.
        v: values.
        seen: (b, 1, 1, m), 1 where a key may be seen, or None.
        kernel: the operator.
        narrow: type of its operands; None for that of q, or BF16 where that is FP32.
    """
    b, heads, n, d = q.shape
    if narrow is None:
        narrow = ms.bfloat16 if q.dtype == ms.float32 else q.dtype
    hidden = None
    if seen is not None:
        hidden = mint.broadcast_to(1.0 - seen, (b, 1, n, k.shape[2])).astype(ms.uint8)
    out = kernel(
        q.astype(narrow), k.astype(narrow), v.astype(narrow), heads,
        attn_mask=hidden, scalar_value=float(d) ** -0.5, input_layout="BNSD",
    )  # fmt: skip
    return out.astype(q.dtype)


def _portable_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
    b, heads, n, d = q.shape
    m = k.shape[2]
    if m == 1:
        # The softmax of one score is 1. Besides, once the CPU's softmax has had an axis of 1, its gradient in PyNative
        # is wrong for all later shapes.
        return v if n == 1 else mint.broadcast_to(v, (b, heads, n, d))
    q = q * float(d) ** -0.5
    bias = None if seen is None else (seen - 1.0) * -_HIDDEN  # (b, 1, 1, m)
    if bias is not None and on_cpu() and k.dtype == ms.float32:
        # The bias becomes one more feature of the keys, met by a 1 in the queries: adding it to the scores, which have
        # another shape, would take longer than the product that makes them.
        q = mint.cat((q, ms.ops.ones((b, heads, n, 1), q.dtype)), -1)
        k = mint.cat((k, _spread_heads(bias.astype(k.dtype), heads)), -1)
        bias = None
    if b * heads * n * m <= MAX_SCORES:
        return _attend(q, k, v, bias)
    if heads * n * m <= MAX_SCORES:
        step = max(1, MAX_SCORES // (heads * n * m))
        out = []
        for i in range(0, b, step):
            part = None if bias is None else bias[i : i + step]
            queries = _after(q[i : i + step], out)
            out.append(_attend(queries, k[i : i + step], v[i : i + step], part))
        return mint.cat(out, 0)
    step = max(1, MAX_SCORES // (heads * m))
    rows = []
    for i in range(b):
        part = None if bias is None else bias[i : i + 1]
        keys, values = k[i : i + 1], v[i : i + 1]
        chunks = []
        for j in range(0, n, step):
            queries = _after(q[i : i + 1, :, j : j + step], chunks or rows)
            chunks.append(_attend(queries, keys, values, part))
        rows.append(mint.cat(chunks, 2))
    return mint.cat(rows, 0)


def _after(queries: Tensor, done: list[Tensor]) -> Tensor:
    """Let a chunk wait for the one before: a graph would make the scores of all of them first, and hold them."""
    return ms.ops.depend(queries, done[-1]) if done else queries


def _spread_heads(bias: Float[Tensor, "b 1 1 m"], heads: int) -> Float[Tensor, "b heads m 1"]:
    b, m = bias.shape[0], bias.shape[3]
    return mint.cat([bias.reshape(b, 1, m, 1)] * heads, 1)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    scores = prim.BatchMatMul(transpose_b=True)(q, k).astype(ms.float32)  # (b, heads, queries, keys)
    if bias is not None:
        scores = scores + bias
    weights = mint.nn.functional.softmax(scores, -1)
    return prim.BatchMatMul()(weights.astype(v.dtype), v)

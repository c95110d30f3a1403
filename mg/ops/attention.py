"""Scaled dot-product attention with a bounded score matrix."""

import mindspore as ms
from jaxtyping import Bool, Float
from mindspore import Tensor, mint

# Score elements (batch x heads x queries x keys) held at once; 64 M FP32 elements are 256 MB.
MAX_SCORES = 1 << 26


# Added to the score of a key that is not to be seen: its weight becomes exactly 0, without the NaN that -inf would give
# where no key is left.
_HIDDEN = -1e30


def _attend(q: Tensor, k_t: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> Tensor:
    scores = mint.matmul(q, k_t).astype(ms.float32) * scale  # (b, heads, queries, keys)
    if bias is not None:
        scores = scores + bias
    weights = mint.nn.functional.softmax(scores, -1)
    return mint.matmul(weights.astype(v.dtype), v)


def attention(
    q: Float[Tensor, "b heads n d"],
    k: Float[Tensor, "b heads m d"],
    v: Float[Tensor, "b heads m d"],
    key_mask: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b heads n d"]:
    """Attend to all keys, or to those where `key_mask` is True; softmax in FP32.

    A batch entry without a single True gives zeros. Long sequences go through in chunks of queries or of the batch,
    chosen from the static shapes, so that the score matrix never holds more than `MAX_SCORES` elements (one row of one
    batch entry is the least).
    """
    if key_mask is None:
        return _attention(q, k, v, None)
    b, m = key_mask.shape
    seen = key_mask.reshape(b, 1, 1, m).astype(ms.float32)  # (b, 1, 1, m)
    out = _attention(q, k, v, (seen - 1.0) * -_HIDDEN)
    return out * mint.max(seen, -1, keepdim=True)[0].astype(out.dtype)


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    b, heads, n, d = q.shape
    m = k.shape[2]
    if m == 1:
        # The softmax of one score is 1. Besides, once the CPU's softmax has had an axis of 1, its gradient in PyNative
        # is wrong for all later shapes.
        return v if n == 1 else mint.broadcast_to(v, (b, heads, n, d))
    scale = float(d) ** -0.5
    k_t = mint.permute(k, (0, 1, 3, 2))  # (b, heads, d, m)
    if b * heads * n * m <= MAX_SCORES:
        return _attend(q, k_t, v, scale, bias)
    if heads * n * m <= MAX_SCORES:
        step = max(1, MAX_SCORES // (heads * n * m))
        out = []
        for i in range(0, b, step):
            part = None if bias is None else bias[i : i + step]
            out.append(_attend(q[i : i + step], k_t[i : i + step], v[i : i + step], scale, part))
        return mint.cat(out, 0)
    step = max(1, MAX_SCORES // (heads * m))
    rows = []
    for i in range(b):
        part = None if bias is None else bias[i : i + 1]
        chunks = []
        for j in range(0, n, step):
            chunks.append(_attend(q[i : i + 1, :, j : j + step], k_t[i : i + 1], v[i : i + 1], scale, part))
        rows.append(mint.cat(chunks, 2))
    return mint.cat(rows, 0)

"""Scaled dot-product attention with a bounded score matrix."""

import mindspore as ms
from jaxtyping import Float
from mindspore import Tensor, mint

# Score elements (batch x heads x queries x keys) held at once; 64 M FP32 elements are 256 MB.
MAX_SCORES = 1 << 26


def _attend(q: Tensor, k_t: Tensor, v: Tensor, scale: float) -> Tensor:
    scores = mint.matmul(q, k_t).astype(ms.float32) * scale  # (b, heads, queries, keys)
    weights = mint.nn.functional.softmax(scores, -1)
    return mint.matmul(weights.astype(v.dtype), v)


def attention(
    q: Float[Tensor, "b heads n d"], k: Float[Tensor, "b heads m d"], v: Float[Tensor, "b heads m d"]
) -> Float[Tensor, "b heads n d"]:
    """Attend without a mask, softmax in FP32; long sequences go through in chunks of queries or of the batch.

    The chunks are chosen from the static shapes, so that the score matrix never holds more than `MAX_SCORES` elements
    (one row of one batch entry is the least).
    """
    b, heads, n, d = q.shape
    m = k.shape[2]
    if m == 1:
        # The softmax of one score is 1. Besides, once the CPU's softmax has had an axis of 1, its gradient in PyNative
        # is wrong for all later shapes.
        return v if n == 1 else mint.broadcast_to(v, (b, heads, n, d))
    scale = float(d) ** -0.5
    k_t = mint.permute(k, (0, 1, 3, 2))  # (b, heads, d, m)
    if b * heads * n * m <= MAX_SCORES:
        return _attend(q, k_t, v, scale)
    if heads * n * m <= MAX_SCORES:
        step = max(1, MAX_SCORES // (heads * n * m))
        out = []
        for i in range(0, b, step):
            out.append(_attend(q[i : i + step], k_t[i : i + step], v[i : i + step], scale))
        return mint.cat(out, 0)
    step = max(1, MAX_SCORES // (heads * m))
    rows = []
    for i in range(b):
        chunks = []
        for j in range(0, n, step):
            chunks.append(_attend(q[i : i + 1, :, j : j + step], k_t[i : i + 1], v[i : i + 1], scale))
        rows.append(mint.cat(chunks, 2))
    return mint.cat(rows, 0)

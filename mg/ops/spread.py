"""One vector per sample for all its tokens."""

import mindspore as ms
import mindspore.ops.operations as prim
from jaxtyping import Float
from mindspore import Tensor

from mg.ops.backend import on_cpu


def spread(vectors: Float[Tensor, "b d"], n: int) -> Float[Tensor, "b n d"]:
    """Repeat each sample's vector for its n tokens, or leave that to broadcasting: (b, 1, d).

    The CPU takes six times as long for sums and products of different shapes as for equal ones, and for the sums in
    their gradients; there the repetition, and its gradient, is a matrix product with ones.
    """
    b, d = vectors.shape
    if not on_cpu():
        return vectors.reshape(b, 1, d)
    return prim.BatchMatMul()(ms.ops.ones((b, n, 1), vectors.dtype), vectors.reshape(b, 1, d))

"""A constant per channel, with a gradient by the quickest kernels."""

import mindspore as ms
import mindspore.ops.operations as prim
from jaxtyping import Float
from mindspore import Tensor, nn
from mindspore.ops.operations._grad_ops import BiasAddGrad

from mg import device

PRODUCT_FROM = 1 << 19
"""Elements from which on two products with ones sum quicker than the CPU's own kernel."""


class AddBias(nn.Cell):
    """Add a bias to the channels of (n, c, ...): construct(x, bias) -> x + bias, in the type of x.

    Not by broadcasting: on the CPU a broadcast sum keeps buffers of the size of x until the graph ends.
    """

    def __init__(self) -> None:
        super().__init__()
        self.add = _SummedByProducts() if device.is_cpu() else prim.BiasAdd()

    def construct(self, x: Float[Tensor, "n c *rest"], bias: Float[Tensor, " c"]) -> Float[Tensor, "n c *rest"]:
        return self.add(x, bias.astype(x.dtype))


class _SummedByProducts(nn.Cell):
    """For the CPU: the gradient of a large bias as products with ones, 2.5 times as quick, and more exact."""

    def __init__(self) -> None:
        super().__init__()
        self.add, self.sum, self.product = prim.BiasAdd(), BiasAddGrad(), prim.MatMul()

    def construct(self, x: Float[Tensor, "n c *rest"], bias: Float[Tensor, " c"]) -> Float[Tensor, "n c *rest"]:
        return self.add(x, bias)

    def bprop(self, x: Tensor, bias: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of both."""
        if dout.size < PRODUCT_FROM:
            return dout, self.sum(dout)
        n, c = dout.shape[:2]
        rows = dout.reshape(n * c, -1)
        sums = self.product(rows, ms.ops.ones((rows.shape[1], 1), rows.dtype)).reshape(n, c)
        return dout, self.product(ms.ops.ones((1, n), rows.dtype), sums).reshape(c)

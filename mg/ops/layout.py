"""Exchange of two axes in front of whole frames."""

import mindspore as ms
import mindspore.ops.operations as prim
import numpy as np
from jaxtyping import Float
from mindspore import Tensor, mint, nn

from mg import device


@ms.ops.constexpr
def _swapped_rows(outer: int, first: int, second: int) -> Tensor:
    """Row numbers of (outer, first, second) in the order of (outer, second, first)."""
    rows = np.arange(outer * first * second, dtype=np.int32).reshape(outer, first, second)
    return Tensor(np.ascontiguousarray(rows.transpose(0, 2, 1)).reshape(-1))


class SwapFrames(nn.Cell):
    """(b, m, n, h, w) to (b, n, m, h, w): frames in front of channels or back.

    Off Ascend the frames are moved as rows of a gather: the CPU's transpose keeps two buffers of the tensor's size
    until the graph ends, and its permute copies element by element, ten times slower.
    """

    def __init__(self, native: bool | None = None) -> None:
        super().__init__()
        self.native = device.is_ascend() if native is None else native
        self.gather = prim.Gather()

    def construct(self, x: Float[Tensor, "b m n h w"]) -> Float[Tensor, "b n m h w"]:
        if self.native:
            return mint.permute(x, (0, 2, 1, 3, 4))
        b, m, n, h, w = x.shape
        return self.gather(x.reshape(b * m * n, h * w), _swapped_rows(b, m, n), 0).reshape(b, n, m, h, w)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """Swap the gradient back (the gather's own gradient would be a slow scatter)."""
        return (self.construct(dout),)

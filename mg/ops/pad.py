"""Edge padding and cropping by slices: the padding operators lack kernels or crash on some backends."""

import mindspore as ms
import mindspore.ops.operations as prim
import numpy as np
from jaxtyping import Float
from mindspore import Tensor, mint, nn

from mg import device


def pad_edge(x: Float[Tensor, "..."], axis: int, before: int, after: int) -> Float[Tensor, "..."]:
    """Repeat the first and last slice along one axis.

    Args:
        x: any shape.
        axis: axis to extend, 0 or greater.
        before: how many copies of the first slice to put in front, 0 or more.
        after: how many copies of the last slice to append, 0 or more.
    """
    if before == 0 and after == 0:
        return x
    size = x.shape[axis]
    parts = [mint.narrow(x, axis, 0, 1)] * before + [x] + [mint.narrow(x, axis, size - 1, 1)] * after
    return mint.cat(parts, axis)


@ms.ops.constexpr
def _padded_rows(videos: int, frames: int, border: int) -> Tensor:
    """Row numbers of (videos, frames) with the first and the last frame of each video repeated."""
    inside = np.clip(np.arange(-border, frames + border), 0, frames - 1)
    return Tensor((np.arange(videos)[:, None] * frames + inside).astype(np.int32).reshape(-1))


@ms.ops.constexpr
def _folding(videos: int, frames: int, border: int) -> Tensor:
    """Matrices that add what stands on repeated frames to the frames they repeat."""
    source = np.clip(np.arange(-border, frames + border), 0, frames - 1)
    matrix = (np.arange(frames)[:, None] == source).astype(np.float32)
    return Tensor(np.ascontiguousarray(np.broadcast_to(matrix, (videos, *matrix.shape))))


def pad_frames(border: int) -> nn.Cell:
    """Return a cell that repeats the first and the last frame: (b, c, t, h, w) to (b, c, t + 2 * border, h, w).

    Args:
        border: copies in front and behind, 0 or more.
    """
    return _GatheredFrames(border) if border > 0 and device.is_cpu() else _JoinedFrames(border)


class _JoinedFrames(nn.Cell):
    def __init__(self, border: int) -> None:
        super().__init__()
        self.border = border

    def construct(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t2 h w"]:
        return pad_edge(x, 2, self.border, self.border)


class _GatheredFrames(nn.Cell):
    """For the CPU: frames are moved as rows of a gather, and the gradient is one matrix product.

    The gradient of slices and concatenation would make three tensors of the whole size and add them.
    """

    def __init__(self, border: int) -> None:
        super().__init__()
        self.border = border
        self.gather, self.product = prim.Gather(), prim.BatchMatMul()

    def construct(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t2 h w"]:
        b, c, t, h, w = x.shape
        rows = _padded_rows(b * c, t, self.border)
        return self.gather(x.reshape(b * c * t, h * w), rows, 0).reshape(b, c, t + 2 * self.border, h, w)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        """Fold the gradient of the copies back."""
        b, c, t, h, w = x.shape
        folding = _folding(b * c, t, self.border).astype(dout.dtype)
        return (self.product(folding, dout.reshape(b * c, -1, h * w)).reshape(b, c, t, h, w),)


def crop(x: Float[Tensor, "b c t h w"], frames: int, height: int, width: int) -> Float[Tensor, "b c t2 h2 w2"]:
    """Keep the first frames, rows and columns; a size that already fits costs nothing."""
    if x.shape[2] > frames:
        x = x[:, :, :frames]
    if x.shape[3] > height:
        x = x[:, :, :, :height]
    if x.shape[4] > width:
        x = x[:, :, :, :, :width]
    return x


def pad_zero(x: Float[Tensor, "..."], axis: int, after: int) -> Float[Tensor, "..."]:
    """Append zeros along one axis; `after` may be 0."""
    if after == 0:
        return x
    shape = list(x.shape)
    shape[axis] = after
    return mint.cat((x, mint.zeros(tuple(shape), dtype=x.dtype)), axis)

"""Edge padding and cropping by slices: the padding operators lack kernels or crash on some backends."""

from jaxtyping import Float
from mindspore import Tensor, mint


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

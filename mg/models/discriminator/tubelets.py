"""Cuts in space and time at given places: a discriminator that sees them costs what they cost, not the whole clip."""

import mindspore as ms
import mindspore.ops.operations as prim
import numpy as np
from jaxtyping import Float, Int
from mindspore import Tensor, mint

# Not mint.matmul, whose gradient does not compile for a single image, (1, k, 1) x (1, 1, n).
_product = prim.BatchMatMul()


def tubelet_size(wanted: tuple[int, int, int], frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Return frames, height and width of a cut: what is wanted, or as much as the clip has."""
    return min(wanted[0], frames), min(wanted[1], height), min(wanted[2], width)


def draw_tubelets(
    rng: np.random.Generator, mask: Float[np.ndarray, "b t"], height: int, width: int, count: int,
    wanted: tuple[int, int, int],
) -> Int[np.ndarray, "b n 3"]:
    """Draw the first frame, row and column of `count` cuts per clip, evenly over all places within the clip.

    A cut starts so early that it holds valid frames only, where the clip has that many.
    """
    b, t = mask.shape
    size = tubelet_size(wanted, t, height, width)
    valid = mask.sum(1).astype(np.int64)  # (b,)
    places = np.empty((b, 3), np.int64)
    places[:, 0] = np.maximum(valid - size[0], 0) + 1
    places[:, 1:] = height - size[1] + 1, width - size[2] + 1
    drawn = np.floor(rng.random((b, count, 3)) * places[:, None]).astype(np.int32)
    return np.minimum(drawn, places[:, None] - 1).astype(np.int32)


def _pick(starts: Int[Tensor, " m"], size: int, extent: int) -> Float[Tensor, "m size extent"]:
    """Zeros and ones that take `size` neighbours out of `extent` by a matrix product, one matrix per start."""
    wanted = starts.reshape(-1, 1, 1) + Tensor(np.arange(size, dtype=np.int32).reshape(1, size, 1))
    there = Tensor(np.arange(extent, dtype=np.int32).reshape(1, 1, extent))
    return (wanted == there).astype(ms.float32)


def cut_tubelets(
    x: Float[Tensor, "b t c h w"], mask: Float[Tensor, "b t"], starts: Int[Tensor, "b n 3"],
    wanted: tuple[int, int, int],
) -> tuple[Float[Tensor, "bn t2 c h2 w2"], Float[Tensor, "bn t2"]]:
    """Cut out the tubelets and their masks; products with zeros and ones, whose gradients are as quick."""
    b, t, c, h, w = x.shape
    n = starts.shape[1]
    frames, height, width = tubelet_size(wanted, t, h, w)
    times = _pick(starts[:, :, 0].reshape(-1), frames, t).reshape(b, n * frames, t)
    cut_mask = _product(times, mask.reshape(b, t, 1)).reshape(b * n, frames)
    y = _product(times, x.reshape(b, t, c * h * w)).reshape(b * n, frames * c, h, w)
    rows = _pick(starts[:, :, 1].reshape(-1), height, h)  # (b*n, height, h)
    columns = _pick(starts[:, :, 2].reshape(-1), width, w)  # (b*n, width, w)
    y = _product(y.reshape(b * n, frames * c * h, w), mint.permute(columns, (0, 2, 1)))  # (b*n, frames*c*h, width)
    rows = mint.broadcast_to(rows.reshape(b * n, 1, height, h), (b * n, frames * c, height, h))
    y = _product(rows, y.reshape(b * n, frames * c, h, width))
    return y.reshape(b * n, frames, c, height, width), cut_mask

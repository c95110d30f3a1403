"""LPIPS of clips, by any network that compares pictures."""

from collections.abc import Callable

import numpy as np
from mindspore import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]
"""Pictures float32 (n, 3, h, w) twice, in the value range it was made for, to float32 (n,)."""

CHUNK = 4
"""Pictures compared at once."""


def lpips_frames(a: np.ndarray, b: np.ndarray, distance: Distance) -> np.ndarray:
    """Distance of each pair of frames.

    Args:
        a: (t, h, w, 3), in the value range of `distance`; t >= 1.
        b: the same shape.
        distance: a network, such as mg.models.perceptual.Lpips made with that value range.

    Returns:
        float64 (t,).

    Raises:
        ValueError: shapes differ, or they are not those of RGB frames.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim != 4 or a.shape[-1] != 3 or len(a) == 0:
        raise ValueError(f"lpips: shapes {a.shape} and {b.shape}; give two clips (t, h, w, 3) of one shape")
    found = []
    for start in range(0, len(a), CHUNK):
        rows = np.arange(start, start + min(CHUNK, len(a))).clip(max=len(a) - 1)  # one shape: compiled once
        x, y = (Tensor(np.ascontiguousarray(clip[rows].transpose(0, 3, 1, 2), np.float32)) for clip in (a, b))
        found.append(distance(x, y).asnumpy()[: len(a) - start])
    return np.concatenate(found).astype(np.float64)


def lpips(a: np.ndarray, b: np.ndarray, distance: Distance) -> float:
    """Mean over frames of `lpips_frames`; 0 for equal clips."""
    return float(lpips_frames(a, b, distance).mean())

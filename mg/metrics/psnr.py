"""Peak signal-to-noise ratio."""

import numpy as np


def psnr(a: np.ndarray, b: np.ndarray, data_range: float) -> float:
    """Peak signal-to-noise ratio of a whole clip in dB: the squared error is averaged over everything first.

    Args:
        a: any shape, integers or floats.
        b: the same shape.
        data_range: largest minus smallest possible value: 255 for uint8, 2 for pixels in [-1, 1].

    Returns:
        10 log10(data_range^2 / MSE), infinity for equal arrays.

    Raises:
        ValueError: shapes differ, arrays are empty, or data_range is not positive.
    """
    return float(psnr_frames(np.asarray(a)[None], np.asarray(b)[None], data_range)[0])


def psnr_frames(a: np.ndarray, b: np.ndarray, data_range: float) -> np.ndarray:
    """Peak signal-to-noise ratio of each frame in dB.

    Args:
        a: (t, ...), frames along the first axis.
        b: the same shape.
        data_range: largest minus smallest possible value.

    Returns:
        float64 (t,).

    Raises:
        ValueError: shapes differ, arrays are empty, or data_range is not positive.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        raise ValueError(f"psnr: shapes {a.shape} and {b.shape} differ")
    if a.size == 0:
        raise ValueError(f"psnr: nothing to compare, the shape is {a.shape}")
    if not data_range > 0:
        raise ValueError(f"psnr: data_range {data_range} must be positive")
    # Frame by frame: float64 copies of a whole clip would take eight times the memory of its bytes.
    mse = np.array([np.mean((x.astype(np.float64) - y.astype(np.float64)) ** 2) for x, y in zip(a, b, strict=True)])
    with np.errstate(divide="ignore"):
        return 10.0 * np.log10(float(data_range) ** 2 / mse)

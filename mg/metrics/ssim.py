"""Structural similarity (Wang et al., 2004), with the Gaussian window of that paper."""

import cv2
import numpy as np

_RADIUS = 5
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03


def ssim(a: np.ndarray, b: np.ndarray, data_range: float) -> float:
    """Mean structural similarity: per frame over pixels and channels, then over frames.

    The window is an 11x11 Gaussian of sigma 1.5, variances are population variances, and the 5 pixels along each
    border, where the window does not fit, do not count.

    Args:
        a: (h, w, c) or (t, h, w, c) with c <= 4, integers or floats.
        b: the same shape.
        data_range: largest minus smallest possible value: 255 for uint8, 2 for pixels in [-1, 1].

    Returns:
        A number in [-1, 1]; 1 means equal.

    Raises:
        ValueError: shapes differ or are of another rank, frames are smaller than 11x11, or data_range is not positive.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        raise ValueError(f"ssim: shapes {a.shape} and {b.shape} differ")
    if a.ndim not in (3, 4) or not 1 <= a.shape[-1] <= 4 or a.size == 0:
        raise ValueError(f"ssim: shape {a.shape} is neither (h, w, c) nor (t, h, w, c) with 1 to 4 channels")
    if min(a.shape[-3:-1]) < 2 * _RADIUS + 1:
        raise ValueError(f"ssim: frames of {a.shape[-3]}x{a.shape[-2]} are smaller than the 11x11 window")
    if not data_range > 0:
        raise ValueError(f"ssim: data_range {data_range} must be positive")
    if a.ndim == 3:
        return _ssim_frame(a, b, data_range)
    return float(np.mean([_ssim_frame(x, y, data_range) for x, y in zip(a, b, strict=True)]))


def _ssim_frame(a: np.ndarray, b: np.ndarray, data_range: float) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)  # (h, w, c)
    mean_a, mean_b = _blur(a), _blur(b)
    var_a = _blur(a * a) - mean_a * mean_a
    var_b = _blur(b * b) - mean_b * mean_b
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return float(np.mean(luminance * structure))


def _blur(x: np.ndarray) -> np.ndarray:
    """Gaussian window means where the window fits; (h, w, c) -> (h - 10, w - 10, c)."""
    offsets = np.arange(-_RADIUS, _RADIUS + 1, dtype=np.float64)
    kernel = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    kernel /= kernel.sum()
    blurred = cv2.sepFilter2D(x, cv2.CV_64F, kernel, kernel)
    return blurred.reshape(x.shape)[_RADIUS:-_RADIUS, _RADIUS:-_RADIUS]  # OpenCV drops a channel axis of length one

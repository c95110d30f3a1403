"""From decoded frames to network input and back: scale, crop, change the value range."""

import cv2
import numpy as np

# Looking a byte up is several times faster than dividing it, and exactly the same number.
_BYTE_TO_UNIT = (np.arange(256, dtype=np.float64) / 127.5 - 1.0).astype(np.float32)


def resize(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale every frame to exactly `size`, each side by its own factor.

    Args:
        frames: uint8 (t, h, w, 3).
        size: (H, W) in pixels.

    Returns:
        uint8 (t, H, W, 3): area averages where the picture shrinks, cubic interpolation where it grows.
    """
    t, h, w, _ = frames.shape
    if (h, w) == tuple(size):
        return np.ascontiguousarray(frames)
    method = cv2.INTER_AREA if size[0] <= h and size[1] <= w else cv2.INTER_CUBIC
    out = np.empty((t, *size, 3), dtype=np.uint8)
    for index in range(t):
        cv2.resize(frames[index], (size[1], size[0]), dst=out[index], interpolation=method)
    return out


def shrink_short_side(frames: np.ndarray, short_side: int) -> np.ndarray:
    """Shrink frames so that their short side is `short_side` pixels; smaller ones stay as they are.

    Args:
        frames: uint8 (t, h, w, 3).
        short_side: pixels.

    Returns:
        uint8 (t, H, W, 3) with min(H, W) <= short_side and the same aspect ratio to within a pixel.
    """
    h, w = frames.shape[1:3]
    short = min(h, w)
    if short <= short_side:
        return frames
    return resize(frames, (max(1, round(h * short_side / short)), max(1, round(w * short_side / short))))


def resize_cover_crop(
    frames: np.ndarray, size: tuple[int, int], position: tuple[float, float] = (0.5, 0.5)
) -> np.ndarray:
    """Scale frames until they just cover `size`, then cut `size` out of them.

    Args:
        frames: uint8 (t, h, w, 3).
        size: (H, W) in pixels.
        position: where to cut, (vertical, horizontal), each in [0, 1]; (0.5, 0.5) is the centre.

    Returns:
        uint8 (t, H, W, 3).
    """
    h, w = frames.shape[1:3]
    scale = max(size[0] / h, size[1] / w)
    cover = (max(size[0], round(h * scale)), max(size[1], round(w * scale)))
    frames = resize(frames, cover)  # (t, h', w', 3)
    top = int((cover[0] - size[0]) * position[0] + 0.5)
    left = int((cover[1] - size[1]) * position[1] + 0.5)
    return np.ascontiguousarray(frames[:, top : top + size[0], left : left + size[1]])


def crop_resize(
    frames: np.ndarray, size: tuple[int, int], window: float = 1.0, position: tuple[float, float] = (0.5, 0.5)
) -> np.ndarray:
    """Cut a window with the aspect ratio of `size` out of the source, then scale it to `size`.

    With `window` = 1 this is `resize_cover_crop` up to rounding, at a cost that does not grow with the parts cut off.

    Args:
        frames: uint8 (t, h, w, 3).
        size: (H, W) in pixels.
        window: side of the window as a share of the largest one that fits, in (0, 1].
        position: where to cut, (vertical, horizontal), each in [0, 1].

    Returns:
        uint8 (t, H, W, 3).
    """
    h, w = frames.shape[1:3]
    scale = window / max(size[0] / h, size[1] / w)  # source pixels per pixel of the result
    cut = (min(h, max(1, round(size[0] * scale))), min(w, max(1, round(size[1] * scale))))
    top = int((h - cut[0]) * position[0] + 0.5)
    left = int((w - cut[1]) * position[1] + 0.5)
    return resize(frames[:, top : top + cut[0], left : left + cut[1]], size)


def to_tensor(frames: np.ndarray) -> np.ndarray:
    """Turn frames into network input.

    Args:
        frames: uint8 (t, h, w, 3) in 0..255.

    Returns:
        float32 (3, t, h, w) in [-1, 1], equal to frames / 127.5 - 1.
    """
    return _BYTE_TO_UNIT[frames.transpose(3, 0, 1, 2)]  # (t, h, w, 3) -> (3, t, h, w)


def to_frames(x: np.ndarray) -> np.ndarray:
    """Turn network output into frames; inverse of `to_tensor`.

    Args:
        x: float (3, t, h, w); values outside [-1, 1] are clipped.

    Returns:
        uint8 (t, h, w, 3), rounded to the nearest byte.

    Raises:
        ValueError: x holds NaN or infinity, which would otherwise become an arbitrary grey.
    """
    if not np.isfinite(x).all():
        raise ValueError("to_frames: the video holds NaN or infinite values")
    scaled = np.rint((np.asarray(x, dtype=np.float32) + 1.0) * 127.5)
    return np.ascontiguousarray(np.clip(scaled, 0, 255).astype(np.uint8).transpose(1, 2, 3, 0))  # (t, h, w, 3)

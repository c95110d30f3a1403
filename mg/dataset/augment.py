"""How a training clip is altered: cut, mirrored, turned, reversed, recoloured; every number is drawn outside."""

import numpy as np
from jaxtyping import Float, UInt8

from mg.config.clips import ClipSettings
from mg.dataset.transforms import crop_resize

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32).reshape(3, 1, 1, 1)


def pick(uniform: float, count: int) -> int:
    """Turn a number in [0, 1) into one of 0..count-1."""
    return min(int(uniform * count), count - 1)


def reshape(
    frames: UInt8[np.ndarray, "t h1 w1 3"], settings: ClipSettings, draw: Float[np.ndarray, "16"]
) -> UInt8[np.ndarray, "t h w 3"]:
    """Crop, scale, mirror, turn and reverse a clip; numbers 3 to 8 of the draw, each in [0, 1), say how."""
    h, w = frames.shape[1:3]
    shrink = min(h / settings.size[0], w / settings.size[1])  # below 1 the source is enlarged anyway
    widest = max(1.0, min(1.0 / settings.min_scale, shrink))
    narrowest = min(1.0 / settings.max_scale, widest)
    window = 1.0 / (narrowest + draw[3] * (widest - narrowest))
    position = (float(draw[4]), float(draw[5])) if settings.random_crop else (0.5, 0.5)
    frames = crop_resize(frames, settings.size, window, position)
    if settings.flip and draw[6] < 0.5:
        frames = frames[:, :, ::-1]
    if settings.transpose:
        frames = np.rot90(frames, pick(draw[7], 4), axes=(1, 2))
    if settings.time_flip and draw[8] < 0.5:
        frames = frames[::-1]
    return frames


def recolor(
    clip: Float[np.ndarray, "3 t h w"], settings: ClipSettings, draw: Float[np.ndarray, "16"]
) -> Float[np.ndarray, "3 t h w"]:
    """Change brightness, contrast and saturation of a whole clip alike, in [-1, 1]; numbers 9 to 12 of the draw."""
    if settings.color_jitter > 0:
        brightness, contrast, saturation = settings.color_jitter * (2.0 * draw[9:12] - 1.0)
        luma = (clip * _LUMA).sum(axis=0, keepdims=True)  # (1, t, h, w)
        clip = luma + (clip - luma) * np.float32(1.0 + saturation)
        clip = np.clip(clip * np.float32(1.0 + contrast) + np.float32(brightness), -1.0, 1.0)
    if draw[12] < settings.grayscale_prob:
        clip = np.repeat((clip * _LUMA).sum(axis=0, keepdims=True), 3, axis=0)  # (3, t, h, w)
    return clip

"""Pictures a person looks at: original and reconstruction side by side."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from mg.files import write_bytes

LABEL_HEIGHT = 18


def side_by_side(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Join two videos (t, h, w, 3) uint8 along the width."""
    return np.concatenate([left, right], 2)


def contact_sheet(rows: Sequence[tuple[str, np.ndarray]], columns: int = 8, height: int = 128) -> np.ndarray:
    """Draw evenly spaced frames of several videos, one labelled row per video.

    Args:
        rows: (label, frames (t, h, w, 3) uint8) of each row, all with the same number of frames.
        columns: greatest number of frames per row.
        height: greatest height of a frame in pixels.

    Returns:
        uint8 picture (h, w, 3).
    """
    count = len(rows[0][1])
    picks = np.unique(np.linspace(0, count - 1, min(columns, count)).round().astype(int))
    bands = []
    for label, frames in rows:
        scale = min(1.0, height / frames.shape[1])
        size = (max(1, round(frames.shape[2] * scale)), max(1, round(frames.shape[1] * scale)))
        tiles = [cv2.resize(frames[i], size, interpolation=cv2.INTER_AREA) for i in picks]
        band = np.concatenate(tiles, 1)
        caption = np.zeros((LABEL_HEIGHT, band.shape[1], 3), np.uint8)
        cv2.putText(caption, label, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
        bands += [caption, band]
    return np.concatenate(bands, 0)


def difference(a: np.ndarray, b: np.ndarray, gain: int = 4) -> np.ndarray:
    """Absolute difference of two uint8 videos, amplified and clipped."""
    return np.clip(np.abs(a.astype(np.int16) - b) * gain, 0, 255).astype(np.uint8)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write a uint8 RGB picture (h, w, 3) as PNG, completely or not at all."""
    ok, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not ok:
        raise ValueError(f"a picture of shape {picture.shape} cannot be encoded as PNG")
    write_bytes(path, data.tobytes())

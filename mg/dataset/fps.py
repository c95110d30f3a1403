"""Frame rates of training clips: which are kept, and frames chosen by time instead of by number."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt8

from mg.dataset.manifest import IMAGE_SUFFIXES
from mg.dataset.video import probe, read_video
from mg.errors import BadClip, UserError
from mg.models.text_encoders.prompts import nominal_fps

PRETRAINING_FPS = 16
"""Lowest frame rate that pre-training takes (Movie Gen, section 3.1.4)."""

FINETUNING_FPS = (16, 24)
"""Frame rates that fine-tuning resamples to (Movie Gen, section 3.1.4)."""

_SAME_TIME = 1e-6  # seconds: less than a tick of any container, more than the rounding of a sum


@dataclass(frozen=True)
class RateDecision:
    """Whether a clip is kept, and why, for a log."""

    keep: bool
    reason: str


def pretraining_decision(fps: Fraction | float) -> RateDecision:
    """Decide about a clip by its own frame rate: pre-training keeps 16 and more as they are and drops lower ones.

    The rate counts as it stands in the prompt, rounded to an integer: 15.98, as a clip of 16000/1001 or with uneven
    times may have it, is an FPS-16 clip and kept.

    Args:
        fps: frames per second of the file, > 0.

    Raises:
        UserError: fps is not a finite number above 0.
    """
    label = nominal_fps(fps)
    if label < PRETRAINING_FPS:
        return RateDecision(False, f"{float(fps):.4g} frames per second: dropped, below {PRETRAINING_FPS}")
    return RateDecision(True, f"{float(fps):.4g} frames per second: kept as it is, as FPS-{label}")


def resample_times(
    times: Sequence[float] | Float[np.ndarray, "t"], target_fps: Fraction | float
) -> Int[np.ndarray, "k"]:
    """Choose the frames that show a clip at another rate.

    Frame k is the source's frame nearest in time to the first one's time + k / target_fps, the earlier of two that are
    equally near. The last k is the last whose time is nearest to a frame of the clip, so that each is within half an
    interval of the source's frames and nothing is later than the clip. The duration stays the same to within one
    frame, the longer of the two. A higher rate than the source's repeats frames.

    Args:
        times: presentation times in seconds, strictly increasing, not necessarily evenly.
        target_fps: frames per second wanted, > 0.

    Returns:
        Indices into `times`, int64, never decreasing; at least one.

    Raises:
        UserError: target_fps is not a finite number above 0.
        ValueError: there are no times, or they do not increase.
    """
    if not (math.isfinite(target_fps) and target_fps > 0):
        raise UserError(f"target_fps: {target_fps} is not a frame rate; give a number above 0, such as 16 or 24")
    seconds = np.asarray(times, np.float64)  # (t,)
    gaps = np.diff(seconds)  # (t - 1,)
    if not seconds.size or not np.isfinite(seconds).all() or (gaps <= 0).any():
        raise ValueError("presentation times must be finite, strictly increasing and at least one")
    seconds = seconds - seconds[0]
    if not gaps.size:
        return np.zeros(1, np.int64)
    # No file says how long its last frame is shown: as long as most of them, then.
    end = seconds[-1] + np.median(gaps) / 2
    count = math.floor((end + _SAME_TIME) * float(target_fps)) + 1
    wanted = np.arange(count) / float(target_fps)  # (k,)
    midpoints = (seconds[1:] + seconds[:-1]) / 2  # (t - 1,)
    return np.searchsorted(midpoints, wanted - _SAME_TIME, side="left")


@dataclass(frozen=True)
class RatedClip:
    """Frames of a video at a known rate.

    Attributes:
        frames: RGB, upright.
        fps: frames per second at which they show the scene at its own speed; the n of the prompt's "FPS-n".
        indices: which frames of the file they are.
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    fps: Fraction | float
    indices: Int[np.ndarray, "t"]


def read_at_rate(
    path: str | Path,
    target_fps: Fraction | float | None,
    start: int = 0,
    num_frames: int | None = None,
    short_side: int | None = None,
) -> RatedClip:
    """Read a video at a frame rate, by its presentation times; only the frames needed are kept.

    Args:
        path: a video file.
        target_fps: frames per second wanted (fine-tuning: 16 or 24); None for the file's own frames at their own mean
            rate (pre-training).
        start: first frame, counted at the rate wanted.
        num_frames: frames to read, fewer if the video ends before; None for all.
        short_side: shrink each frame to at most this short side (pixels) while reading.

    Returns:
        At least one frame.

    Raises:
        BadClip: the file is missing, a picture, damaged, without increasing times, or has no frame `start`.
        UserError: target_fps, start or num_frames is out of range.
    """
    if start < 0 or (num_frames is not None and num_frames < 1):
        raise UserError(f"start={start}, num_frames={num_frames}: give at least 0 and at least 1")
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:
        raise BadClip(str(path), "is a picture, which has no frame rate")
    info = probe(path)
    if target_fps is None:
        indices = np.arange(info.num_frames)
    elif any(late >= later for late, later in zip(info.times, info.times[1:], strict=False)):
        raise BadClip(str(path), "has presentation times that do not increase; encode it again")
    else:
        indices = resample_times(info.times, target_fps)
    chosen = indices[start:][:num_frames]
    if not chosen.size:
        raise BadClip(
            str(path), f"has {indices.size} frames at this rate, frame {start} was asked for (the first is 0)"
        )
    frames = read_video(path, chosen.tolist(), short_side=short_side)
    return RatedClip(frames, info.fps if target_fps is None else target_fps, chosen)

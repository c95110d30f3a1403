"""Generated videos as files: names made of prompts; mp4, gif or pictures."""

import os
import re
import unicodedata
from collections.abc import Collection
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from mg.dataset.video_writer import write_video
from mg.errors import UserError
from mg.files import atomic_path
from mg.pipelines.pictures import write_png

FORMATS = ("mp4", "gif", "png")
_WORDS = 10
_LONGEST = 180  # bytes, which leaves room for numbers and endings in the 255 of a file system


def slug(prompt: str) -> str:
    """Make a file name without suffix of a prompt: its first ten words, letters and digits of any script kept."""
    words = re.sub(r"[^\w.]+", " ", unicodedata.normalize("NFC", prompt)).split()
    name = "-".join(words[:_WORDS]).strip(".-_").encode()[:_LONGEST].decode(errors="ignore")
    return name or "empty-prompt"


class Namer:
    """Gives each video a stem of its own in a folder; one that was given before gets a number.

    Args:
        folder: of the files.
        taken: stems that are not to be given.
    """

    def __init__(self, folder: Path, taken: Collection[str] = ()) -> None:
        self.folder = folder
        self._taken = set(taken)
        self._next: dict[str, int] = {}

    def stem(self, name: str) -> Path:
        """Return the path, without suffix, of the files of a video called so."""
        base = name = name.encode()[:_LONGEST].decode(errors="ignore")
        number = self._next.get(base, 2)
        while os.path.normcase(name).casefold() in self._taken:
            name, number = f"{base}-{number}", number + 1
        self._next[base] = number
        self._taken.add(os.path.normcase(name).casefold())
        return self.folder / name


def write_frames(
    stem: Path, frames: UInt8[np.ndarray, "t h w 3"], fps: Fraction | float, save_format: str = "mp4"
) -> list[Path]:
    """Write a video, or a picture (`<stem>.png`) if it has one frame.

    Args:
        stem: path without suffix.
        frames: RGB.
        fps: frames per second, > 0; a gif rounds the time of a frame to 1/100 s.
        save_format: "mp4", "gif", or "png" for a picture per frame, `<stem>-0000.png` and so on.

    Returns:
        The files.

    Raises:
        UserError: another format, or a folder that cannot be written.
    """
    if save_format not in FORMATS:
        raise UserError(f"save_format={save_format!r}: choose {', '.join(FORMATS)}")
    if len(frames) == 1:
        paths = [stem.with_name(f"{stem.name}.png")]
    elif save_format == "png":
        paths = [stem.with_name(f"{stem.name}-{i:04d}.png") for i in range(len(frames))]
    else:
        paths = [stem.with_name(f"{stem.name}.{save_format}")]
    if paths[0].suffix == ".png":
        for path, frame in zip(paths, frames, strict=True):
            write_png(path, frame)
    elif save_format == "mp4":
        write_video(paths[0], frames, fps)
    else:
        write_gif(paths[0], frames, fps)
    return paths


def write_gif(path: Path, frames: UInt8[np.ndarray, "t h w 3"], fps: Fraction | float) -> None:
    """Write an endless gif with one palette for all frames, without dither."""
    # The same palette throughout: one per frame lets standing colours flicker.
    t, h, w, _ = frames.shape
    every = max(1, t // 16)
    sheet = Image.fromarray(np.ascontiguousarray(frames[::every].reshape(-1, w, 3)))
    palette = sheet.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    pictures = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    hundredths = np.diff(np.round(np.arange(t + 1) * 100 / float(fps)))  # no drift: the sum stays right
    durations = [int(max(2, value)) * 10 for value in hundredths]  # browsers take less than 2/100 s for 10/100
    with atomic_path(path) as temporary:
        pictures[0].save(
            temporary, save_all=True, append_images=pictures[1:], duration=durations, loop=0, disposal=1, optimize=False
        )

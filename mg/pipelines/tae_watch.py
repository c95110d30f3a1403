"""What a training of the autoencoder is watched by: figures of fixed clips, and videos to look at."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mg.dataset.manifest import Item
from mg.dataset.video_writer import write_video
from mg.errors import BadClip, UserError
from mg.log import get_logger
from mg.metrics import lpips, psnr, ssim
from mg.metrics.lpips import Distance
from mg.models.tae import TemporalAutoencoder
from mg.pipelines.pictures import contact_sheet, difference, side_by_side, write_png
from mg.pipelines.reconstruct import VALUE_RANGE, Clip, read_clip, reconstruct_frames
from mg.pipelines.video_outputs import slug

SHEET = "sheet.png"


class ComparisonVideos:
    """Writes original and reconstruction of the first clips side by side, into a folder per step.

    `<folder>/step-00001000/` gets `0-<clip>.mp4` and so on (`.png` for a picture), and `sheet.png`: frames of all of
    them with the amplified difference, and the PSNR of each.

    Args:
        folder: of all steps.
        count: number of clips; 0 writes nothing.
        every: steps at which to write are multiples of this; 0: every step that is validated.
        last: the last step of the run, which is always written.
    """

    def __init__(self, folder: Path, count: int, every: int = 0, last: int | None = None) -> None:
        self.folder, self.count, self.every, self.last = folder, count, every, last

    def is_due(self, step: int) -> bool:
        """Tell whether this step's videos are wanted."""
        return self.count > 0 and (not self.every or step % self.every == 0 or step == self.last)

    def write(self, step: int, clips: Sequence[Clip], results: Sequence[np.ndarray]) -> None:
        """Write the videos of a step.

        Args:
            step: number of training steps done.
            clips: originals, frames (t, h, w, 3) uint8.
            results: their reconstructions, of the same shapes.

        Raises:
            UserError: a disk that refuses.
        """
        folder = self.folder / f"step-{step:08d}"
        sheets = []
        for number, (clip, result) in enumerate(list(zip(clips, results, strict=True))[: self.count]):
            stem = f"{number}-{slug(Path(clip.item.name).stem)}"
            pair = side_by_side(clip.frames, result)
            if clip.fps is None or len(pair) == 1:
                write_png(folder / f"{stem}.png", pair[0])
            else:
                write_video(folder / f"{stem}.mp4", pair, clip.fps)
            quality = psnr(clip.frames, result, VALUE_RANGE)
            rows = [
                (f"{stem}: original", clip.frames),
                (f"reconstruction, PSNR {quality:.2f}", result),
                ("difference x 4", difference(clip.frames, result)),
            ]
            sheets.append(contact_sheet(rows))
        write_png(folder / SHEET, _stacked(sheets))


def _stacked(sheets: Sequence[np.ndarray]) -> np.ndarray:
    """Join pictures (h, w, 3) from above to below, black beside the narrower ones."""
    width = max(sheet.shape[1] for sheet in sheets)
    return np.concatenate([np.pad(sheet, ((0, 0), (0, width - sheet.shape[1]), (0, 0))) for sheet in sheets])


def validator(
    network: TemporalAutoencoder,
    items: Sequence[Item],
    size: int,
    frames: int,
    videos: ComparisonVideos | None = None,
    distance: Distance | None = None,
) -> Callable[[int], dict[str, float]]:
    """Return a function that reconstructs fixed clips and gives the mean over clips of PSNR, SSIM and LPIPS.

    Clips, reconstructions and figures are those of `reconstruct`: 8-bit frames (value range 255), from the latent's
    mean. A network that gives NaN or infinity has the figures NaN, and no videos.

    Args:
        network: the autoencoder.
        items: clips.
        size: side of the centre crop in pixels.
        frames: frames from the start of each clip.
        videos: what to show of them, None for nothing.
        distance: LPIPS for pictures of 0 to 255; None leaves val_lpips out.

    Raises:
        UserError: a clip cannot be read.
    """
    try:
        clips = [read_clip(item, frames, size) for item in items]
    except BadClip as error:
        raise UserError(f"valid.csv_path: {error}; take it off the list") from error

    names = ("val_psnr", "val_ssim") if distance is None else ("val_psnr", "val_ssim", "val_lpips")

    def validate(step: int) -> dict[str, float]:
        network.set_train(False)
        scores, results = [], []
        for clip in clips:
            try:
                result = reconstruct_frames(network, [clip.frames])[0]
            except UserError:
                return dict.fromkeys(names, math.nan)
            row = [psnr(clip.frames, result, VALUE_RANGE), ssim(clip.frames, result, VALUE_RANGE)]
            scores.append(row if distance is None else [*row, lpips(clip.frames, result, distance)])
            if videos is not None and len(results) < videos.count:
                results.append(result)
        if videos is not None and videos.is_due(step):
            try:
                videos.write(step, clips[: len(results)], results)
            except (OSError, UserError) as error:  # a full disk ends no training: the checkpoints judge it
                get_logger().warning("step %d: no validation videos: %s", step, error)
        return {name: float(mean) for name, mean in zip(names, np.mean(scores, 0), strict=True)}

    return validate

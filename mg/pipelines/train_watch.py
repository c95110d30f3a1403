"""What a training of the transformer is watched by: its loss on fixed noise, and videos to look at."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from mindspore import Tensor

from mg.config.train import SampleConfig
from mg.dataset.transforms import to_frames
from mg.dataset.video_writer import write_video
from mg.errors import NumericalAbort, UserError
from mg.files import atomic_path, write_json
from mg.log import get_logger
from mg.models.llama import LlamaModel
from mg.models.llama.loss import FlowLoss
from mg.models.tae import TemporalAutoencoder
from mg.pipelines.pictures import contact_sheet, write_png
from mg.rng import stream
from mg.schedulers import GuidanceConfig, even_timesteps, guide, solve, time_grid

Batch = Mapping[str, np.ndarray]


class FlowValidator:
    """Mean loss over fixed batches with their noise, at evenly spaced noise levels instead of the batches' own.

    Args:
        loss: of the network, without token dropout.
        batches: function that gives the batches, the same at every call; two of one shape cost one compilation.
        sampling_steps: number of noise levels; 10 are 100, 200, ..., 1000.
    """

    def __init__(self, loss: FlowLoss, batches: Callable[[], Iterable[Batch]], sampling_steps: int) -> None:
        self._loss, self._batches = loss, batches
        self.levels = even_timesteps(sampling_steps)

    @property
    def names(self) -> list[str]:
        """Names of the figures: the mean, then one per noise level."""
        return ["val_loss", *(f"val_loss_{level:g}" for level in self.levels)]

    def __call__(self, step: int) -> dict[str, float]:
        """Measure; elements count alike, whatever batch they are in."""
        self._loss.network.set_train(False)
        total, weight = np.zeros(len(self.levels)), 0.0
        for batch in self._batches():
            given = {name: Tensor(batch[name]) for name in self._loss.inputs if name != "timestep"}
            for i, level in enumerate(self.levels):
                given["timestep"] = Tensor(np.full(len(batch["latent"]), level, np.float32))
                value, count = self._loss(*(given[name] for name in self._loss.inputs))
                total[i] += float(value.asnumpy()) * float(count.asnumpy())
            weight += float(count.asnumpy())
        means = total / weight
        return dict(zip(self.names, (float(means.mean()), *map(float, means)), strict=True))


class VideoSampler:
    """Writes the same few videos at every call, as the network makes them: mp4 and a contact sheet, or latents.

    Args:
        network: the transformer.
        config: how many, and how they are sampled.
        batch: texts, and latents whose shape the samples have.
        empty: the same with the empty prompt in the place of every text; None without guidance.
        captions: the texts, for people.
        decode: scaled latents (b, c, t, h, w) to frames in [-1, 1] (b, 3, t, h, w); None writes the latents.
        folder: gets `step-00001000/` and so on.
    """

    def __init__(
        self,
        network: LlamaModel,
        config: SampleConfig,
        batch: Batch,
        empty: Batch | None,
        captions: Sequence[str],
        decode: Callable[[np.ndarray], np.ndarray] | None,
        folder: Path,
    ) -> None:
        self._network, self._config, self._decode, self._folder = network, config, decode, folder
        names = ("mask", *network.config.kinds)
        self._text = [batch[name] for name in names]
        self._empty = None if empty is None else [empty[name] for name in names]
        self.captions = list(captions)
        count, *shape = batch["latent"].shape
        self._noise = np.stack(
            [stream(config.seed, "sample.noise", row).standard_normal(shape, np.float32) for row in range(count)]
        )  # (b, c, t, h, w)

    def __call__(self, step: int) -> None:
        """Sample and write; samples that diverge, or a disk that refuses, are told in the log and end no training."""
        self._network.set_train(False)
        try:
            latents = self.sample()
        except NumericalAbort as error:
            get_logger().warning("step %d: no samples: %s", step, error)
            return
        try:
            self._write(self._folder / f"step-{step:08d}", latents)
        except (OSError, UserError) as error:
            get_logger().warning("step %d: no samples: %s", step, error)

    def _write(self, folder: Path, latents: Float[np.ndarray, "b c t h w"]) -> None:
        write_json(folder / "captions.json", self.captions)
        if self._decode is None:
            for row, latent in enumerate(latents):
                with atomic_path(folder / f"{row}.npy") as temporary:
                    np.save(temporary, latent.transpose(1, 0, 2, 3))  # (t, c, h, w), as those of scripts/inference.py
            return
        videos = [to_frames(video) for video in self._decode(latents)]
        for row, frames in enumerate(videos):
            if len(frames) > 1:
                write_video(folder / f"{row}.mp4", frames, self._config.fps)
        labels = [f"{row}: {caption}" for row, caption in enumerate(self.captions)]
        write_png(folder / "sheet.png", contact_sheet(list(zip(labels, videos, strict=True))))

    def sample(self) -> Float[np.ndarray, "b c t h w"]:
        """Return the scaled latents."""
        config = self._config
        velocity = guide(
            self._velocity, GuidanceConfig(scale=config.guidance_scale, mode="sequential"), self._text, self._empty
        )
        return solve(velocity, self._noise, time_grid(config.sample_method, config.num_inference_steps))

    def _velocity(self, x: np.ndarray, level: float, *text: np.ndarray) -> np.ndarray:
        timestep = np.full(len(x), level, np.float32)
        return self._network(Tensor(x), Tensor(timestep), *map(Tensor, text)).asnumpy()


def decoder(tae: TemporalAutoencoder, frames: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from scaled latents (b, c, t, h, w) to `frames` frames in [-1, 1] (b, 3, frames, H, W)."""

    def decode(latents: np.ndarray) -> np.ndarray:
        z = (latents / tae.scale_factor + tae.shift_factor).astype(np.float32)
        # One at a time: these videos are to cost no more memory than the training does.
        return np.concatenate([tae.decode(Tensor(row[None]), num_target_frames=frames).asnumpy() for row in z])

    return decode

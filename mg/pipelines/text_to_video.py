"""From prompts to videos: text encoders, transformer, solver, autoencoder."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8
from mindspore import Tensor
from tqdm import tqdm

from mg import device as devices
from mg.dataset.transforms import to_frames
from mg.errors import NumericalAbort, UserError
from mg.log import get_logger
from mg.models.llama import LlamaModel
from mg.models.tae import TemporalAutoencoder
from mg.models.tae.loading import fingerprint
from mg.models.text_encoders.encoder import TextEncoder
from mg.models.text_encoders.prompts import fps_prefix
from mg.pipelines.pipeline_folder import Conditioning, Parts, SchedulerConfig, read_parts, write_parts
from mg.pipelines.sampling import Made, Noise, Plan, Sampling, sample
from mg.pipelines.text_condition import Condition, TextConditioner
from mg.pipelines.video_outputs import FORMATS, Namer, slug, write_frames
from mg.schedulers import GuidanceConfig, time_grid

GUIDANCE_SCALE = 7.5
"""Movie Gen, section 3.4.2."""
OUTPUT_TYPES = ("np", "latent", *FORMATS)


class TextToVideoPipeline:
    """Generates videos from prompts (Movie Gen, section 3).

    Make one with `from_pretrained`, or of loaded parts.

    Args:
        transformer: the network.
        tae: its autoencoder; None gives latents only.
        text_encoders: by kind ("ul2", "metaclip", "byt5"); those the transformer reads, unless embeddings are given.
        conditioning: what the transformer was trained to be told.
        scheduler: how to sample unless told otherwise.

    Raises:
        UserError: an autoencoder or text encoder other than the transformer was trained with.
    """

    def __init__(
        self,
        transformer: LlamaModel,
        tae: TemporalAutoencoder | None,
        text_encoders: dict[str, TextEncoder],
        conditioning: Conditioning | None = None,
        scheduler: SchedulerConfig | None = None,
    ) -> None:
        self.transformer, self.tae, self.text_encoders = transformer, tae, dict(text_encoders)
        self.conditioning = conditioning or Conditioning()
        self.scheduler = scheduler or SchedulerConfig()
        self._check_origin()
        self.text = TextConditioner(dict(transformer.config.text_widths), self.conditioning, self.text_encoders)
        transformer.set_train(False)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        device: str = "auto",
        mode: str = "graph",
        dtype: str = "fp32",
        tae_dtype: str | None = None,
        use_tile: bool = False,
        text_encoders: bool = True,
    ) -> "TextToVideoPipeline":
        """Load a pipeline folder.

        Args:
            folder: with model_index.json and a folder per part.
            device: "auto", "Ascend", "GPU" or "CPU".
            mode: "graph", or "pynative" for debugging.
            dtype: of the transformer's activations: "fp32", "fp16" or "bf16" (FP32 where there are no BF16 kernels).
            tae_dtype: of the autoencoder's; None for the same.
            use_tile: decode in tiles of time and space: memory does not grow with the video.
            text_encoders: False leaves them out, for embeddings that are there already.

        Raises:
            UserError: a part is missing, damaged, has NaN in it, or is not the one the transformer was trained with.
        """
        devices.setup(device, mode)
        parts = read_parts(
            folder, dtype=dtype, tae_dtype=tae_dtype, use_tile=use_tile, text_encoders=text_encoders
        )
        return cls.of(parts)

    @classmethod
    def of(cls, parts: Parts) -> "TextToVideoPipeline":
        """Put loaded parts together."""
        return cls(parts.transformer, parts.tae, parts.text_encoders, parts.conditioning, parts.scheduler)

    def save_pretrained(self, folder: str | Path, dtype: Literal["fp32", "fp16", "bf16"] = "fp32") -> None:
        """Write a folder that `from_pretrained` reads.

        Args:
            folder: is created.
            dtype: of the transformer's weights.

        Raises:
            UserError: the folder cannot be written, or there is no autoencoder.
        """
        parts = Parts(self.transformer, self.conditioning, self.tae, self.text_encoders, self.scheduler)
        write_parts(folder, parts, dtype)

    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str = "",
        num_frames: int = 16,
        height: int = 64,
        width: int = 64,
        fps: float = 16,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | Sequence[int] = 0,
        output_type: Literal["np", "latent", "mp4", "gif", "png"] = "np",
        *,
        sample_method: str | None = None,
        solver: str | None = None,
        guidance_mode: Literal["batched", "sequential"] = "batched",
        guidance_schedule: Literal["constant", "linear", "cosine"] = "constant",
        batch_size: int = 1,
        output_path: str | Path = "outputs/generate",
        progress: bool = True,
    ) -> UInt8[np.ndarray, "b t h w 3"] | Float[np.ndarray, "b c t2 h2 w2"] | list[Path]:
        """Make a video of every prompt.

        The same seed gives the same bits whatever else is in the list: noise belongs to the seed, and each prompt goes
        through the networks by itself. A prompt that is repeated gets other noise each time.

        Args:
            prompt: one or several; "" is the empty prompt.
            negative_prompt: what guidance leads away from; "" is the empty prompt.
            num_frames: see `Sampling`, as for the arguments that are not listed here.
            height: pixels, a multiple of 16.
            width: pixels, a multiple of 16.
            seed: of the noise, or one per prompt.
            output_type: "np" frames, "latent" scaled latents, or files: "mp4", "gif", "png" (one per frame).
            batch_size: see `generate`.
            output_path: folder of the files.
            progress: show a bar where somebody watches.

        Returns:
            Frames, latents, or the files' paths (of several pictures the first), always with an axis for the prompts.

        Raises:
            UserError: sizes the model cannot take (before anything is compiled), guidance by a model that cannot.
            NumericalAbort: NaN or infinity while sampling.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if output_type not in OUTPUT_TYPES:
            raise UserError(f"output_type={output_type!r}: choose {', '.join(OUTPUT_TYPES)}")
        sampling = Sampling(
            num_frames=num_frames, height=height, width=width, fps=fps, num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale, guidance_mode=guidance_mode, guidance_schedule=guidance_schedule,
            sample_method=sample_method, solver=solver,
        )  # fmt: skip
        options = {"seed": seed, "batch_size": batch_size, "decode": output_type != "latent", "progress": progress}
        made = self.generate(prompts, negative_prompt, sampling, **options)
        if output_type == "latent":
            return np.stack([one.latent for one in made])
        if output_type == "np":
            return np.stack([one.frames for one in made])
        namer = Namer(Path(output_path))
        return [write_frames(namer.stem(slug(prompts[one.number])), one.frames, fps, output_type)[0] for one in made]

    def generate(
        self,
        prompts: Sequence[str | Mapping[str, Path]],
        negative_prompt: str = "",
        sampling: Sampling | None = None,
        *,
        seed: int | Sequence[int] = 0,
        batch_size: int = 1,
        decode: bool = True,
        progress: bool = True,
        share: tuple[int, int] = (0, 1),
    ) -> Iterator[Made]:
        """Yield the videos one after the other, in order; see `__call__`.

        Args:
            prompts: texts, or files of embeddings (.npz) by encoder.
            negative_prompt: what guidance leads away from.
            sampling: sizes, steps and so on.
            seed: of the noise, or one per prompt.
            batch_size: prompts that go through the transformer together. Above 1 rounding (about 1e-6) depends on a
                prompt's place in the batch; with 1 it does not.
            decode: False leaves the frames out.
            progress: show a bar where somebody watches.
            share: (i, n) makes every n-th batch from number i (0, 1, ...) on, with the bits that they have among all.

        Raises:
            UserError, NumericalAbort: as for `__call__`; mistakes in the arguments are told at once.
        """
        sampling, prompts = sampling or Sampling(), list(prompts)
        if not prompts:
            raise UserError("no prompts: give at least one")
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: give at least 1")
        if decode and self.tae is None:
            raise UserError("there is no autoencoder to decode with: load one, or ask for latents")
        size = self.latent_size(sampling)
        plan = self.plan(sampling, batch_size)
        noise = Noise(seed, [str(prompt) for prompt in prompts], (self.transformer.config.in_channels, *size))
        if negative_prompt and not plan.guidance.needs_unconditional:
            get_logger().warning("negative_prompt has no effect without guidance; raise guidance_scale above 1")
        starts = range(0, len(prompts), batch_size)[share[0] :: share[1]]
        rows = [row for start in starts for row in range(start, min(start + batch_size, len(prompts)))]
        if not rows:
            return iter(())
        window = [prompts[row] for row in rows[: plan.window]]
        first = self._conditions(window, negative_prompt, sampling, plan.guidance)
        return self._made(prompts, rows, negative_prompt, sampling, plan, noise, first, decode, progress)

    def latent_size(self, sampling: Sampling) -> tuple[int, int, int]:
        """Latent frames, rows and columns of a video; frames are rounded up.

        Raises:
            UserError: a size the model cannot take.
        """
        t, h, w = (8, 8, 8) if self.tae is None else (self.tae.time_compress, *[self.tae.spatial_compress] * 2)
        patch = self.transformer.config.patch_size
        for name, side, unit in (("height", sampling.height, h * patch[1]), ("width", sampling.width, w * patch[2])):
            if side < unit or side % unit:
                near = max(unit, round(side / unit) * unit)
                raise UserError(f"{name}={side}: give a multiple of {unit}, such as {near}")
        frames = -(-sampling.num_frames // (t * patch[0])) * patch[0]
        size = (frames, sampling.height // h, sampling.width // w)
        for name, asked, compression, length, side, most in zip(
            ("num_frames", "height", "width"), (sampling.num_frames, sampling.height, sampling.width),
            (t, h, w), size, patch, self.transformer.config.max_length, strict=True,
        ):  # fmt: skip
            if length // side > most:
                raise UserError(
                    f"{name}={asked}: the transformer's position table ends at {most * side * compression}; choose at "
                    "most that, or a transformer with a longer table"
                )
        self.transformer.check_size(*size)
        return size

    def decode(self, latent: Float[np.ndarray, "c t h w"], sampling: Sampling) -> UInt8[np.ndarray, "t h w 3"]:
        """Turn a scaled latent into frames.

        Raises:
            NumericalAbort: the autoencoder gives NaN or infinity.
        """
        z = (latent / self.tae.scale_factor + self.tae.shift_factor).astype(np.float32)
        y = self.tae.decode(Tensor(z[None]), num_target_frames=sampling.num_frames).asnumpy()[0]  # (3, t, h, w)
        if not np.isfinite(y).all():
            raise NumericalAbort("the autoencoder gives NaN or infinity for a latent; use fp32, or other weights")
        return to_frames(y)

    def _check_origin(self) -> None:
        trained_with = self.conditioning.trained_with
        parts: dict[str, Any] = {kind: encoder for kind, encoder in self.text_encoders.items()}
        if self.tae is not None:
            parts["tae"] = self.tae
        for name, part in parts.items():
            if not (wanted := trained_with.get(name)):
                continue
            found = fingerprint(part) if name == "tae" else part.fingerprint
            if found != wanted:
                what = "autoencoder" if name == "tae" else f"text encoder {name}"
                raise UserError(
                    f"{what}: this is {found}, but the transformer was trained with {wanted}; use the {what} it was "
                    "trained with"
                )

    def plan(self, sampling: Sampling, batch_size: int = 1) -> Plan:
        """Decide about guidance, steps and solver; what a sampling leaves open is the scheduler's.

        Raises:
            UserError: a value out of range, or guidance by a pipeline that cannot.
        """
        said = self.scheduler
        scale = sampling.guidance_scale
        able = self.conditioning.unconditional
        if scale is None:
            usual = GUIDANCE_SCALE if said.guidance_scale is None else said.guidance_scale
            scale = usual if able and self._knows_null() else 1.0
        if not (math.isfinite(scale) and scale >= 0):
            raise UserError(f"guidance_scale={scale}: give a number of at least 0; 1 is no guidance")
        if scale != 1 and not able:
            raise UserError(
                f"guidance_scale={scale:g}: this transformer was trained without dropping prompts and has nothing to "
                "guide away from; use guidance_scale=1"
            )
        if scale != 1 and not self._knows_null():
            raise UserError(
                f"guidance_scale={scale:g}: the empty prompt must be encoded, and the pipeline lacks the text encoder "
                f"{self.text.missing()[0]}; add it, or use guidance_scale=1"
            )
        steps = sampling.num_inference_steps
        steps = said.num_inference_steps if steps is None else steps
        grid = time_grid(sampling.sample_method or said.sample_method, steps)
        guidance = GuidanceConfig(scale=float(scale), mode=sampling.guidance_mode, schedule=sampling.guidance_schedule)
        return Plan(guidance, grid, sampling.solver or said.solver, batch_size)

    def _knows_null(self) -> bool:
        return self.conditioning.null_text == "zeros" or not self.text.missing()

    def _conditions(
        self, prompts: Sequence[str | Mapping[str, Path]], negative: str, sampling: Sampling, guidance: GuidanceConfig
    ) -> tuple[list[Condition], Condition | None]:
        """Encode or read prompts, and what guidance leads away from."""
        rated = self.conditioning.fps and sampling.num_frames > 1  # pictures have no rate

        def full(text: str) -> str:
            return fps_prefix(text, sampling.fps) if rated else text

        wanted = [full(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        away = full(negative) if negative else ""
        null = None
        if guidance.needs_unconditional and not negative and self.conditioning.null_text == "zeros":
            null = self.text.zeros()
        encoded = guidance.needs_unconditional and null is None
        known = self.text.encode([text for text in wanted if isinstance(text, str)] + [away] * encoded)
        conditions = [known[text] if isinstance(text, str) else self.text.read(text) for text in wanted]
        return conditions, known[away] if encoded else null

    def _made(
        self,
        prompts: Sequence[str | Mapping[str, Path]],
        rows: Sequence[int],
        negative: str,
        sampling: Sampling,
        plan: Plan,
        noise: Noise,
        first: tuple[list[Condition], Condition | None],
        decode: bool,
        progress: bool,
    ) -> Iterator[Made]:
        """Yield the videos of some rows of the prompts; `first` has the conditions of the first `plan.window` of them.

        Only the last batch of all prompts may be smaller than the others, so that `rows` fall into the same batches.
        """
        conditions, null = first
        calls = -(-len(rows) // plan.batch_size) * plan.steps
        # No bar where nobody watches (disable=None).
        with tqdm(total=calls, unit="step", desc="generating", disable=None if progress else True) as bar:
            for start in range(0, len(rows), plan.batch_size):
                place = start % plan.window
                if start and place == 0:
                    part = [prompts[row] for row in rows[start : start + plan.window]]
                    conditions, null = self._conditions(part, negative, sampling, plan.guidance)
                texts, batch = conditions[place : place + plan.batch_size], rows[start : start + plan.batch_size]
                noises = np.stack([noise(row) for row in batch])
                latents = sample(self.transformer, texts, null, noises, plan, lambda done, steps: bar.update())
                for row, latent in zip(batch, latents, strict=True):
                    frames = self.decode(latent, sampling) if decode else None
                    yield Made(row, noise.seeds[row], latent, frames)

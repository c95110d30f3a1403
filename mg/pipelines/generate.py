"""Turn a list of prompts, or of embeddings, into files: videos, latents, a list of them and a contact sheet."""

import time
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mg import device
from mg.config.generate import GenerateConfig
from mg.errors import NoGoodClip, UserError
from mg.files import atomic_path, writable_folder, write_json
from mg.log import get_logger
from mg.models.llama import PRESETS, LlamaModel, load_weights
from mg.models.tae import TemporalAutoencoder
from mg.models.tae.loading import from_checkpoint
from mg.pipelines.generation_tasks import Task, tasks_of
from mg.pipelines.pictures import contact_sheet, write_png
from mg.pipelines.pipeline_folder import Conditioning, Parts, read_parts, read_transformer
from mg.pipelines.sampling import Made, Sampling
from mg.pipelines.text_to_video import TextToVideoPipeline
from mg.pipelines.video_outputs import Namer, write_frames

LIST = "videos.json"
SHEET = "sheet.png"
LATENTS = "denoised_latents"
_SHEET_ROWS = 24
_SHEET_COLUMNS = 8


def load_pipeline(config: GenerateConfig) -> TextToVideoPipeline:
    """Load what a configuration names: a pipeline folder, with other weights in it if they are given, or its parts.

    Raises:
        UserError: something is missing, damaged or does not fit.
    """
    device.setup(config.device, config.mode)
    parts, own = None, config.model.pretrained_model_path
    if own is not None and Path(own).is_dir():
        config.model.refuse_for_folder(f"--model.pretrained_model_path {own}")
    if config.pipeline is not None:
        options = {"tae_dtype": config.tae.dtype, "use_tile": config.tae.use_tile}
        max_length = config.model.max_length if own is None else None
        parts = read_parts(config.pipeline, dtype=config.model.dtype, max_length=max_length, **options)
    if own is not None:
        transformer, conditioning = _transformer(config)
        new = Parts(transformer, conditioning)
        parts = new if parts is None else replace(parts, transformer=transformer, conditioning=conditioning)
    if config.tae.pretrained is not None:
        parts = replace(parts, tae=_tae(config))
    return TextToVideoPipeline.of(parts)


def _transformer(config: GenerateConfig) -> tuple[LlamaModel, Conditioning]:
    model, path = config.model, Path(config.model.pretrained_model_path)
    try:
        if not path.exists():
            raise UserError(f"{path}: there is no such file or folder; check the path")
        if path.is_dir():
            return read_transformer(path, model.dtype, model.max_length)
        if model.name == "auto":
            raise UserError(f"{path}: a weights file says nothing of its sizes; give --model.name, or its folder")
        sizes = PRESETS[model.name]
        if model.max_length is not None:
            sizes = replace(sizes, max_length=tuple(model.max_length))
        network = LlamaModel(sizes, dtype=model.dtype)
        load_weights(network, path)
    except UserError as error:
        raise UserError(f"--model.pretrained_model_path {error}") from error
    told = {"attend_padding": True, "ones": ("metaclip",)} if model.reference else {}
    return network, Conditioning.from_dict(told, sizes.kinds)


def _tae(config: GenerateConfig) -> TemporalAutoencoder:
    options = {"sample_deterministic": True, "use_tile": config.tae.use_tile, "dtype": config.tae.dtype}
    try:
        tae = from_checkpoint(config.tae.pretrained, **options)
    except UserError as error:
        raise UserError(f"--tae.pretrained {error}") from error
    tae.set_train(False)
    return tae


def generate(config: GenerateConfig) -> dict:
    """Load the model and make the videos; see `generate_with`.

    Raises:
        UserError: bad options, list, model or output folder; what can be told beforehand is, before anything is loaded.
        NoGoodClip: not one row of the list could be used.
        NumericalAbort: NaN or infinity while sampling.
    """
    tasks, bad = tasks_of(config)
    writable_folder(config.output_path, "--output_path")
    return generate_with(config, load_pipeline(config), tasks, bad)


def generate_with(config: GenerateConfig, pipeline: TextToVideoPipeline, tasks: list[Task], bad: list[dict]) -> dict:
    """Make the videos; write them, `videos.json`, `sheet.png` and, if asked for, latents.

    Args:
        config: how, and where to.
        pipeline: loaded already.
        tasks: what to make.
        bad: rows of the list that cannot be used.

    Returns:
        What stands in `videos.json`: videos (file, prompt, seed, ...), bad rows, seconds, config.

    Raises:
        UserError, NoGoodClip, NumericalAbort: see `generate`.
    """
    output = _Output(config)
    sampling = Sampling(
        num_frames=config.num_frames, height=config.size[0], width=config.size[1], fps=config.fps,
        num_inference_steps=config.num_sampling_steps, guidance_scale=config.guidance_scale,
        guidance_mode=config.guidance_mode, guidance_schedule=config.guidance_schedule,
        sample_method=config.sample_method, solver=config.solver,
    )  # fmt: skip
    pipeline.latent_size(sampling)
    decode = pipeline.tae is not None
    if not decode and not config.save_latent:
        raise UserError("no autoencoder: give --tae.pretrained, or --save_latent to write latents alone")
    report = {"folder": str(output.folder), "videos": output.rows, "bad": bad, "seconds": 0.0, "config": asdict(config)}
    start = time.monotonic()
    try:
        if tasks:
            made = pipeline.generate(
                [task.files or task.prompt for task in tasks], config.negative_prompt, sampling,
                seed=[config.seed + i * config.seed_per_prompt for i in range(len(tasks))],
                batch_size=config.batch_size, decode=decode,
            )  # fmt: skip
            for one in made:
                output.write(tasks[one.number], one)
                get_logger().info("video %d of %d: %s", len(output.rows), len(tasks), output.rows[-1]["file"])
    finally:
        report["seconds"] = round(time.monotonic() - start, 3)
        if output.rows or not tasks:
            write_json(output.folder / LIST, report)
    if not tasks:
        raise NoGoodClip(f"none of the {len(bad)} rows could be used (row {bad[0]['row']} {bad[0]['error']})")
    output.write_sheet()
    return report


class _Output:
    """Writes videos and remembers what the list and the contact sheet need of them.

    Attributes:
        folder: of everything.
        rows: one per video.
    """

    def __init__(self, config: GenerateConfig) -> None:
        folder = Path(config.output_path)
        if config.append_timestamp:
            folder = folder / datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
        self.folder = writable_folder(folder, "--output_path")
        self.rows: list[dict] = []
        self._config = config
        self._namer = Namer(self.folder, taken=[Path(SHEET).stem, Path(LIST).stem])
        self._sheet: list[tuple[str, np.ndarray]] = []

    def write(self, task: Task, made: Made) -> None:
        """Write one video and, if asked for, its latent."""
        config, stem = self._config, self._namer.stem(task.name)
        row = {"file": None, "prompt": task.prompt, "negative_prompt": config.negative_prompt, "seed": made.seed}
        if made.frames is not None:
            with tqdm.external_write_mode():
                files = write_frames(stem, made.frames, config.fps, config.save_format)
            row["file"] = files[0].name
            t, h, w, _ = made.frames.shape
            row |= {"files": len(files), "frames": t, "height": h, "width": w, "fps": config.fps if t > 1 else None}
            if len(self._sheet) < _SHEET_ROWS:
                picks = np.unique(np.linspace(0, t - 1, min(_SHEET_COLUMNS, t)).round().astype(int))
                # The sheet's font has ASCII only.
                label = task.prompt.encode("ascii", "replace").decode()
                self._sheet.append((label, made.frames[picks]))
        if config.save_latent:
            path = self.folder / LATENTS / f"{stem.name}.npy"
            with atomic_path(path) as temporary:
                np.save(temporary, made.latent.transpose(1, 0, 2, 3))  # (t, c, h, w), as the reference has them
            row["latent"] = f"{LATENTS}/{path.name}"
            row["file"] = row["file"] or row["latent"]
        self.rows.append(row)

    def write_sheet(self) -> None:
        """Write frames of the first videos, one below the other."""
        if self._sheet:
            write_png(self.folder / SHEET, contact_sheet(self._sheet))

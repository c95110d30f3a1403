"""Turn a list of prompts, or of embeddings, into files: videos, latents, a list of them and a contact sheet."""

import math
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
from mg.parallel.mesh import Mesh
from mg.pipelines.generation_tasks import Task, tasks_of
from mg.pipelines.pictures import contact_sheet, write_png
from mg.pipelines.pipeline_folder import Conditioning, Parts, read_parts, read_transformer
from mg.pipelines.sampling import Made, Sampling
from mg.pipelines.shares import Share, in_order
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
    """Load the model and make the videos, as one of several processes or alone; see `generate_with`.

    Raises:
        UserError: bad options, list, model or output folder, or degrees of parallelism that do not fit; what can be
            told beforehand is, before anything is loaded.
        NoGoodClip: not one row of the list could be used.
        NumericalAbort: NaN or infinity while sampling.
    """
    tasks, bad = tasks_of(config)
    writable_folder(config.output_path, "--output_path")
    device.setup(config.device, config.mode)
    mesh = Mesh.joined(config.parallel)
    return generate_with(config, load_pipeline(config), tasks, bad, mesh)


def divide(pipeline: TextToVideoPipeline, mesh: Mesh) -> None:
    """Divide a pipeline's transformer, and the tiles it decodes in, among devices, in place.

    Raises:
        UserError: something cannot be divided evenly.
    """
    mesh.apply(pipeline.transformer)
    if mesh.dims.size("tokens") > 1 and pipeline.tae is not None and pipeline.tae.use_tile:
        mesh.share_tiles(pipeline.tae)


def generate_with(
    config: GenerateConfig,
    pipeline: TextToVideoPipeline,
    tasks: list[Task],
    bad: list[dict],
    mesh: Mesh | None = None,
) -> dict:
    """Make the videos; write them, `videos.json`, `sheet.png` and, if asked for, latents.

    Args:
        config: how, and where to.
        pipeline: loaded already.
        tasks: what to make.
        bad: rows of the list that cannot be used.
        mesh: the processes that do it together: batches are shared out among those that have different rows, the
            others divide each of them. The pipeline is divided here.

    Returns:
        What stands in `videos.json`: videos (file, prompt, seed, ...), bad rows, seconds, config. Of several
        processes, all but the one that leads have the videos they wrote themselves.

    Raises:
        UserError, NoGoodClip, NumericalAbort: see `generate`.
    """
    sampling = Sampling(
        num_frames=config.num_frames, height=config.size[0], width=config.size[1], fps=config.fps,
        num_inference_steps=config.num_sampling_steps, guidance_scale=config.guidance_scale,
        guidance_mode=config.guidance_mode, guidance_schedule=config.guidance_schedule,
        sample_method=config.sample_method, solver=config.solver,
    )  # fmt: skip
    size = pipeline.latent_size(sampling)
    decode = pipeline.tae is not None
    if not decode and not config.save_latent:
        raise UserError("no autoencoder: give --tae.pretrained, or --save_latent to write latents alone")
    if mesh:
        _check_lockstep(mesh, -(-len(tasks) // config.batch_size))
        _check_tokens(mesh, sampling, math.prod(pipeline.transformer.check_size(*size)))
        divide(pipeline, mesh)
    folder = _folder(config, mesh)
    share = Share(mesh, folder)
    output = _Output(config, tasks, folder)
    # Those that make a video together share out the tiles; without tiles one of them decodes.
    decode = decode and (share.writes or pipeline.tae.use_tile)
    report = {"folder": str(folder), "videos": [], "bad": bad, "seconds": 0.0, "config": asdict(config)}
    start, finished = time.monotonic(), False
    try:
        if tasks:
            made = pipeline.generate(
                [task.files or task.prompt for task in tasks], config.negative_prompt, sampling,
                seed=[config.seed + i * config.seed_per_prompt for i in range(len(tasks))],
                batch_size=config.batch_size, decode=decode, share=(share.index, share.count),
            )  # fmt: skip
            for one in made:
                if share.writes:
                    file = output.write(one)
                    get_logger().info("video %d of %d: %s", one.number + 1, len(tasks), file)
        share.leave({"videos": output.rows}, output.pictures)
        finished = True
        share.wait()
    finally:
        if not finished:
            share.leave({"videos": output.rows}, output.pictures, finished=False)
        found = share.collect()
        report["videos"] = in_order(found, "videos")
        report["seconds"] = round(time.monotonic() - start, 3)
        if share.leads and (report["videos"] or not tasks):
            write_json(folder / LIST, report)
    if not tasks:
        raise NoGoodClip(f"none of the {len(bad)} rows could be used (row {bad[0]['row']} {bad[0]['error']})")
    if share.leads:
        output.write_sheet({name: frames for _, pictures in found for name, frames in pictures.items()})
    return report


def _folder(config: GenerateConfig, mesh: Mesh | None) -> Path:
    folder = Path(config.output_path)
    if config.append_timestamp:
        now = datetime.now().timetuple()[:6]
        if mesh:  # one clock for all
            now = map(int, mesh.total(*(now if mesh.leads else (0.0,) * 6)))
        folder = folder / datetime(*now).strftime("%Y-%m-%dT%H-%M-%S")
    return writable_folder(folder, "--output_path")


def _check_lockstep(mesh: Mesh, batches: int) -> None:
    dims = mesh.dims
    if dims.zero_stage == 3 and dims.zero > 1 and batches % dims.size("batch"):
        raise UserError(
            f"parallel.zero={dims.zero} at stage 3: devices that share weights must all make as many batches as the "
            f"others, and {batches} cannot be divided among {dims.size('batch')}; use parallel.data, or another list "
            "or --batch_size"
        )


def _check_tokens(mesh: Mesh, sampling: Sampling, tokens: int) -> None:
    parts = mesh.dims.size("tokens")
    if tokens % parts:
        raise UserError(
            f"{sampling.num_frames} frames of {sampling.height} x {sampling.width} pixels are {tokens} tokens, which "
            f"the {parts} devices of parallel context x sequence x tensor cannot divide; choose another size or degrees"
        )


class _Output:
    """Writes videos and remembers what the list and the contact sheet need of them.

    Attributes:
        rows: (number, row of the list) of each video.
        pictures: frames for the contact sheet by the video's number.
    """

    def __init__(self, config: GenerateConfig, tasks: list[Task], folder: Path) -> None:
        self.rows: list[tuple[int, dict]] = []
        self.pictures: dict[str, np.ndarray] = {}
        self._config, self._tasks, self._folder = config, tasks, folder
        # All names are given now: they do not depend on who makes which video.
        namer = Namer(folder, taken=[Path(SHEET).stem, Path(LIST).stem])
        self._stems = [namer.stem(task.name) for task in tasks]

    def write(self, made: Made) -> str:
        """Write one video and, if asked for, its latent; return the name of the file."""
        config, task, stem = self._config, self._tasks[made.number], self._stems[made.number]
        row = {"file": None, "prompt": task.prompt, "negative_prompt": config.negative_prompt, "seed": made.seed}
        if made.frames is not None:
            with tqdm.external_write_mode():
                files = write_frames(stem, made.frames, config.fps, config.save_format)
            row["file"] = files[0].name
            t, h, w, _ = made.frames.shape
            row |= {"files": len(files), "frames": t, "height": h, "width": w, "fps": config.fps if t > 1 else None}
            if made.number < _SHEET_ROWS:
                picks = np.unique(np.linspace(0, t - 1, min(_SHEET_COLUMNS, t)).round().astype(int))
                self.pictures[str(made.number)] = made.frames[picks]
        if config.save_latent:
            path = self._folder / LATENTS / f"{stem.name}.npy"
            with atomic_path(path) as temporary:
                np.save(temporary, made.latent.transpose(1, 0, 2, 3))  # (t, c, h, w), as the reference has them
            row["latent"] = f"{LATENTS}/{path.name}"
            row["file"] = row["file"] or row["latent"]
        self.rows.append((made.number, row))
        return row["file"]

    def write_sheet(self, pictures: dict[str, np.ndarray]) -> None:
        """Write frames of the first videos, one below the other."""
        # The sheet's font has ASCII only.
        labels = [task.prompt.encode("ascii", "replace").decode() for task in self._tasks]
        rows = [(labels[number], pictures[str(number)]) for number in sorted(map(int, pictures))]
        if rows:
            write_png(self._folder / SHEET, contact_sheet(rows))

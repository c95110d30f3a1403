"""Making, reconstructing and encoding videos on two processes against one: the same bits, names and lists."""

import json
import os
import time
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from checks_tae import SMALL
from mindspore import Tensor

from mg import device
from mg.config.encode_latents import EncodeLatentsConfig, LatentOptions, TaeOptions, VideoOptions
from mg.config.generate import GenerateConfig
from mg.config.parallel import ParallelConfig
from mg.config.reconstruct import ReconstructConfig
from mg.dataset.latents import read_latent
from mg.dataset.video_writer import write_video
from mg.errors import UserError
from mg.models.llama import LlamaConfig, LlamaModel
from mg.models.tae import PRESETS, TemporalAutoencoder
from mg.models.tae.loading import metadata_of
from mg.parallel.mesh import Mesh
from mg.pipelines.decode_latents import decode_latents
from mg.pipelines.encode_latents import encode_videos
from mg.pipelines.generate import generate_with, tasks_of
from mg.pipelines.pipeline_folder import Conditioning
from mg.pipelines.reconstruct import reconstruct
from mg.pipelines.text_to_video import TextToVideoPipeline
from mg.weights import write_weights
from tests import generation_fakes

DATA, TOKENS = ParallelConfig(), ParallelConfig(data=1, sequence=2)
TILES = {"use_tile": True, "encode_tile": 16, "decode_tile": 16, "decode_overlap": 8}
TILES |= {"spatial_tile": 16, "spatial_overlap": 8}


@contextmanager
def alone():
    """Let the block run as in a process that nobody joins."""
    with mock.patch.object(Mesh, "joined", lambda config: None):
        yield


def folder_of(name: str) -> Path:
    return Path(os.environ["MG_TEST_FOLDER"]) / name


def first(rank: int, folder: Path, work) -> None:
    """Let process 0 work alone, and the others wait for it."""
    marker = folder / "serial-done"
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        with alone():
            work()
        marker.touch()
    while not marker.exists():
        time.sleep(0.1)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same_files(folder: Path, other: Path, report: str, differ: tuple[str, ...] = ()) -> None:
    """Compare all files of two runs bit by bit, and their reports apart from what belongs to the run."""
    found, wanted = files_of(folder), files_of(other)
    assert set(found) == set(wanted)
    reports = [json.loads(files.pop(report)) for files in (found, wanted)]
    for value in reports:
        for name in ("seconds", "folder", "config", *differ):
            value.pop(name, None)
    assert reports[0] == reports[1]
    assert [name for name in found if found[name] != wanted[name]] == []


@cache
def autoencoder(**options) -> TemporalAutoencoder:
    network = TemporalAutoencoder(SMALL, sample_deterministic=True, seed=4, **options)
    rng = np.random.default_rng(9)
    for param in network.get_parameters():
        param.set_data(Tensor(param.asnumpy() + rng.standard_normal(param.shape).astype(np.float32) * 0.02))
    return network


def check_tiles(rank: int) -> None:
    """Six tiles of two shapes, then three: one process is idle in the last turn."""
    device.setup("CPU", "pynative")
    plain, shared = TemporalAutoencoder(SMALL, sample_deterministic=True, seed=4, **TILES), autoencoder(**TILES)
    for mine, other in zip(plain.get_parameters(), shared.get_parameters(), strict=True):
        mine.set_data(other)
    mesh = Mesh(TOKENS, rank, 2)
    mesh.share_tiles(shared)
    calls = []
    run = shared._moments_numpy
    shared._moments_numpy = lambda x: calls.append(x.shape) or run(x)
    for frames, mine in ((24, [3, 3]), (1, [2, 1])):
        calls.clear()
        x = Tensor(np.random.default_rng(frames).uniform(-1, 1, (1, 3, frames, 14, 32)).astype(np.float32))
        latents = plain.encode(x)
        for found, wanted in zip(shared.encode(x), latents, strict=True):
            np.testing.assert_array_equal(found.asnumpy(), wanted.asnumpy())
        assert len(calls) == mine[rank]
        z = latents[0]
        np.testing.assert_array_equal(shared.decode(z, frames).asnumpy(), plain.decode(z, frames).asnumpy())
    with pytest.raises(UserError, match="let it work in tiles"):
        mesh.share_tiles(TemporalAutoencoder(SMALL))


def pipeline() -> TextToVideoPipeline:
    sizes = LlamaConfig(
        hidden_size=16, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, in_channels=4,
        max_length=(3, 4, 4), text_widths=generation_fakes.CONFIG.text_widths,
    )  # fmt: skip
    transformer = LlamaModel(sizes, seed=3)
    rng = np.random.default_rng(5)
    for param in transformer.get_parameters():  # nothing at zero
        param.set_data(Tensor(param.asnumpy() + rng.standard_normal(param.shape).astype(np.float32) * 0.1))
    towers = {kind: generation_fakes.Encoder(kind, width) for kind, width in sizes.text_widths}
    told = Conditioning(text_lengths=generation_fakes.LENGTHS)
    return TextToVideoPipeline(transformer, autoencoder(**TILES), towers, told)


def generating(folder: Path, **options) -> GenerateConfig:
    prompts = ("a red circle", "a blue square", "a red circle", "a green circle", "one more")
    common = {"pipeline": "-", "prompt": prompts, "num_sampling_steps": 2, "save_latent": True, "seed": 7}
    return GenerateConfig(**common | {"output_path": str(folder)} | options)


def check_one_video(rank: int) -> None:
    device.setup("CPU", "pynative")
    autoencoder.cache_clear()
    folder = folder_of("sequence")
    config = generating(folder / "serial", prompt=("a dog", "a cat"), image_size=(16, 32), num_frames=20)
    tasks = tasks_of(config)[0]
    first(rank, folder, lambda: generate_with(config, pipeline(), tasks, []))
    config = replace(config, output_path=str(folder / "shared"), parallel=TOKENS)
    made = pipeline()
    report = generate_with(config, made, tasks, [], mesh := Mesh(TOKENS, rank, 2))
    assert [row["file"] for row in report["videos"]] == (["a-dog.mp4", "a-cat.mp4"] if rank == 0 else [])
    mesh.total(0.0)
    found, wanted = folder / "shared", folder / "serial"
    assert set(files_of(found)) == set(files_of(wanted))
    for name in ("a-dog", "a-cat"):
        pair = [np.load(path / "denoised_latents" / f"{name}.npy") for path in (found, wanted)]
        np.testing.assert_allclose(*pair, rtol=0, atol=1e-5)
        assert np.abs(pair[0]).max() > 0.5
    config = replace(config, image_size=(16, 48), num_frames=8)
    with pytest.raises(UserError, match=r"16 x 48 pixels are 3 tokens, which .* 2 devices .* cannot divide"):
        generate_with(config, made, tasks, [], mesh)


def check_prompts(rank: int) -> None:
    """Five prompts in batches of two: process 0 has the first and the last batch."""
    device.setup("CPU", "pynative")
    folder, rule = folder_of("prompts"), lambda x, level, text: text - x
    config = generating(folder / "serial", batch_size=2, image_size=(16, 32), num_frames=9, append_timestamp=True)
    tasks = tasks_of(config)[0]
    bad = [{"row": 6, "error": "is empty"}]
    first(rank, folder, lambda: generate_with(config, generation_fakes.pipeline(rule), tasks, bad))
    config = replace(config, output_path=str(folder / "shared"))
    made = generation_fakes.pipeline(rule)
    mesh = Mesh(DATA, rank, 2)
    report = generate_with(config, made, tasks, bad, mesh)
    assert len(report["videos"]) == (5, 2)[rank]
    assert len(made.transformer.calls) == (4, 2)[rank]
    mesh.total(0.0)
    (found,), (wanted,) = (list((folder / name).iterdir()) for name in ("shared", "serial"))
    same_files(found, wanted, "videos.json")
    assert len(files_of(found)) == 5 * 2 + 2
    shared = replace(config, batch_size=1)
    with pytest.raises(UserError, match="5 cannot be divided among 2"):
        generate_with(shared, made, tasks, bad, Mesh(ParallelConfig(data=1, zero=2, zero_stage=3), rank, 2))


@cache
def material() -> tuple[Path, Path]:
    """Weights and a folder of three videos and one that is none."""
    folder = folder_of("material")
    weights, clips = folder / "tiny.safetensors", folder / "clips"
    if weights.exists():
        return weights, clips
    clips.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for name, frames in (("a", 40), ("b", 3), ("d", 3)):
        write_video(clips / f"{name}.mp4", rng.integers(0, 256, (frames, 16, 16, 3), np.uint8), Fraction(8))
    (clips / "c.mp4").write_bytes(b"no video")
    network = TemporalAutoencoder(PRESETS["tiny"], seed=1)
    tensors = {name: param.asnumpy() for name, param in network.parameters_and_names()}
    write_weights(weights, tensors, metadata_of(network.config))
    return weights, clips


def check_clips(rank: int) -> None:
    """Reconstructing: clips shared out, and the tiles of each."""
    folder = folder_of("clips")

    def config(name: str, parallel: ParallelConfig = DATA) -> ReconstructConfig:
        weights, clips = material()
        return ReconstructConfig(
            ckpt_path=str(weights), video_folder=str(clips), output_path=str(folder / name),
            enable_tile=name != "refused", mode="pynative", parallel=parallel,
        )  # fmt: skip

    first(rank, folder, lambda: reconstruct(config("serial")))
    for name, parallel, own in (("data", DATA, (3, 2)), ("tiles", TOKENS, (3, 0))):
        if rank == 0:  # left by a run that was broken off
            (folder / name).mkdir(exist_ok=True)
            (folder / name / ".share-1.npz").write_bytes(b"of another run")
        report = reconstruct(config(name, parallel))
        assert len(report["clips"]) == own[rank]
        Mesh(DATA, rank, 2).total(0.0)
        same_files(folder / name, folder / "serial", "metrics.json")
    with pytest.raises(UserError, match="let it work in tiles"):
        reconstruct(config("refused", TOKENS))


def check_latents(rank: int) -> None:
    """Encoding and decoding: videos shared out, and the tiles of each."""
    folder = folder_of("latents")

    def config(name: str, parallel: ParallelConfig = DATA, decoding: bool = False) -> EncodeLatentsConfig:
        weights, clips = material()
        what = {"video_data": VideoOptions(folder=str(clips), size="source")}
        if decoding:
            what = {"latent_data": LatentOptions(folder=str(folder / "serial")), "save_format": "png"}
        return EncodeLatentsConfig(
            tae=TaeOptions(pretrained=str(weights), use_tile=True), output_path=str(folder / name), mode="pynative",
            parallel=parallel, **what,
        )  # fmt: skip

    def serial() -> None:
        encode_videos(config("serial"))
        decode_latents(config("serial-png", decoding=True))

    first(rank, folder, serial)
    for name, parallel in (("data", DATA), ("tiles", TOKENS)):
        encode_videos(config(name, parallel))
        decode_latents(config(f"{name}-png", parallel, decoding=True))
        Mesh(DATA, rank, 2).total(0.0)
        same_files(folder / f"{name}-png", folder / "serial-png", "summary.json")
        found, wanted = (json.loads((folder / run / "summary.json").read_text()) for run in (name, "serial"))
        assert found["statistics"] == pytest.approx(wanted["statistics"], rel=1e-12)
        for key in ("rows", "encoded", "skipped", "bad", "shapes", "tae"):
            assert found[key] == wanted[key]
        assert found["encoded"] == 3
        for clip in ("a", "b", "d"):  # the files hold the time they were made at
            mine, other = (read_latent(folder / run / f"{clip}.npz") for run in (name, "serial"))
            np.testing.assert_array_equal([mine.mean, mine.std], [other.mean, other.std])


def of(world: int):
    if world != 2:
        return {}
    return {
        "tiles of an autoencoder": check_tiles,
        "one video on two processes": check_one_video,
        "prompts on two processes": check_prompts,
        "clips on two processes": check_clips,
        "latents on two processes": check_latents,
    }

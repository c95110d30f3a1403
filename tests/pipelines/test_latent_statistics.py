"""Statistics of latents: equal to numpy over all of them at once, stored, and used by what comes after."""

import json
import runpy
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import mindspore  # noqa: F401 - must be loaded before decord
import numpy as np
import pytest
from PIL import Image

from mg import device
from mg.config.encode_latents import EncodeLatentsConfig, LoaderOptions, TaeOptions, VideoOptions
from mg.config.generation import GenerationSettings
from mg.config.latent_statistics import LatentStatisticsConfig
from mg.config.prompt_dropout import PromptDropout
from mg.dataset.generation import GenerationSource
from mg.dataset.latents import LatentRecord, read_latent
from mg.dataset.manifest import Item
from mg.errors import NoGoodClip, UserError
from mg.files import write_json
from mg.models.tae.loading import from_checkpoint
from mg.pipelines import latent_statistics as room
from mg.pipelines.encode_latents import encode_videos
from mg.pipelines.latent_moments import LatentMoments
from mg.pipelines.latent_statistics import factors_of, latent_statistics
from mg.pipelines.pipeline_folder import read_tae
from mg.pipelines.train_watch import decoder
from mg.weights import read_weights

NAMES = ["a.mp4", "b.mp4", "c.mp4", "d.png", "cut.mp4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clip):
    folder = tmp_path_factory.mktemp("videos")
    for seed, (name, frames) in enumerate({"a.mp4": 12, "b.mp4": 9, "c.mp4": 17}.items()):
        clip(folder / name, frames, 40, 48, seed=seed)
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 48, 3), np.uint8)).save(folder / "d.png")
    (folder / "cut.mp4").write_bytes((folder / "a.mp4").read_bytes()[:900])
    (folder / "list.csv").write_text("\n".join(["video", *NAMES]) + "\n")
    return folder


@pytest.fixture(autouse=True)
def pynative(cpu_graph_mode):
    """Compile nothing: there are several shapes."""
    device.setup("CPU", "pynative")


def config(weights, folder, **options):
    loader = LoaderOptions(batch_size=options.pop("batch_size", 2))
    video = VideoOptions(csv_path=str(folder / "list.csv"), size="32")
    tae = TaeOptions(pretrained=str(weights))
    options = {"device": "CPU", "mode": "pynative", **options}
    return LatentStatisticsConfig(tae=tae, video_data=video, dataloader=loader, **options)


def encode(weights, folder, output):
    video = VideoOptions(csv_path=str(folder / "list.csv"), size="32")
    tae = TaeOptions(pretrained=str(weights))
    return encode_videos(
        EncodeLatentsConfig(output_path=str(output), tae=tae, video_data=video, device="CPU", mode="pynative")
    )


def test_streamed_moments_equal_those_of_all_values_at_once():
    draw = np.random.default_rng(0)
    shapes = [(4, 1, 3, 3), (4, 5, 2, 7), (4, 2, 8, 8)]
    means = [1000 + draw.standard_normal(shape).astype(np.float32) * (1 + i) for i, shape in enumerate(shapes)]
    stds = [draw.uniform(0.1, 2, shape).astype(np.float32) for shape in shapes]
    moments = LatentMoments()
    for mean, std in zip(means, stds, strict=True):
        moments.add(mean, std)
    mean, std = (np.concatenate([part.astype(float).reshape(4, -1) for part in parts], 1) for parts in (means, stds))
    np.testing.assert_allclose(moments.means, mean.mean(1), rtol=1e-12)
    np.testing.assert_allclose(moments.stds(samples=False), mean.std(1), rtol=1e-9)
    np.testing.assert_allclose(moments.stds(), np.sqrt(mean.var(1) + (std**2).mean(1)), rtol=1e-9)
    assert moments.mean == pytest.approx(mean.mean(), rel=1e-12)
    assert moments.std() == pytest.approx(np.sqrt(mean.var() + (std**2).mean()), rel=1e-9)
    assert moments.std(samples=False) == pytest.approx(mean.std(), rel=1e-9)


def test_factors_bring_drawn_latents_to_mean_0_and_deviation_1():
    draw = np.random.default_rng(3)
    mean, std = draw.normal(0.7, 3.0, (16, 9, 8, 8)), draw.uniform(0, 2, (16, 9, 8, 8))
    moments = LatentMoments()
    moments.add(mean, std)
    scaling, shift = factors_of(moments)
    scaled = (mean + std * draw.standard_normal(mean.shape) - shift) * scaling
    assert abs(scaled.mean()) < 0.03 and scaled.std() == pytest.approx(1, abs=0.02)
    with pytest.raises(UserError, match="do not vary"):
        factors_of(LatentMoments())


def test_the_figures_are_those_of_the_encoded_latents(weights, folder, tmp_path):
    report = latent_statistics(config(weights, folder, report=str(tmp_path / "r.json")))
    encode(weights, folder, tmp_path / "latents")
    files = [read_latent(path) for path in sorted((tmp_path / "latents").glob("*.npz"))]
    assert len(files) == 4 == report["encoded"] and report["skipped"] == 1
    mean, std = (
        np.concatenate([getattr(latent, key).astype(float).reshape(16, -1) for latent in files], 1)
        for key in ("mean", "std")
    )
    assert report["values"] == mean.size
    assert report["mean"] == pytest.approx(mean.mean(), abs=1e-6)
    assert report["std"] == pytest.approx(np.sqrt(mean.var() + (std**2).mean()), rel=1e-6)
    assert report["scaling_factor"] == pytest.approx(1 / report["std"], rel=1e-5)
    assert report["shift_factor"] == pytest.approx(report["mean"], rel=1e-5)
    assert [channel["mean"] for channel in report["channels"]] == pytest.approx(mean.mean(1), abs=1e-6)
    assert report["stored"] == {"scaling_factor": 0.85, "shift_factor": 0.03}
    assert report["shapes"] == {"1x32x32": 1, "9x32x32": 1, "12x32x32": 1, "17x32x32": 1}
    assert json.loads((tmp_path / "r.json").read_text()) == report
    alone = latent_statistics(config(weights, folder, samples=False))
    assert alone["std"] == pytest.approx(mean.std(), rel=1e-5)


def test_what_is_stored_scales_the_training_and_goes_into_the_pipelines_folder(weights, folder, tmp_path):
    target = tmp_path / "scaled.safetensors"
    report = latent_statistics(config(weights, folder, write=str(target)))
    before, after = read_weights(weights), read_weights(target)
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    tae = from_checkpoint(str(target), sample_deterministic=True)
    want = {"scaling_factor": report["scaling_factor"], "shift_factor": report["shift_factor"]}
    assert (tae.scale_factor, tae.shift_factor) == tuple(want.values()) and want["scaling_factor"] != 0.85
    latents = tmp_path / "latents"
    encode(target, folder, latents)
    record = LatentRecord.read(latents)
    assert {key: getattr(record, key) for key in want} == want
    # The transformer's training: drawn latents over the whole set.
    items = [Item(folder / name, name, "caption", row) for row, name in enumerate(NAMES[:4])]
    settings = GenerationSettings(batch_size=1, dropout=PromptDropout(all=0.0), tae_latent_folder=str(latents))
    source = GenerationSource(items, settings)
    drawn = np.concatenate([source.batch(index)["latent"].ravel() for index in range(60)])
    assert abs(drawn.mean()) < 0.05 and drawn.std() == pytest.approx(1, abs=0.05)
    # And back: what the decoder is given is the latent that was scaled.
    exact = GenerationSource(
        items, GenerationSettings(
            batch_size=1, dropout=PromptDropout(all=0.0), tae_latent_folder=str(latents), sample_latents=False
        )
    ).batch(0)
    inverse = decoder(
        SimpleNamespace(
            scale_factor=tae.scale_factor, shift_factor=tae.shift_factor, decode=lambda z, num_target_frames: z
        ), 9,
    )
    mean = read_latent(latents / f"{exact['names'][0][:-4]}.npz").mean
    np.testing.assert_allclose(inverse(exact["latent"])[0], mean, atol=1e-6)
    # The pipeline's folder has the configuration of the autoencoder it is made of.
    write_json(tmp_path / "tae" / "config.json", asdict(tae.config))
    (tmp_path / "tae" / "diffusion_pytorch_model.safetensors").write_bytes(target.read_bytes())
    assert read_tae(tmp_path / "tae").config.scaling_factor == want["scaling_factor"]


def test_a_part_of_the_list_is_spread_over_it(weights, folder):
    report = latent_statistics(config(weights, folder, max_items=2))
    assert (report["rows"], report["encoded"], report["skipped"]) == (2, 1, 1)  # the first and the last
    assert report["shapes"] == {"12x32x32": 1}


def test_mistakes_are_named(weights, folder, tmp_path):
    with pytest.raises(UserError, match=r"write=x\.bin: choose a name that ends in"):
        config(weights, folder, write="x.bin")
    with pytest.raises(UserError, match=r"max_items=0: give at least 1"):
        config(weights, folder, max_items=0)
    with pytest.raises(UserError, match="name the videos"):
        LatentStatisticsConfig(tae=TaeOptions(pretrained="x"))
    (tmp_path / "list.csv").write_text("video\nnone.mp4\n")
    with pytest.raises(NoGoodClip, match=r"none of the 1 videos could be used \(none\.mp4: no such file\)"):
        latent_statistics(config(weights, tmp_path))


def test_the_tool_prints_figures_and_factors(weights, folder, tmp_path, monkeypatch, capsys):
    given = []

    def stand_in(config):
        given.append(config)
        return {
            "rows": 3, "encoded": 2, "skipped": 1, "shapes": {"9x32x32": 2}, "mean": 0.03125, "std": 2.0,
            "samples": True, "values": 64, "channels": [{"mean": 0.5, "std": 1.5}, {"mean": -0.4375, "std": 2.5}],
            "scaling_factor": 0.5, "shift_factor": 0.03125, "stored": {"scaling_factor": 0.85, "shift_factor": 0.03},
        }

    monkeypatch.setattr(room, "latent_statistics", stand_in)
    tool = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "latent_statistics.py"))
    target = str(tmp_path / "out.safetensors")
    tool["main"](
        ["--tae.pretrained", str(weights), "--video_data.folder", str(folder), "--write", target, "--samples", "false"]
    )
    (config,) = given
    assert (config.write, config.samples, config.video_data.folder) == (target, False, str(folder))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "3 videos and pictures: 2 used, 1 skipped",
        "       2 of 9x32x32 (frames x height x width)",
        "latents: mean 0.0312, standard deviation 2.0000 (samples' spread included), 64 values",
    ]
    assert lines[-4:-1] == [
        "      1   -0.4375    2.5000", "scaling_factor 0.5 (the weights had 0.85)",
        "shift_factor 0.03125 (the weights had 0.03)",
    ]
    assert lines[-1].startswith(f"weights with these factors are in {target}")

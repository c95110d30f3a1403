"""scripts/inference_tae.py as a person meets it: endings, exit codes, one line for every mistake."""

import json
import re

import mindspore  # noqa: F401 - must be loaded before decord
import numpy as np
import pytest

from mg.dataset.latents import read_latent
from mg.dataset.video import probe
from mg.dataset.video_writer import write_video

SCRIPT = "inference_tae.py"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos and more")
    noise = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    write_video(folder / "good.mp4", noise, 16)
    (folder / "text.mp4").write_text("I am no video\n")
    (folder / "list.csv").write_text("video,caption\ngood.mp4,noise\ntext.mp4,text\ngood.mp4,the same\n")
    (folder / "bad.csv").write_text("video\ntext.mp4\n")
    return folder


def test_there_and_back(run, here, weights, videos, tmp_path):
    latents, out = tmp_path / "latents", tmp_path / "out"
    words = ("--tae.pretrained", weights, "--video_data.csv_path", videos / "list.csv", "--video_data.size", "16")
    words = (*words, "--output_path", latents)
    result = run(SCRIPT, *words)
    assert result.code == 0, result.err
    assert result.out.splitlines()[0] == "3 videos: 1 encoded, 1 duplicates, 0 reused, 1 skipped"
    assert "1 of 8x16x16 (frames x height x width)" in result.out
    assert "skipped: text.mp4" in result.err and "Traceback" not in result.err and "\r" not in result.err
    assert read_latent(latents / "good.npz").mean.shape == (16, 1, 2, 2)
    assert json.loads((latents / "summary.json").read_text())["bad"][0]["video"] == "text.mp4"
    again = here(SCRIPT, *words)
    assert again.code == 0 and again.out.splitlines()[0] == "3 videos: 0 encoded, 1 duplicates, 1 reused, 1 skipped"
    back = here(SCRIPT, "--tae.pretrained", weights, "--latent_data.folder", latents, "--output_path", out, "--fps", 8)
    assert back.code == 0 and "1 decoded, 0 skipped" in back.out, back.err
    info = probe(out / "good.mp4")
    assert (info.num_frames, info.height, info.width, float(info.fps)) == (8, 16, 16, 16.0)  # its own rate


ENCODE = ("--video_data.folder", "VIDEOS")
MISTAKES = {
    "no weights": (("--video_data.folder", "VIDEOS"), r"tae\.pretrained is missing"),
    "weights not there": (("--tae.pretrained", "no.safetensors", *ENCODE), r"--tae\.pretrained no\.safetensors"),
    "nothing to do": (("--tae.pretrained", "WEIGHTS"), "nothing to do"),
    "both": (("--tae.pretrained", "WEIGHTS", *ENCODE, "--latent_data.folder", "x"), "choose one"),
    "no folder": (("--tae.pretrained", "WEIGHTS", "--video_data.folder", "nowhere"), "nowhere is not a folder"),
    "no latents": (("--tae.pretrained", "WEIGHTS", "--latent_data.folder", "VIDEOS"), r"no \.npy or \.npz in it"),
    "size": (("--tae.pretrained", "WEIGHTS", *ENCODE, "--video_data.size", "big"), "size=big"),
    "frames": (("--tae.pretrained", "WEIGHTS", *ENCODE, "--video_data.sample_n_frames", "0"), "sample_n_frames=0"),
    "batch": (("--tae.pretrained", "WEIGHTS", *ENCODE, "--dataloader.batch_size", "0"), "batch_size=0"),
    "shard": (("--tae.pretrained", "WEIGHTS", *ENCODE, "--shard", "2/2"), "shard=2/2"),
    "format": (("--tae.pretrained", "WEIGHTS", *ENCODE, "--save_format", "avi"), "save_format"),
    "tile": (("--tae.pretrained", "WEIGHTS", *ENCODE, "--tae.decode_tile", "3"), "decode_tile=3"),
    "unknown": (("--tae.pretrained", "WEIGHTS", *ENCODE, "--video_data.sise", "16"), "sise"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_one_line(here, error_line, weights, videos, tmp_path, kind):
    words, told = MISTAKES[kind]
    words = [{"WEIGHTS": weights, "VIDEOS": videos}.get(word, word) for word in words]
    result = here(SCRIPT, *words, "--output_path", tmp_path / "o")
    assert re.search(told, error_line(result))
    assert not list(tmp_path.rglob("*.npz"))


def test_nothing_but_bad_videos(here, error_line, weights, videos, tmp_path):
    words = ("--tae.pretrained", weights, "--video_data.csv_path", videos / "bad.csv", "--output_path", tmp_path)
    assert "none of the 1 videos could be read" in error_line(here(SCRIPT, *words), code=5)


def test_help(run):
    result = run(SCRIPT, "--help")
    assert result.code == 0 and "--video_data.sample_n_frames" in result.out and "--latent_data.folder" in result.out

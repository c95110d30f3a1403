"""scripts/inference.py as two processes: the files of one process, and the end of a run in which one fails.

Embeddings in place of prompts, and PyNative: nothing is compiled.
"""

import json

import numpy as np
import pytest

from mg.dataset.text_npz import write_text_npz
from mg.models.text_encoders.features import TextFeatures


@pytest.fixture
def args(root, tmp_path):
    """Arguments for three small videos of the shipped pipeline; their embeddings are in folders beside the results."""
    pipeline = root / "assets" / "shapes"
    said = json.loads((pipeline / "transformer" / "config.json").read_text())
    rng, folders = np.random.default_rng(0), []
    for kind, width in said["text_widths"]:
        for name in ("a", "b", "c"):
            values = rng.standard_normal((1, 4, width)).astype(np.float32)
            features = TextFeatures(values, np.ones((1, 4), bool), np.ones((1, 4), np.int32))
            write_text_npz(tmp_path / kind / f"{name}.npz", features, said["trained_with"][kind])
        folders += [f"--text_emb.{kind}_dir", tmp_path / kind]
    small = ("--image_size", 32, 32, "--num_frames", 8, "--num_sampling_steps", 2, "--guidance_scale", 1)
    return ("--pipeline", pipeline, *folders, *small, "--save_latent", "--mode", "pynative")


@pytest.fixture
def together(run, root, tmp_path):
    """Run the script as two processes; returns the result and the second one's log."""

    def call(*args):
        launcher = ("--nproc_per_node", 2, "--log_dir", tmp_path / "logs", root / "scripts" / "inference.py")
        result = run("launch.py", *launcher, *args)
        return result, (tmp_path / "logs" / "rank-00001.log").read_text()

    return call


def contents(folder):
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    report = json.loads(files.pop("videos.json").read_text("utf-8"))
    for name in ("folder", "seconds", "config"):
        report.pop(name)
    return report, {name: path.read_bytes() for name, path in files.items()}


def test_two_processes_write_what_one_writes(run, together, args, tmp_path):
    alone = run("inference.py", *args, "--output_path", tmp_path / "one")
    assert alone.code == 0, alone.err
    result, log = together(*args, "--output_path", tmp_path / "two")
    assert result.code == 0, result.out + result.err + log
    report, files = contents(tmp_path / "two")
    expected, wanted = contents(tmp_path / "one")
    assert [row["file"] for row in report["videos"]] == ["a.mp4", "b.mp4", "c.mp4"]
    assert report == expected and set(files) == set(wanted)
    assert [name for name in files if files[name] != wanted[name]] == []
    assert len({files[f"denoised_latents/{name}.npy"] for name in "abc"}) == 3
    assert "3 made" in result.out and "1 made" in log


def test_a_process_that_fails_ends_the_run(together, args, tmp_path):
    damaged = tmp_path / "ul2" / "b.npz"  # the second process' share
    damaged.write_bytes(b"damaged")
    result, log = together(*args, "--output_path", tmp_path / "out")
    assert result.code == 2, result.err
    assert f"error: {damaged}" in log and "rank 1 ended with exit code 2" in result.err
    assert not (tmp_path / "out" / "sheet.png").exists()

"""scripts/train_tae.py from end to end: runs, stops, resumes, and says what is wrong.

The runs are in PyNative mode: each is a process of its own, and compiling would take longer than all the steps.
"""

import json
import shutil
import signal
import time
from pathlib import Path

import mindspore  # noqa: F401 - must be loaded before decord
import numpy as np
import pytest

from mg.config import cli
from mg.config.tae_train import TaeTrainConfig
from mg.weights import read_weights

SCRIPT = "train_tae.py"
CLIPS = Path(__file__).parents[2] / "assets" / "clips"
SETTINGS = (
    "--mode pynative --device CPU --model.preset tiny --data.size 16 16 --data.num_frames 8 --data.batch_size 1 "
    "--data.image_ratio 0.5 --train.log_every 1 --train.ema_decay 0.9 --train.optimizer.lr 1e-3"
).split()
DATA = ("--csv_path", CLIPS / "test.csv", "--video_folder", CLIPS)


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """An uninterrupted run of 8 steps, and how it ended."""
    folder = tmp_path_factory.mktemp("train") / "whole"
    return folder, run(SCRIPT, *SETTINGS, *DATA, "--train.steps", 8, "--output_path", folder)


def test_a_run_ends_with_the_averaged_weights_and_says_where(whole):
    folder, result = whole
    assert result.code == 0, result.err
    assert result.out.splitlines()[0] == "step 8/8"
    assert result.out.splitlines()[-1].startswith(f"weights are in {folder / 'tae.safetensors'}")
    assert "\r" not in result.err
    assert [step for step, _ in losses(folder)] == list(range(1, 9))
    last = folder / "step-00000008"
    final, average, model = (read_weights(path) for path in (
        folder / "tae.safetensors", last / "ema.safetensors", last / "model.safetensors"
    ))  # fmt: skip
    assert final.keys() == model.keys()
    assert all(np.array_equal(final[name], average[name]) for name in average)
    assert not all(np.array_equal(final[name], model[name]) for name in model)
    from mg.models.tae.loading import from_checkpoint

    network = from_checkpoint(folder / "tae.safetensors")
    loaded = {name: param.asnumpy() for name, param in network.parameters_and_names()}
    assert loaded.keys() == final.keys() and all(np.array_equal(loaded[name], final[name]) for name in final)


def test_sigterm_saves_and_the_same_command_ends_with_the_same_bits(whole, run, start, tmp_path):
    """From nothing but the first run's config.yaml, with another type of the final weights."""
    other = tmp_path / "stopped"
    record = cli.load(TaeTrainConfig, whole[0] / "config.yaml")
    assert (record.train.steps, record.data.size, record.output_path) == (8, (16, 16), str(whole[0]))
    command = (SCRIPT, "--config", whole[0] / "config.yaml", "--output_path", other, "--export_dtype", "fp16")
    process = start(*command)
    while not (other / "metrics.jsonl").is_file() or not losses(other):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    assert (other / "config.yaml").is_file()  # from the start on
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "stopped early, the same command goes on from there" in out
    done = losses(other)
    assert 1 <= len(done) < 8 and done == losses(whole[0])[: len(done)]
    again = run(*command)
    assert again.code == 0, again.err
    assert f"resuming at step {len(done)}/8" in again.err
    assert losses(other) == losses(whole[0])
    for name in ("model", "optimizer", "ema"):
        file = f"step-00000008/{name}.safetensors"
        assert (other / file).read_bytes() == (whole[0] / file).read_bytes()
    full, half = (read_weights(folder / "tae.safetensors") for folder in (whole[0], other))
    assert all(np.array_equal(half[name], full[name].astype(np.float16).astype(np.float32)) for name in full)
    assert (other / "tae.safetensors").stat().st_size < 0.55 * (whole[0] / "tae.safetensors").stat().st_size


def test_sigusr1_saves_and_asks_for_a_restart(whole, start, tmp_path):
    folder = tmp_path / "run"
    process = start(SCRIPT, "--config", whole[0] / "config.yaml", "--output_path", folder, "--train.steps", 500)
    while not (folder / "metrics.jsonl").is_file() or not losses(folder):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    done = losses(folder)
    assert (folder / "LATEST").read_text() == f"step-{done[-1][0]:08d}\n"
    assert done[:8] == losses(whole[0])[: len(done)]


def test_four_steps_and_four_more_are_eight(whole, here, tmp_path):
    folder = tmp_path / "parts"
    for steps in (4, 8):
        result = here(SCRIPT, *SETTINGS, *DATA, "--train.steps", steps, "--output_path", folder)
        assert result.code == 0, result.err
    assert losses(folder) == losses(whole[0])
    for name in ("tae.safetensors", "step-00000008/optimizer.safetensors"):
        assert (folder / name).read_bytes() == (whole[0] / name).read_bytes()


def test_resume_refuses_other_data_and_keeps_the_record(whole, here, error_line, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    before = (folder / "config.yaml").read_bytes()
    command = [*SETTINGS, *DATA, "--train.steps", 9, "--output_path", folder, "--data.num_frames", 4]
    line = error_line(here(SCRIPT, *command))
    assert "step-00000008: cannot resume, the run differs: data.num_frames was 8 is 4" in line
    assert (folder / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    "args, words",
    [
        (["--csv_path", "{0}/no.csv"], "csv_path: {0}/no.csv is not a file"),
        (["--csv_path", "{0}/empty.csv"], "csv_path: {0}/empty.csv is empty"),
        (["--video_folder", "{0}/none"], "video_folder: {0}/none is not a folder"),
        ([], "--csv_path and --video_folder are both missing"),
        ([*DATA, "--model.pretrained", "{0}/no.safetensors"], "model.pretrained: {0}/no.safetensors: there is no such"),
        ([*DATA, "--model.pretrained", "{0}/other.safetensors"], "{0}/other.safetensors: does not fit"),
        ([*DATA, "--output_path", "{0}/empty.csv"], "--output_path: cannot write {0}/empty.csv"),
        ([*DATA, "--valid.csv_path", "{0}/no.csv"], "{0}/no.csv is not a file"),
        ([*DATA, "--train.step", "4"], "--train.steps?"),
        ([*DATA, "--train.steps", "0"], "train.steps=0"),
        ([*DATA, "--data.image_ratio", "2"], "data.image_ratio: 2"),
        ([*DATA, "--valid.image_size", "4"], "valid.image_size=4 must be at least 11"),
        ([*DATA, "--valid.num_frames", "0"], "valid.num_frames=0 must be at least 1"),
        ([*DATA, "--workers", "-1"], "workers=-1 must be at least 0"),
        ([*DATA, "--config", "{0}/no.yaml"], "--config {0}/no.yaml"),
    ],
)
def test_bad_input_is_one_line(here, error_line, tmp_path, args, words):
    (tmp_path / "empty.csv").touch()
    from mg.weights import write_weights

    write_weights(tmp_path / "other.safetensors", {"transformer.weight": np.zeros((2, 2), np.float32)})
    args = [str(arg).format(tmp_path) for arg in args]
    default = [] if "--output_path" in args else ["--output_path", tmp_path / "o"]
    line = error_line(here(SCRIPT, "--device", "CPU", "--model.preset", "tiny", *default, *args))
    assert words.format(tmp_path) in line
    assert not (tmp_path / "o").exists()
    assert (tmp_path / "empty.csv").read_bytes() == b""


def test_clips_none_of_which_can_be_read(here, error_line, tmp_path):
    (tmp_path / "list.csv").write_text("video\nno.mp4\n")
    line = error_line(here(SCRIPT, *SETTINGS, "--csv_path", tmp_path / "list.csv", "--output_path", tmp_path / "o"), 5)
    assert "none of the 1 clips is readable" in line and "while building batch 0" in line


def test_the_saved_configuration_alone_gives_the_same_losses(run, whole, tmp_path):
    result = run(SCRIPT, "--config", whole[0] / "config.yaml", "--train.steps", 2, "--output_path", tmp_path / "again")
    assert result.code == 0, result.err
    assert losses(tmp_path / "again") == losses(whole[0])[:2]


def test_too_many_missing_files_end_the_run_before_it_begins(here, error_line, root, tmp_path):
    clips = root / "assets" / "clips"
    (tmp_path / "list.csv").write_text("video\nbbb_meadow.mp4\nno1.mp4\nno2.mp4\n")
    args = ["--csv_path", tmp_path / "list.csv", "--video_folder", clips, "--output_path", tmp_path / "o"]
    line = error_line(here(SCRIPT, *SETTINGS, *args), 5)
    assert "2 of 3 files are bad, more than max_bad=0.01 allows; the first: " in line
    listed = tmp_path / "o" / "bad_videos.jsonl"
    assert f"no1.mp4: file not found; all of them are in {listed}, delete it once they are mended" in line
    lines = listed.read_text().splitlines()
    assert len(lines) == 2 and str(clips / "no2.mp4") in lines[1]
    assert not (tmp_path / "o" / "metrics.jsonl").exists()

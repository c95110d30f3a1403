"""scripts/train.py: a run from the command line and from stacked YAML files, and its mistakes in one line."""

import json

import pytest

from mg.config import cli
from mg.config.train import TrainConfig
from tests import tiny_training

SCRIPT = "train.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Latents and embeddings of three videos, and two YAML files."""
    folder = tmp_path_factory.mktemp("data")
    tiny_training.write(folder)
    (folder / "over.yaml").write_text("train: {steps: 3}\n")
    return folder


@pytest.fixture
def command(folder):
    """The command's arguments but for the output folder."""
    return [*tiny_training.options(folder), "--mode", "pynative"]


def test_a_run_says_where_the_weights_are(here, command, folder, tmp_path):
    result = here(SCRIPT, *command, "-c", folder / "over.yaml", "--output_path", tmp_path / "run")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0] == "step 3/3" and any(line.startswith("loss: ") for line in lines)
    assert lines[-1].startswith(f"weights are in {tmp_path}/run/transformer, logs, config.yaml")
    record = cli.load(TrainConfig, tmp_path / "run" / "config.yaml")
    assert (record.train.steps, record.model.hidden_size, record.data.text.ul2) == (3, 16, f"{folder}/ul2")
    said = json.loads((tmp_path / "run" / "transformer" / "config.json").read_text())
    assert said["hidden_size"] == 16 and said["text_widths"] == [["ul2", 6]]
    assert (said["null_text"], said["trained_with"]["tae"]) == ("zeros", "tae0")
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "args, words",
    [
        (["--csv_path", "{0}/no.csv"], "csv_path: {0}/no.csv is not a file"),
        (["--valid.csv_path", "{0}/no.csv"], "valid.csv_path: {0}/no.csv is not a file"),
        (["--data.tae_latent_folder", "{0}/none"], "data.tae_latent_folder: {0}/none is not a folder"),
        (["--data.text.ul2", "{0}/none"], "data.text.ul2: {0}/none is not a folder"),
        (["--model.pretrained", "{0}/none"], "model.pretrained: {0}/none"),
        (["--model.preset", "llama-2B"], "llama-2B"),
        (["--model.recompute_every_nth_block", "0"], "model.recompute_every_nth_block=0 must be at least 1"),
        (["--model.num_attention_heads", "3"], "model.hidden_size=16 must be a multiple of num_attention_heads=3"),
        (["--model.max_length", "1", "1", "2"], "videos of 8x32x32"),
        (["--loss.token_drop", "1"], "loss.token_drop=1.0 must be in [0, 1)"),
        (["--data.batch_size", "0"], "data.batch_size=0"),
        (["--data.image_ratio", "0.5"], "data.image_ratio=0.5: there are no pictures"),
        (["--sample.every", "3"], "sample.every=3 must be a multiple of train.validate_every=0"),
        (["--train.validate_every", "1", "--sample.every", "1", "--sample.guidance_scale", "3", "--data.dropout.all",
          "0"], "sample.guidance_scale=3.0 needs a model that knows the empty prompt"),
        (["--train.lr_reduce_on_plateau.factor", "0.5"], "validate_every=0 must be 1 or above"),
        (["--train.lr_reduce_on_plateau.factor", "0.5", "--train.validate_every", "1"], "name --valid.csv_path"),
        (["--tae.pretrained", "{0}/none.safetensors"], "tae.pretrained {0}/none.safetensors"),
        (["--train.step", "4"], "--train.steps?"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(here, error_line, command, tmp_path, args, words):
    args = [arg.format(tmp_path) for arg in args]
    result = here(SCRIPT, *command, "--output_path", tmp_path / "o", *args)
    line = error_line(result, result.code if result.code in (2, 5) else 2)
    assert words.format(tmp_path) in line
    assert not (tmp_path / "o" / "config.yaml").exists()


def test_a_run_out_of_time_asks_for_a_restart_and_one_told_to_stop_does_not(here, command, tmp_path):
    run = tmp_path / "run"
    result = here(SCRIPT, *command, "--train.max_minutes", "1e-6", "--output_path", run)
    assert result.code == 75, result.err
    assert result.out.splitlines()[0] == "step 0/2; stopped early, the same command goes on from there"
    (run / "STOP").touch()
    result = here(SCRIPT, *command, "--output_path", run)
    assert result.code == 0, result.err
    assert result.out.splitlines()[0].startswith("step 0/2; stopped early")
    result = here(SCRIPT, *command, "--output_path", run)
    assert (result.code, result.out.splitlines()[0]) == (0, "step 2/2")


def test_another_runs_state_or_its_weights(here, error_line, command, tmp_path):
    """Everything is resumed to the same bits, other settings are refused by name; weights alone begin at step 0."""

    def losses(name):
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return [(row["step"], row["loss"]) for row in rows]

    def run(name, steps, *more):
        flags = ("--train.steps", steps, "--output_path", tmp_path / name, *more)
        return here(SCRIPT, *command, *flags)

    for name, steps, *more in (
        ("whole", 3), ("part", 2), ("rest", 3, "--train.resume_from", tmp_path / "part"),
        ("new", 1, "--train.init_from", tmp_path / "part", "--train.seed", 7, "--data.batch_size", 1),
    ):  # fmt: skip
        result = run(name, steps, *more)
        assert result.code == 0, result.err
    assert losses("rest") == losses("whole")
    for file in ("model", "optimizer", "ema"):
        path = f"step-00000003/{file}.safetensors"
        assert (tmp_path / "rest" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()
    assert [step for step, _ in losses("new")] == [1]
    assert "unlike there: data.batch_size was 2 is 1" in result.err and "trainer.seed was 0 is 7" in result.err
    line = error_line(run("other", 3, "--train.resume_from", tmp_path / "part", "--data.batch_size", 1))
    assert f"{tmp_path}/part/step-00000002: cannot resume, the run differs: data.batch_size was 2 is 1; " in line

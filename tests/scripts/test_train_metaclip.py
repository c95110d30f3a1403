"""scripts/train_metaclip.py from end to end, and its mistakes in one line."""

from pathlib import Path

import numpy as np
import pytest

from mg.weights import read_weights

SCRIPT = "train_metaclip.py"
ASSETS = Path(__file__).parents[2] / "assets"
TOY = ("--pretrained", ASSETS / "text/metaclip", "--device", "CPU", "--mode", "pynative")
LIST = ("--data.csv_path", ASSETS / "clips/train.csv")
QUICK = (
    "--max_length 80 --data.join_captions 3 --data.joined_count 4 --data.batch_size 2 --train.steps 1 --valid.share 0"
).split()


def test_a_run_says_where_the_encoder_is(here, tmp_path):
    result = here(SCRIPT, *TOY, *LIST, *QUICK, "--export_dtype", "fp16", "--output_path", tmp_path / "run")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert lines[0] == "step 1/1" and lines[-1].startswith(f"the encoder is in {tmp_path / 'run/encoder'}, logs")
    assert not any(line.startswith("cos_") for line in lines)  # nothing was held back
    weights = tmp_path / "run/encoder/model.safetensors"
    table = read_weights(weights)["text_model.embeddings.position_embedding.weight"]
    assert table.shape == (80, 64) and np.abs(table[77:] - table[76]).max() > 1e-5
    assert weights.stat().st_size < 1.05 * (ASSETS / "text/metaclip/model.safetensors").stat().st_size  # FP16 as well


@pytest.mark.parametrize(
    "args, words",
    [
        (["--data.csv_path", "{0}/no.csv"], "csv_path: {0}/no.csv is not a file"),
        (["--data.csv_path", "{0}/bare.csv"], "bare.csv has no column 'caption'"),
        ([], "data.csv_path"),
        ([*LIST, "--pretrained", "{0}/none"], "{0}/none: there is no such folder"),
        ([*LIST, "--max_length", "77"], "max_length=77"),
        ([*LIST, "--max_length", "2"], "max_length=2 must be at least 3"),
        ([*LIST, "--loss.objective", "contrastive"], "data.image_embeddings is missing"),
        ([*LIST, "--data.image_embeddings", "x.npz"], "only loss.objective=contrastive looks at pictures"),
        ([*LIST, "--loss.distill_weight", "-1"], "loss.distill_weight=-1.0 must be 0 or above"),
        ([*LIST, "--data.batch_size", "0"], "data.batch_size=0 must be at least 1"),
        ([*LIST, "--data.join_captions", "0"], "data.join_captions=0 must be at least 1"),
        ([*LIST, "--valid.share", "1"], "valid.share=1.0 must be in [0, 1)"),
        ([*LIST, "--data.join_caption", "3"], "did you mean --data.join_captions?"),
    ],
)
def test_bad_input_is_one_line(here, error_line, tmp_path, args, words):
    (tmp_path / "bare.csv").write_text("video\na.mp4\n")
    args = [str(arg).format(tmp_path) for arg in args]
    line = error_line(here(SCRIPT, *TOY, "--output_path", tmp_path / "o", *args))
    assert words.format(tmp_path) in line
    assert not (tmp_path / "o").exists()

"""scripts/inference_text_enc.py as a person meets it: endings, exit codes, one line for every mistake."""

import json
import signal
import time
import types

import numpy as np
import pytest

from mg.dataset.text_npz import read_text_npz
from mg.models.text_encoders.features import TextFeatures

SCRIPT = "inference_text_enc.py"


class Counting:
    """Encodes a text as one token per character, numbered."""

    kind, width, max_length, dtype, fingerprint = "byt5", 2, 6, "fp32", "0123456789abcdef"
    processor = types.SimpleNamespace(config=types.SimpleNamespace(text="all"))

    def tokenize(self, texts):
        mask = np.arange(self.max_length) < np.array([len(text) for text in texts])[:, None]
        return np.where(mask, np.arange(1, 7), 0).astype(np.int32), mask

    def encode_tokens(self, tokens, mask, trim=False):
        return TextFeatures(np.repeat(tokens[..., None], 2, 2).astype(np.float32), mask, tokens)


@pytest.fixture
def loaded(monkeypatch):
    """Put the counting encoder in the place of what a folder holds; returns the options it was asked for with."""
    from mg.pipelines import encode_text

    asked = []

    def from_pretrained(folder, **options):
        asked.append((str(folder), options))
        return Counting()

    monkeypatch.setattr(encode_text, "TextEncoder", types.SimpleNamespace(from_pretrained=from_pretrained))
    return asked


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("video,caption\na.mp4,one\nb.mp4\nc.mp4,\nd.mp4,one\n")
    return path


def test_done_with_a_bad_row(here, loaded, prompts, tmp_path):
    args = ("--model_name", tmp_path, "--prompts_file", prompts, "--output_path", tmp_path / "o")
    result = here(SCRIPT, *args, "--device", "CPU")
    assert result.code == 0, result.err
    assert result.out.splitlines() == [
        "4 rows: 2 encoded, 1 duplicates, 0 reused, 1 skipped",
        f"embeddings of byt5 are in {tmp_path / 'o'}",
    ]
    assert "WARNING skipped: row 2 has no field 'caption'" in result.err and "\r" not in result.err
    assert read_text_npz(tmp_path / "o/d.npz")[0].tokens.tolist() == [[1, 2, 3, 0, 0, 0]]
    defaults = {"kind": None, "max_length": None, "num_layers": None, "dtype": "fp32", "text": None}
    assert loaded == [(str(tmp_path), defaults)]


def test_options_reach_the_encoder(here, loaded, prompts, tmp_path):
    result = here(
        SCRIPT, "--model_name", tmp_path, "--prompts_file", prompts, "--output_path", tmp_path / "o", "--kind", "ul2",
        "--model_max_length", "6", "--num_layers", "3", "--dtype", "fp16", "--text", "quoted", "--format", "cache",
    )  # fmt: skip
    assert result.code == 0, result.err
    wanted = {"kind": "ul2", "max_length": 6, "num_layers": 3, "dtype": "fp16", "text": "quoted"}
    assert loaded[0][1] == wanted
    assert json.loads((tmp_path / "o/summary.json").read_text())["config"]["format"] == "cache"


def test_nothing_but_bad_rows(here, error_line, loaded, prompts, tmp_path):
    prompts.write_text("video,caption\na.mp4\n../b.mp4,x\n")
    args = ("--model_name", tmp_path, "--prompts_file", prompts, "--output_path", tmp_path / "o")
    line = error_line(here(SCRIPT, *args), code=5)
    assert "none of the 2 rows could be used (row 1 has no field 'caption')" in line


def test_mistakes_in_the_list_are_told_before_anything_is_loaded(here, error_line, loaded, tmp_path):
    for content, words in (
        (None, "is not a file"),
        (b"", "is empty"),
        (b"video,caption\n", "lists no prompts"),
        (b"film,caption\na,b\n", "has no column 'video', only film, caption; see --column_names"),
        (bytes(range(256)), "not a UTF-8 CSV file"),
        ("video,caption\na,grün\n".encode("latin-1"), "not a UTF-8 CSV file"),
    ):
        path = tmp_path / "bad.csv"
        if content is not None:
            path.write_bytes(content)
        args = ("--model_name", tmp_path, "--prompts_file", path, "--output_path", tmp_path / "o")
        line = error_line(here(SCRIPT, *args))
        assert line.startswith(f"error: prompts_file: {path} ") and words in line
    assert loaded == [] and not (tmp_path / "o").exists()


def test_another_encoders_folder(here, error_line, loaded, prompts, tmp_path, monkeypatch):
    args = ("--model_name", tmp_path, "--prompts_file", prompts, "--output_path", tmp_path / "o")
    assert here(SCRIPT, *args).code == 0
    monkeypatch.setattr(Counting, "fingerprint", "f" * 16)
    line = error_line(here(SCRIPT, *args))
    assert line.startswith(f"error: --output_path {tmp_path / 'o'}: another encoder wrote it") and "--overwrite" in line
    assert here(SCRIPT, *args, "--overwrite").code == 0
    assert read_text_npz(tmp_path / "o/a.npz")[1] == "f" * 16


@pytest.mark.parametrize(
    "name, words",
    [
        ("no/such/folder", "--model_name no/such/folder: neither a folder nor a model id"),
        ("nobody/nothing", "error: --model_name nobody/nothing: there is no such folder, and as a name on the hub "),
        ("{0}", "error: --model_name {0}/config.json: there is no such file"),
    ],
)
def test_no_encoder_there(here, error_line, prompts, tmp_path, monkeypatch, name, words):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    name = name.format(tmp_path)
    line = error_line(here(SCRIPT, "--model_name", name, "--prompts_file", prompts, "--output_path", tmp_path / "o"))
    assert words.format(tmp_path) in line and list((tmp_path / "o").iterdir()) == []


def test_an_id_is_fetched(here, loaded, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr("mg.pipelines.encode_text.fetch", lambda name: tmp_path / "hub" / name)
    args = ("--model_name", "google/byt5-small", "--prompts_file", prompts, "--output_path", tmp_path / "o")
    assert here(SCRIPT, *args).code == 0
    assert loaded[0][0] == str(tmp_path / "hub/google/byt5-small")


def test_bad_options(here, error_line, prompts, tmp_path):
    args = ("--prompts_file", prompts, "--output_path", tmp_path / "o")
    assert "shard=1/1: give i/n" in error_line(here(SCRIPT, *args, "--shard", "1/1"))
    assert "did you mean --batch_size?" in error_line(here(SCRIPT, *args, "--batch_sise", "1"))
    assert "output_path" in error_line(here(SCRIPT, "--prompts_file", prompts))
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_only_complete_files(start, root, tmp_path, number):
    lines = [f"prompt {i}" for i in range(5000)]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    out = tmp_path / "o"
    process = start(
        SCRIPT, "--model_name", root / "assets/text/ul2", "--prompts_file", tmp_path / "list.txt", "--output_path", out,
        "--model_max_length", "16",
    )  # fmt: skip
    while not (out / "020-prompt-20.npz").is_file():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and err.splitlines()[-1] == "error: interrupted", err
    files = list(out.glob("*.npz"))
    assert 20 < len(files) < 5000 and not [path.name for path in out.iterdir() if path.name.startswith(".")]
    assert all(read_text_npz(path)[0].embeddings.shape == (1, 16, 64) for path in files)

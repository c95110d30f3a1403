"""The converter as a command."""

import os
import pickle

import pytest
import torch

from mg.weights import read_weights

TOOL = "../tools/download_convert_st.py"


class Bomb:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.fixture
def folder(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    state = {"shared.weight": weight, "encoder.embed_tokens.weight": weight, "b": torch.ones(2).bfloat16()}
    torch.save(state, tmp_path / "model" / "pytorch_model.bin")
    return tmp_path / "model"


def test_a_folder_is_converted_once(here, folder, tmp_path):
    result = here(TOOL, folder, "--output_dir", tmp_path / "out")
    assert result.code == 0, result.err
    assert result.out == (
        f"{tmp_path / 'out'}: 2 tensors (1 bf16, 1 float32), 0.0 MB\n"
        "tied: encoder.embed_tokens.weight is shared.weight\n"
    )
    assert read_weights(tmp_path / "out")["shared.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (tmp_path / "out" / "config.json").read_text() == "{}"
    again = here(TOOL, folder, "--output_dir", tmp_path / "out")
    made = tmp_path / "out" / "model.safetensors"
    assert (again.code, again.out) == (0, f"{made} is there already: nothing to do (--force converts again)\n")
    assert "2 tensors" in here(TOOL, folder, "--output_dir", tmp_path / "out", "--force").out


def test_a_bomb_is_one_line(here, error_line, folder, tmp_path):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"w": Bomb(tmp_path / "ran")}, protocol=2))
    assert "refused, and nothing in it was run: it asks for posix.mkdir" in error_line(here(TOOL, folder))
    assert not (tmp_path / "ran").exists() and not (folder / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "FOLDER_OR_ID"),
        (("a/b/c",), "a/b/c: neither a folder nor a model id"),
        (("a", "--unknown"), "--unknown"),
    ],
)
def test_mistakes_are_one_line(here, error_line, arguments, expected):
    assert expected in error_line(here(TOOL, *arguments))


def test_no_network_is_one_line_in_a_process_of_its_own(run, error_line, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    said = error_line(run(TOOL, "google/byt5-small"))
    assert said.startswith("error: google/byt5-small: there is no such folder, and as a name on the hub it cannot be f")

"""Averaged weights are numpy's mean, and trainings of different models are told apart."""

import json

import numpy as np
import pytest

from mg.errors import UserError
from mg.pipelines.average_weights import average_weights
from mg.weights import read_metadata, read_weights, write_weights


@pytest.fixture
def trainings(tmp_path):
    """Three folders as a training leaves them: [(folder, tensors)]."""
    rng = np.random.default_rng(3)
    made = []
    for name in "abc":
        tensors = {
            "layers.0.weight": rng.standard_normal((4, 3)).astype(np.float32) * 1e3,
            "norm": rng.standard_normal(5).astype(np.float32),
            "order": np.arange(3),
        }
        write_weights(tmp_path / name / "model.safetensors", tensors, {"key": "value"})
        (tmp_path / name / "config.json").write_text(json.dumps({"hidden_size": 3, "trained_with": {"tae": "ab"}}))
        made.append((tmp_path / name, tensors))
    return made


@pytest.mark.parametrize("count", [2, 3])
def test_the_average_is_the_mean(trainings, tmp_path, count):
    folders, tensors = zip(*trainings[:count], strict=True)
    assert average_weights(folders, tmp_path / "mean") == {"files": count, "tensors": 3}
    found = read_weights(tmp_path / "mean" / "diffusion_pytorch_model.safetensors")
    for name in tensors[0]:
        np.testing.assert_allclose(found[name], np.mean([each[name] for each in tensors], 0), rtol=1e-6)
    assert found["order"].dtype.kind == "i"
    assert json.loads((tmp_path / "mean" / "config.json").read_text())["trained_with"] == {"tae": "ab"}
    assert read_metadata(tmp_path / "mean") == {"key": "value"}


def test_files_give_a_file_of_the_type_asked_for(trainings, tmp_path):
    files = [folder / "model.safetensors" for folder, _ in trainings]
    average_weights(files, tmp_path / "mean.safetensors", "fp16")
    want = np.mean([tensors["norm"] for _, tensors in trainings], 0)
    np.testing.assert_allclose(read_weights(tmp_path / "mean.safetensors")["norm"], want, rtol=1e-3)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    "change, words",
    [
        ({"extra": np.zeros(1, np.float32)}, "1 tensors are not in both it and .*a: extra; average trainings of one"),
        ({"norm": np.zeros(6, np.float32)}, r"norm is \(6,\), elsewhere \(5,\); average"),
        ({"norm": np.full(5, np.nan, np.float32)}, "c: NaN or infinity in norm"),
        ({"order": np.arange(3) + 1}, "order holds integers and differs"),
    ],
)
def test_other_tensors_are_refused(trainings, tmp_path, change, words):
    folder, tensors = trainings[2]
    write_weights(folder / "model.safetensors", {**tensors, **change})
    with pytest.raises(UserError, match=words):
        average_weights([folder for folder, _ in trainings], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_other_configurations_are_refused(trainings, tmp_path):
    folders = [folder for folder, _ in trainings]
    (folders[1] / "config.json").write_text(json.dumps({"hidden_size": 3, "trained_with": {"tae": "cd"}}))
    with pytest.raises(UserError, match=r"b/config.json: differs from .*a/config.json in trained_with"):
        average_weights(folders, tmp_path / "mean")
    (folders[1] / "config.json").unlink()
    with pytest.raises(UserError, match=r"b/config.json: cannot be read .*name a target ending in .safetensors"):
        average_weights(folders, tmp_path / "mean")


def test_fewer_than_two_sources(trainings, tmp_path):
    (folder, _), *_ = trainings
    with pytest.raises(UserError, match="sources: 1 given"):
        average_weights([folder], tmp_path / "mean")
    with pytest.raises(UserError, match="named twice"):
        average_weights([folder, str(folder)], tmp_path / "mean")

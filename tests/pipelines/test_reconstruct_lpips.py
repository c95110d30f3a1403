"""`reconstruct` measures LPIPS where its weights are given."""

import csv
import json

import mindspore  # noqa: F401 - must be loaded before decord
import numpy as np
import pytest
from mindspore import Tensor

import mg.device
from mg.config.reconstruct import ReconstructConfig
from mg.dataset.video import read_video
from mg.errors import UserError
from mg.models.perceptual import from_weights
from mg.pipelines import reconstruct as room


class Dimmer:
    """A codec that darkens."""

    def encode(self, x):
        return x, x, x

    def decode(self, z, num_target_frames):
        return z * 0.5 - 0.25


@pytest.fixture
def report(clip, tmp_path, monkeypatch, lpips_file):
    """Reconstruct two clips, one too small for LPIPS: (report, output folder)."""
    monkeypatch.setattr(room, "_network", lambda config: Dimmer())
    clip(tmp_path / "clips" / "a.mp4", 6, 32, 32)
    clip(tmp_path / "clips" / "small.mp4", 2, 32, 12)
    options = {"video_folder": str(tmp_path / "clips"), "output_path": str(tmp_path / "out"), "save_vis": False}
    config = ReconstructConfig(
        ckpt_path="none", lpips_path=str(lpips_file), device="CPU", mode="pynative", **options
    )
    return room.reconstruct(config), tmp_path / "out"


def test_column_and_mean(report, tmp_path, lpips_file):
    report, out = report
    mg.device.setup("CPU", "pynative")
    frames = read_video(tmp_path / "clips" / "a.mp4")
    x = frames.astype(np.float64) / 127.5 - 1
    made = np.clip(np.rint((0.5 * x + 0.75) * 127.5), 0, 255)
    a, b = (Tensor(np.ascontiguousarray(y.transpose(0, 3, 1, 2), np.float32)) for y in (frames, made))
    want = from_weights(lpips_file, (0, 255))(a, b).asnumpy().mean()
    one, small = report["clips"]
    assert one["lpips"] == pytest.approx(float(want), rel=0.02, abs=1e-3) and one["lpips"] > 0
    assert small["lpips"] is None and report["mean"]["lpips"] == one["lpips"]
    assert json.loads((out / "metrics.json").read_text())["mean"]["lpips"] == one["lpips"]
    with (out / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["lpips"] for row in rows] == [str(one["lpips"]), "", str(one["lpips"])]


def test_weights_that_are_none_are_named(tmp_path):
    config = ReconstructConfig(ckpt_path="x", video_path="y", lpips_path=str(tmp_path / "none.safetensors"))
    with pytest.raises(UserError, match="--lpips_path .*none.safetensors: there is no such file.*convert_lpips.py"):
        room._distance(config)

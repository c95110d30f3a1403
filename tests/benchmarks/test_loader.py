"""benchmarks/loader.py: figures of a small loader, and shares that are those of the run's own log."""

import json
import sys

import numpy as np
import pytest

from mg.config.clips import ClipSettings
from mg.config.tae_train import TaeTrainConfig
from mg.dataset.video_writer import write_video


@pytest.fixture
def benchmark(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    import loader

    yield loader
    sys.modules.pop("loader")


def test_the_loader_alone(benchmark, tmp_path):
    for n in range(3):
        write_video(tmp_path / f"{n}.mp4", np.full((6, 16, 16, 3), n, np.uint8), 24)
    data = ClipSettings(size=(16, 16), num_frames=4, batch_size=2)
    config = TaeTrainConfig(video_folder=str(tmp_path), data=data)
    found = benchmark.measure_loader(config, 20, (0, 2))
    assert set(found.kept) == set(found.decoding) == {0, 2} and found.first_pass > 0
    assert found.decoding[0] > found.kept[0] > 0


def test_shares_are_medians_over_the_warm_steps(benchmark, monkeypatch, tmp_path):
    import mg.pipelines.train_tae as room

    waits = [5.0] * 10 + [0.0, 0.1, 0.2, 0.3, 0.4]

    def train(config):
        assert config.train.log_every == 1 and config.train.steps == 15 and config.valid.csv_path is None
        with open(f"{config.output_path}/metrics.jsonl", "w") as file:
            for wait in waits:
                file.write(json.dumps({"step_time": 1.0 + wait, "data_wait": wait}) + "\n")

    monkeypatch.setattr(room, "train_tae", train)
    found = benchmark.measure_training(TaeTrainConfig(video_folder=str(tmp_path)), 5)
    assert found.wait == pytest.approx(0.15) and found.step == pytest.approx(1.15)  # the longest is left out
    assert found.share == pytest.approx((0.1 / 1.1 + 0.2 / 1.2) / 2) and found.total == pytest.approx(0.6 / 4.6)

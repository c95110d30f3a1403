"""A run of the autoencoder from its record alone, from another run's state, and from another run's weights."""

import json
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import mindspore  # noqa: F401 - must be loaded before decord
import numpy as np
import pytest

import mg.device
from mg.config import cli
from mg.config.clips import ClipSettings
from mg.config.tae_train import TaeModelConfig, TaeTrainConfig
from mg.config.trainer import OptimizerConfig, TrainerConfig
from mg.errors import UserError
from mg.pipelines.train_tae import train_tae
from mg.weights import read_weights


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows]


@pytest.fixture(scope="module")
def first(tmp_path_factory, clip):
    """Configuration of a finished run of 3 steps."""
    mg.device.setup("CPU", "pynative")
    clips = tmp_path_factory.mktemp("clips")
    for seed in range(3):
        clip(clips / f"{seed}.mp4", 9, 16, 16, seed=seed)
    config = TaeTrainConfig(
        video_folder=str(clips), output_path=str(clips.parent / f"{clips.name}-run"), device="CPU", mode="pynative",
        model=TaeModelConfig(preset="tiny"), data=ClipSettings(size=(16, 16), num_frames=8, batch_size=1),
        train=TrainerConfig(steps=3, log_every=1, ema_decay=0.9, optimizer=OptimizerConfig(lr=1e-3)),
    )  # fmt: skip
    train_tae(config)
    return config


def test_the_record_alone_reproduces_the_run(first, tmp_path):
    record = cli.load(TaeTrainConfig, f"{first.output_path}/config.yaml")
    assert record == first
    train_tae(replace(record, output_path=str(tmp_path / "again")))
    old = first.output_path
    assert losses(tmp_path / "again") == losses(Path(old))
    for name in ("model", "optimizer", "ema"):
        file = f"step-00000003/{name}.safetensors"
        assert (tmp_path / "again" / file).read_bytes() == (Path(old) / file).read_bytes()


def test_another_config_goes_on_where_the_differences_are_admitted(first, tmp_path):
    data = replace(first.data, num_frames=4)
    train = replace(first.train, steps=4, resume_from=first.output_path)
    config = replace(first, output_path=str(tmp_path / "run"), data=data, train=train)
    with pytest.raises(UserError, match="the run differs: data.num_frames was 8 is 4; choose"):
        train_tae(config)
    assert not (tmp_path / "run" / "config.yaml").exists()
    train_tae(replace(config, train=replace(train, allow_changes=("data.num_frames",))))
    found = losses(tmp_path / "run")
    assert found[:3] == losses(Path(first.output_path)) and [step for step, _ in found] == [1, 2, 3, 4]


def test_files_that_the_run_resumed_found_bad_are_left_out(first, tmp_path, monkeypatch):
    """The list may come with the checkpoint, when the data are open already."""
    listed, seen = tmp_path / "bad_videos.jsonl", []

    class Resumed:
        def __init__(self, *, batches, **settings):
            self.batches = batches

        def fit(self):
            listed.write_text(json.dumps({"path": f"{first.video_folder}/1.mp4", "reason": "for once"}) + "\n")
            with closing(self.batches(3)) as feed:
                seen.extend(name for batch in islice(feed, 6) for name in batch["ids"])
            return {}

        def export(self, *args):
            pass

    monkeypatch.setattr("mg.pipelines.train_tae.Trainer", Resumed)
    train_tae(replace(first, output_path=str(tmp_path)))
    assert len(seen) == 6 and set(seen) == {"0.mp4", "2.mp4"}


def test_the_weights_of_a_run_begin_another_one(first, tmp_path):
    train = replace(first.train, steps=1, init_from=first.output_path, optimizer=OptimizerConfig(lr=1e-12))
    train_tae(replace(first, output_path=str(tmp_path / "run"), train=train))
    assert [step for step, _ in losses(tmp_path / "run")] == [1]
    begun = read_weights(tmp_path / "run" / "tae.safetensors")
    for name, array in read_weights(f"{first.output_path}/tae.safetensors").items():
        np.testing.assert_allclose(begun[name], array, atol=1e-9)
    lines = (tmp_path / "run" / "events.jsonl").read_text()
    assert f"train.init_from={first.output_path}, step 3" in lines
    assert "trainer.optimizer.lr was 0.001 is 1e-12" in lines

"""`train_tae`: what it hands to the trainer: noise, masks, validation, the record of the run."""

import json
import math
from dataclasses import replace

import mindspore  # noqa: F401 - must be loaded before decord
import numpy as np
import pytest
from mindspore import Tensor

from mg.config import cli
from mg.config.clips import ClipSettings
from mg.config.reconstruct import ReconstructConfig
from mg.config.tae_train import TaeLossConfig, TaeModelConfig, TaeTrainConfig, TaeValidationConfig
from mg.config.trainer import TrainerConfig
from mg.dataset.clips import ClipSource
from mg.dataset.manifest import read_manifest, scan_folder
from mg.errors import UserError
from mg.log import get_logger
from mg.models.tae import PRESETS
from mg.pipelines import train_tae as room
from mg.pipelines.reconstruct import reconstruct
from mg.pipelines.tae_watch import validator
from mg.pipelines.train_tae import CONFIG_RECORD, FINAL_WEIGHTS, NoisyClips, train_tae

DATA = ClipSettings(size=(16, 16), num_frames=8, batch_size=2, frame_lengths=(3, 5), image_ratio=0.5)


class StandIn:
    """Takes the trainer's place: keeps what it was given, trains nothing."""

    def __init__(self, **given):
        self.given = given
        StandIn.last = self

    def fit(self):
        self.first = next(iter(self.given["batches"](3)))
        return {"step": 0, "stopped": False, "restart": False}

    def export(self, path, metadata, dtype):
        self.exported = (path, metadata, dtype)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clip):
    folder = tmp_path_factory.mktemp("clips")
    for seed in range(3):
        clip(folder / f"{seed}.mp4", 9, 32, 48, seed=seed)
    (folder / "list.csv").write_text("video\n2.mp4\n0.mp4\n")
    return folder


@pytest.fixture
def config(folder, tmp_path, weights):
    return TaeTrainConfig(
        video_folder=str(folder),
        output_path=str(tmp_path / "run"),
        device="CPU",
        export_dtype="fp16",
        model=TaeModelConfig(preset="tiny", pretrained=str(weights)),
        data=DATA,
        train=TrainerConfig(steps=8, seed=5),
    )


@pytest.fixture
def assemble(monkeypatch):
    """Run train_tae with the stand-in: assemble(config) -> StandIn."""
    monkeypatch.setattr(room, "Trainer", StandIn)

    def call(config):
        train_tae(config)
        return StandIn.last

    return call


def noisy(folder, seed=5):
    class Network:
        config = type("Config", (), {"z_channels": 16})
        time_compress = 8

        @staticmethod
        def latent_size(t, h, w):
            return -(-t // 8), -(-h // 8), -(-w // 8)

    return NoisyClips(ClipSource(scan_folder(folder), DATA), Network(), seed)


def test_noise_is_a_pure_function_of_seed_and_index(folder):
    forth, back = noisy(folder), noisy(folder)
    batches = [forth.batch(index) for index in range(4)]
    for index in reversed(range(4)):
        again = back.batch(index)
        for name in ("video", "mask", "noise"):
            np.testing.assert_array_equal(again[name], batches[index][name])
    shapes = {batch["video"].shape[2]: batch["noise"].shape for batch in batches}
    assert shapes == {1: (2, 16, 1, 2, 2), 8: (2, 16, 1, 2, 2)}
    assert all((batch["latent_mask"] == np.ones((2, 1))).all() for batch in batches)
    draws = [batch["noise"].ravel() for batch in batches] + [noisy(folder, seed=6).batch(0)["noise"].ravel()]
    assert np.abs(np.corrcoef(draws) - np.eye(5)).max() < 0.5
    assert all(abs(noise.mean()) < 0.4 and abs(noise.std() - 1) < 0.3 for noise in draws)


def test_rows_of_a_batch_are_the_same_without_the_others(folder):
    """So that several processes, each with its own rows, have the batch of one."""
    for index in range(3):
        whole = noisy(folder).batch(index)
        for row in range(noisy(folder).size(index)):
            part = noisy(folder).batch(index, [row])
            for name in ("video", "mask", "noise"):
                np.testing.assert_array_equal(part[name], whole[name][[row]])


def test_the_loss_counts_real_frames_only(assemble, config):
    stand = assemble(replace(config, mode="pynative", loss=TaeLossConfig(reconstruction="l1", kl_weight=0.01)))
    clips = stand.given["batches"](0)
    batch = next(batch for batch in clips if batch["video"].shape[2] == 8)
    clips.close()
    mask = batch["mask"]
    assert set(mask.sum(1)) <= {3, 5} and mask.shape == (2, 8)
    loss, network = stand.given["loss"], stand.given["network"]
    total, count, rec, kl = (float(x.asnumpy()) for x in loss(*(Tensor(batch[name]) for name in loss.inputs)))
    y, _, mean, logvar = (x.asnumpy() for x in network(Tensor(batch["video"]), Tensor(batch["noise"])))
    error = np.abs(y - batch["video"]).mean((1, 3, 4))  # (b, t)
    assert count == mask.sum()
    assert rec == pytest.approx(error[mask == 1].mean(), rel=1e-4)
    assert abs(error.mean() - error[mask == 1].mean()) > 1e-3  # the padding would have made a difference
    divergence = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar).sum()
    assert kl == pytest.approx(divergence / (mask.sum() * 3 * 16 * 16), rel=1e-4)
    assert total == pytest.approx(rec + 0.01 * kl, rel=1e-6)


def test_the_trainer_is_given_batches_from_where_it_resumes(assemble, config, folder):
    stand = assemble(config)
    want = NoisyClips(ClipSource(scan_folder(folder), DATA), stand.given["network"], 5).batch(3)
    for name in ("video", "mask", "noise"):
        np.testing.assert_array_equal(stand.first[name], want[name])


def test_what_a_resumed_run_must_share(assemble, config, folder):
    mark = assemble(config).given["fingerprint"]
    assert mark["clips"] == ClipSource(scan_folder(folder), DATA).fingerprint
    assert (mark["data"]["size"], mark["loss"]["reconstruction"]) == ((16, 16), "l1")
    assert mark["model"]["ch"] == PRESETS["tiny"]["ch"]
    listed = assemble(replace(config, csv_path=str(folder / "list.csv"), video_folder=None))
    # Without a folder: the one of the CSV.
    want = ClipSource(read_manifest(folder / "list.csv", folder), DATA).fingerprint
    assert listed.given["fingerprint"]["clips"] == want != mark["clips"]


def test_lists_are_mixed_and_the_log_tells_how_much_of_each(assemble, config, folder, caplog):
    (folder / "one.csv").write_text("video\n1.mp4\n")
    logger = get_logger()
    logger.addHandler(caplog.handler)
    mix = {str(folder / "list.csv"): 3.0, str(folder / "one.csv"): 1.0}
    stand = assemble(replace(config, mix=mix, video_folder=None))
    with stand.given["batches"](10) as batches:
        names = [name for _ in range(50) for name in next(batches)["ids"]]
    logger.removeHandler(caplog.handler)
    assert [names.count(f"{n}.mp4") for n in range(3)] == pytest.approx([37.5, 25, 37.5], abs=2)
    told = [record.getMessage() for record in caplog.records if "samples so far" in record.getMessage()]
    assert f"list {folder}/one.csv: 1 files, weight 25.00 %, " in told[-3] and "of 20 samples so far" in told[-3]
    assert "of 120 samples so far (" in told[-1]
    marks = [assemble(replace(config, mix=dict(zip(mix, weights, strict=True)), video_folder=None)).given["fingerprint"]
             for weights in ((3.0, 1.0), (2.0, 1.0))]  # fmt: skip
    assert marks[0] == stand.given["fingerprint"] and marks[0]["clips"] != marks[1]["clips"]
    with pytest.raises(UserError, match=r"^mix: csv_path: .*none\.csv is not a file"):
        assemble(replace(config, mix={str(folder / "none.csv"): 1.0}))


def test_record_of_the_run_and_final_weights(assemble, config, tmp_path):
    stand = assemble(config)
    assert cli.load(TaeTrainConfig, tmp_path / "run" / CONFIG_RECORD) == config
    path, metadata, dtype = stand.exported
    assert (path, dtype) == (tmp_path / "run" / FINAL_WEIGHTS, "fp16")
    assert json.loads(metadata["mg.tae_config"])["ch"] == PRESETS["tiny"]["ch"]


def test_validation_has_the_figures_of_reconstruct(assemble, config, folder, weights, tmp_path):
    valid = TaeValidationConfig(csv_path=str(folder / "list.csv"), image_size=32, num_frames=9)
    figures = assemble(replace(config, valid=valid, mode="pynative")).given["validate"](1)  # spares a compilation
    options = {"csv_path": valid.csv_path, "image_size": 32, "num_frames": 9, "save_vis": False, "device": "CPU"}
    report = reconstruct(ReconstructConfig(ckpt_path=str(weights), output_path=str(tmp_path / "out"), **options))
    assert figures == pytest.approx({f"val_{key}": report["mean"][key] for key in ("psnr", "ssim")}, abs=1e-3)
    shown = sorted(path.name for path in (tmp_path / "run/validation/step-00000001").iterdir())
    assert shown == ["0-2.mp4", "1-0.mp4", "sheet.png"]


def test_validation_of_a_network_that_gives_nan_does_not_end_the_run(folder):
    class Broken:
        def set_train(self, mode):
            pass

        def encode(self, x):
            return None, x, None

        def decode(self, z, num_target_frames):
            return z * np.nan

    figures = validator(Broken(), scan_folder(folder), 32, 9)(1)
    assert math.isnan(figures["val_psnr"]) and math.isnan(figures["val_ssim"])


def test_bad_validation_clip_is_told_before_the_training(assemble, config, tmp_path):
    (tmp_path / "bad.csv").write_text("video\nnot_there.mp4\n")
    with pytest.raises(UserError, match=r"valid\.csv_path: .*not_there\.mp4: no such file; take it off"):
        assemble(replace(config, valid=TaeValidationConfig(csv_path=str(tmp_path / "bad.csv"))))


def test_weights_that_do_not_fit_name_the_option(assemble, config, tmp_path):
    model = replace(config.model, pretrained=str(tmp_path / "none.safetensors"))
    with pytest.raises(UserError, match=r"^model\.pretrained: .*none\.safetensors: there is no such file"):
        assemble(replace(config, model=model))

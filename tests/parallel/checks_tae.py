"""The autoencoder on two processes whose rows have different numbers of valid frames, against one process."""

import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
from mindspore import ParameterTuple, Tensor

from mg import device
from mg.config.parallel import ParallelConfig
from mg.config.trainer import OptimizerConfig, TrainerConfig
from mg.dataset.clips import latent_mask
from mg.dataset.manifest import scan_folder
from mg.dataset.video_writer import write_video
from mg.models.tae import PRESETS, TemporalAutoencoder
from mg.models.tae.loss import TaeLoss
from mg.parallel.mesh import Mesh
from mg.pipelines import tae_watch
from mg.trainers.loop import Trainer, records_folder
from mg.trainers.step import Stepper

SMALL = dict(PRESETS["tiny"], ch=8, ch_mult=[1, 1, 2, 2], norm_groups=4, z_channels=4)
OPTIMIZER = OptimizerConfig(lr=1e-2, eps=1e-4, clip_grad_norm=0.5)


def batch():
    rng = np.random.default_rng(2)
    network = TemporalAutoencoder(SMALL)
    shape = (2, 4, *network.latent_size(9, 16, 16))
    mask = np.ones((2, 9), np.float32)
    mask[1, 4:] = 0
    return {
        "video": rng.uniform(-1, 1, (2, 3, 9, 16, 16)).astype(np.float32),
        "mask": mask,
        "latent_mask": latent_mask(mask, network.time_compress),
        "noise": rng.standard_normal(shape).astype(np.float32),
    }


def two_steps(mesh):
    network = TemporalAutoencoder(SMALL, seed=4)
    rng = np.random.default_rng(9)
    for param in network.get_parameters():  # nothing at zero: every gradient is to be seen
        param.set_data(Tensor(param.asnumpy() + rng.standard_normal(param.shape).astype(np.float32) * 0.02))
    loss = TaeLoss(network, kl_weight=1e-2)
    params = ParameterTuple(network.trainable_params())
    shards = None
    if mesh:
        mesh.apply(network)
        loss, shards = mesh.loss(loss), mesh.shards(params)
    stepper = Stepper(loss, params, OPTIMIZER, 0.0, shards=shards)
    figures = []
    for step in (1, 2):
        stepper.add(mesh.rows(batch()) if mesh else batch())
        values, norm = stepper.total()
        figures += [*values.tolist(), norm]
        stepper.apply(norm, 1e-2, step)
    return figures, [param.asnumpy().copy() for param in params]


def check(rank: int, degrees: dict[str, int]) -> None:
    device.setup("CPU", "pynative")
    figures, params = two_steps(Mesh(ParallelConfig(**degrees), rank, 2))
    expected, wanted = two_steps(None)
    np.testing.assert_allclose(figures, expected, rtol=0, atol=1e-5)
    for found, value in zip(params, wanted, strict=True):
        np.testing.assert_allclose(found, value, rtol=0, atol=1e-5)


class Source:
    def batch(self, index):
        return batch()


def validated(folder, mesh, clips):
    """Train two steps, each with a validation; returns the log of these and the lengths of the clips they measured."""
    network = TemporalAutoencoder(SMALL, seed=4)
    if mesh:
        mesh.apply(network)
    counted, plain = [], tae_watch.reconstruct_frames

    def reconstruct(network, frames):
        counted.extend(len(clip) for clip in frames)
        return plain(network, frames)

    config = TrainerConfig(steps=2, optimizer=OPTIMIZER, ema_decay=0.9, validate_every=1, log_every=1)
    tae_watch.reconstruct_frames = reconstruct
    try:
        Trainer(
            network=network, loss=TaeLoss(network), batches=Source(), config=config, output_path=folder, mesh=mesh,
            validate=tae_watch.validator(network, clips, 16, 9),
        ).fit()
    finally:
        tae_watch.reconstruct_frames = plain
    log = (records_folder(folder, mesh) / "validation.jsonl").read_text().splitlines()
    return [json.loads(line) for line in log], counted


def check_validation(rank: int) -> None:
    """Both processes measure all clips, each of them once, and find what one process finds."""
    device.setup("CPU", "pynative")
    folder = Path(os.environ["MG_TEST_FOLDER"]) / "tae"
    frames = np.random.default_rng(6).integers(0, 256, (9, 16, 16, 3), np.uint8)
    for length in (9, 3, 1):
        write_video(folder / f"clips-{rank}" / f"{length}.mp4", frames[:length], Fraction(25))
    clips = scan_folder(folder / f"clips-{rank}")
    found, counted = validated(folder / "two", Mesh(ParallelConfig(data=1, zero=2, zero_stage=2), rank, 2), clips)
    wanted, once = validated(folder / f"one-{rank}", None, clips)
    assert counted == once and sorted(counted) == [1, 1, 3, 3, 9, 9]
    assert len(found) == len(wanted) == 2 and found[0]["val_psnr"] != found[1]["val_psnr"]
    for figures, expected in zip(found, wanted, strict=True):
        assert figures.keys() == expected.keys() == {"step", "val_psnr", "val_ssim"}
        for name, value in expected.items():
            np.testing.assert_allclose(figures[name], value, rtol=0, atol=1e-5, err_msg=name)


def of(world: int):
    if world != 2:
        return {}
    return {
        "autoencoder with zero 2": lambda rank: check(rank, {"data": 1, "zero": 2, "zero_stage": 2}),
        "validation of the autoencoder": check_validation,
    }

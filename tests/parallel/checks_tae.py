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
from mg.trainers.loop import Trainer
from mg.trainers.step import Stepper

SMALL = dict(PRESETS["tiny"], ch=8, ch_mult=[1, 1, 2, 2], norm_groups=4, z_channels=4)
SMALLER = dict(
    SMALL, ch_mult=[1, 2], num_res_blocks=1, temporal_downsample_level=[0], temporal_upsample_level=[1]
)
OPTIMIZER = OptimizerConfig(lr=1e-2, eps=1e-4, clip_grad_norm=0.5)


def batch(config=SMALL, frames=9, side=16):
    rng = np.random.default_rng(2)
    network = TemporalAutoencoder(config)
    shape = (2, 4, *network.latent_size(frames, side, side))
    mask = np.ones((2, frames), np.float32)
    mask[1, 4:] = 0
    return {
        "video": rng.uniform(-1, 1, (2, 3, frames, side, side)).astype(np.float32),
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
        return batch(SMALLER, 5, 8)


def validated(folder, mesh, clips):
    """Train a step and validate; returns the lengths of the clips that were measured."""
    network = TemporalAutoencoder(SMALLER, seed=4)
    if mesh:
        mesh.apply(network)
    counted, plain = [], tae_watch.reconstruct_frames

    def reconstruct(network, frames):
        counted.extend(len(clip) for clip in frames)
        return plain(network, frames)

    config = TrainerConfig(steps=1, optimizer=OPTIMIZER, ema_decay=0.9, validate_every=1)
    tae_watch.reconstruct_frames = reconstruct
    try:
        Trainer(
            network=network, loss=TaeLoss(network), batches=Source(), config=config, output_path=folder, mesh=mesh,
            validate=tae_watch.validator(network, clips, 12, 5),
        ).fit()
    finally:
        tae_watch.reconstruct_frames = plain
    return counted


def check_validation(rank: int) -> None:
    """Both processes measure all clips, each of them once, and find what one process finds."""
    device.setup("CPU", "pynative")
    folder = Path(os.environ["MG_TEST_FOLDER"]) / "tae"
    frames = np.random.default_rng(6).integers(0, 256, (5, 12, 12, 3), np.uint8)
    for length in (5, 3, 1):
        write_video(folder / f"clips-{rank}" / f"{length}.mp4", frames[:length], Fraction(25))
    clips = scan_folder(folder / f"clips-{rank}")
    mesh = Mesh(ParallelConfig(data=1, zero=2, zero_stage=2), rank, 2)
    counted = validated(folder / "two", mesh, clips)
    assert sorted(counted) == [1, 3, 5]
    mesh.total(0.0)  # the other one has written its log
    if rank == 0:
        assert validated(folder / "one", None, clips) == counted
        wanted = json.loads((folder / "one" / "validation.jsonl").read_text())
        assert wanted.keys() == {"step", "val_psnr", "val_ssim"}
        for place in ("", "ranks/1"):
            found = json.loads((folder / "two" / place / "validation.jsonl").read_text())
            assert found.keys() == wanted.keys()
            for name, value in wanted.items():
                np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5, err_msg=f"{place} {name}")


def of(world: int):
    if world != 2:
        return {}
    return {
        "autoencoder with zero 2": lambda rank: check(rank, {"data": 1, "zero": 2, "zero_stage": 2}),
        "validation of the autoencoder": check_validation,
    }

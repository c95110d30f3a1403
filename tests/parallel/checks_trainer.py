"""The training loop of several processes against that of one: figures, checkpoints, resumes, a bad step, a stop."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
from checks_modes import OPTIMIZER, TOLERANCE, batches, network_and_loss

from mg import device
from mg.config.parallel import ParallelConfig
from mg.config.trainer import TrainerConfig
from mg.parallel.mesh import Mesh
from mg.trainers.checkpoint import newest, step_folder
from mg.trainers.loop import Trainer
from mg.weights import read_weights

STEPS, HALF, BAD = 3, 1, 2
"""Number of steps; a run goes on after HALF of them; the one after BAD of them is not finite."""
MODES = {2: {"zero 3": {"data": 1, "zero": 2, "zero_stage": 3}}, 4: {}}


class Source:
    def __init__(self, act=lambda index: None):
        self.act = act

    def batch(self, index):
        self.act(index)
        found = dict(batches()[index % len(batches())])
        if index == BAD:
            found["latent"] = found["latent"].copy()
            found["latent"][1] = np.nan  # of the second process alone, where rows are divided
        return found


def trainer(folder, mesh, source=None, steps=STEPS):
    network, loss = network_and_loss("graph")  # one block
    if mesh:
        mesh.apply(network)
    config = TrainerConfig(
        steps=steps, optimizer=OPTIMIZER, ema_decay=0.9, save_every=HALF, keep_last=STEPS, log_every=1,
    )  # fmt: skip
    return Trainer(
        network=network, loss=loss, batches=source or Source(), config=config, output_path=folder, mesh=mesh
    )


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.1)


def only_half(source: Path, target: Path) -> Path:
    """Copy a run as it was after HALF of the steps."""
    shutil.copytree(step_folder(source, HALF), step_folder(target, HALF))
    return target


def same(one: Path, other: Path, step: int) -> None:
    for name in ("model", "optimizer", "ema"):
        found, wanted = (read_weights(step_folder(folder, step) / f"{name}.safetensors") for folder in (one, other))
        assert list(found) == list(wanted)
        for key, value in wanted.items():
            np.testing.assert_allclose(found[key], value, rtol=0, atol=TOLERANCE, err_msg=f"{name} {key}")
    losses = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (one, other)
    ]
    for found, wanted in zip(*losses, strict=True):
        assert found["skipped"] == wanted["skipped"] == (found["step"] == BAD + 1)
        if not found["skipped"]:
            np.testing.assert_allclose(
                [found["loss"], found["grad_norm"]], [wanted["loss"], wanted["grad_norm"]], atol=TOLERANCE
            )


def check(rank: int, world: int, degrees: dict[str, int]) -> None:
    device.setup("CPU", "pynative")
    folder = Path(os.environ["MG_TEST_FOLDER"]) / "trainer"
    serial, parallel, onwards, back = (folder / name for name in ("serial", "parallel", "onwards", "back"))
    mesh = Mesh(ParallelConfig(**degrees), rank, world)
    if rank == 0:
        trainer(serial, None).fit()
        only_half(serial, onwards)
        (folder / "ready").touch()
    wait_for(folder / "ready")
    figures = trainer(parallel, mesh).fit()
    assert figures["step"] == STEPS and not figures["stopped"]
    resumed = trainer(onwards, mesh)
    resumed.fit()
    assert resumed.updates == STEPS - 1
    mesh.total(0.0)  # process 0 has written
    if rank == 0:
        same(parallel, serial, HALF)
        same(parallel, serial, STEPS)
        only_half(parallel, back)
        trainer(back, None).fit()
        for run in (onwards, back):
            for name in ("metrics.jsonl",):  # of the steps since
                shutil.copy(serial / name, run / name)
            same(run, serial, STEPS)


def check_stop(rank: int, world: int) -> None:
    """A signal to the last process alone stops all of them after the same step, with a checkpoint."""
    device.setup("CPU", "pynative")
    folder = Path(os.environ["MG_TEST_FOLDER"]) / "stop"

    def act(index):
        if index == 0 and rank == world - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    mesh = Mesh(ParallelConfig(), rank, world)
    run = trainer(folder, mesh, Source(act))
    figures = run.fit()
    assert figures["stopped"] and not figures["restart"] and figures["step"] == 1
    mesh.total(0.0)
    assert newest(folder).step == 1


def of(world: int):
    found = {
        f"trainer with {label}": lambda rank, degrees=degrees: check(rank, world, degrees)
        for label, degrees in MODES[world].items()
    }
    return found | ({"stop": lambda rank: check_stop(rank, world)} if world == 2 else {})

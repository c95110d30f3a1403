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
from mg.pipelines.merge_checkpoint import merge_checkpoint
from mg.trainers.checkpoint import load, newest, step_folder
from mg.trainers.loop import Trainer

STEPS, HALF, BAD = 3, 1, 2
"""Number of steps; a run goes on after HALF of them; the one after BAD of them is not finite."""
MODES = {2: {"zero 3": {"data": 1, "zero": 2, "zero_stage": 3}}, 4: {}}


class Source:
    def __init__(self, act=lambda index: None, bad=BAD):
        self.act, self.bad = act, bad

    def batch(self, index):
        self.act(index)
        found = dict(batches()[index % len(batches())])
        if index == self.bad:
            found["latent"] = found["latent"].copy()
            found["latent"][1] = np.nan  # of the second process alone, where rows are divided
        return found


def trainer(folder, mesh, source=None, steps=STEPS, save_shards=False):
    network, loss = network_and_loss("graph")  # one block
    if mesh:
        mesh.apply(network)
    config = TrainerConfig(
        steps=steps, optimizer=OPTIMIZER, ema_decay=0.9, save_every=HALF, keep_last=STEPS, log_every=1,
        save_shards=save_shards,
    )  # fmt: skip
    return Trainer(
        network=network, loss=loss, batches=source or Source(), config=config, output_path=folder, mesh=mesh
    )


def straight(folder, mesh, steps, **changes):
    """A run without a bad step."""
    return trainer(folder, mesh, Source(bad=None), steps, **changes)


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.1)


def only_half(source: Path, target: Path, step: int = HALF) -> Path:
    """Copy a run as it was after HALF, or more, of the steps."""
    shutil.copytree(step_folder(source, step), step_folder(target, step))
    return target


def same(one: Path, other: Path, step: int, bad: int | None = BAD) -> None:
    for name in ("model", "optimizer", "ema"):
        found, wanted = (load(step_folder(folder, step)).tensors(name) for folder in (one, other))
        assert set(found) == set(wanted)
        for key, value in wanted.items():
            np.testing.assert_allclose(found[key], value, rtol=0, atol=TOLERANCE, err_msg=f"{name} {key}")
    losses = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (one, other)
    ]
    for found, wanted in zip(*losses, strict=True):
        assert found["skipped"] == wanted["skipped"] == (bad is not None and found["step"] == bad + 1)
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


def held_bytes(run) -> int:
    """What a process has between two steps: parameters of the network, own parts, moments and averages, each once."""
    learner = run._main
    held = [*learner.network.get_parameters(), *learner._moments().values(), *learner.averages]
    held += learner._shards.owned if learner._shards else ()
    return sum(param.nbytes for param in {id(param): param for param in held}.values())


def check_shards(rank: int) -> None:
    """Four processes write shards; four go on to the same bits, two and then one to the serial run's figures."""
    device.setup("CPU", "pynative")
    folder = Path(os.environ["MG_TEST_FOLDER"]) / "shards"
    serial, four, again, fewer = (folder / name for name in ("serial", "four", "again", "fewer"))
    whole = folder / "bytes"
    four_processes = Mesh(ParallelConfig(data=1, zero=4, zero_stage=3), rank, 4)
    if rank == 0:
        run = straight(serial, None, STEPS)
        run.fit()
        whole.with_suffix(".part").write_text(str(held_bytes(run)))
        whole.with_suffix(".part").rename(whole)
    wait_for(whole)
    run = straight(four, four_processes, STEPS, save_shards=True)
    run.fit()
    share = held_bytes(run) / int(whole.read_text())
    print(f"rank {rank}: {share:.1%} of the serial run's parameters and optimizer", flush=True)
    assert share <= 0.3
    if rank == 0:
        only_half(four, again, STEPS - 1)
        only_half(four, fewer)
        (folder / "copied").touch()
    wait_for(folder / "copied")
    straight(again, four_processes, STEPS, save_shards=True).fit()
    if rank < 2:
        straight(fewer, Mesh(ParallelConfig(data=1, zero=2, zero_stage=3), rank, 2), STEPS - 1, save_shards=True).fit()
    if rank == 0:
        straight(fewer, None, STEPS).fit()
        one, other = (step_folder(run, STEPS) for run in (four, again))
        names = [f"{kind}-{n:05d}.safetensors" for kind in ("ema", "model", "optimizer") for n in range(4)]
        assert sorted(path.name for path in one.glob("*.safetensors")) == names
        assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names)
        assert len(list(step_folder(fewer, STEPS - 1).glob("model-*"))) == 2
        first, since = (serial / "metrics.jsonl").read_text().splitlines(True)[0], (fewer / "metrics.jsonl").read_text()
        (fewer / "metrics.jsonl").write_text(first + since)
        same(four, serial, STEPS, bad=None)
        same(fewer, serial, STEPS, bad=None)
        merge_checkpoint(four, folder / "whole")
        back = merge_checkpoint(folder / "whole", folder / "back", four_processes.dims)["folder"]
        assert {path.name for path in back.iterdir()} == {path.name for path in one.iterdir()}
        assert all((back / path.name).read_bytes() == path.read_bytes() for path in one.iterdir())
    four_processes.total(0.0)


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
    if world == 2:
        return found | {"stop": lambda rank: check_stop(rank, world)}
    return found | {"shards of four, two and one": check_shards}

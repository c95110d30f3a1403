"""Every way to divide a training of the transformer, and pairs of them, against the serial one in the same numbers.

Each in one mode only: a block compiled, or two op by op (four processes on two cores take long to compile).
"""

import os
import time
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
from mindspore import ParameterTuple, Tensor

from mg import device
from mg.config.parallel import ParallelConfig
from mg.config.trainer import OptimizerConfig
from mg.models.llama.config import LlamaConfig
from mg.models.llama.loss import FlowLoss
from mg.models.llama.network import LlamaModel
from mg.parallel.mesh import Mesh
from mg.trainers.step import Stepper

TOLERANCE = 1e-5
CONFIG = LlamaConfig(
    hidden_size=24,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    in_channels=3,
    max_length=(2, 2, 4),
    text_widths=(("ul2", 5), ("byt5", 3)),
    qk_norm=True,
    attention_bias=True,
)
LAYERS = {"graph": 1, "pynative": 2}
# A small eps would turn the rounding of a gradient next to 0 into a step of the learning rate's size.
OPTIMIZER = OptimizerConfig(
    lr=1e-2, betas=(0.9, 0.95), eps=1e-4, weight_decay=0.1, clip_grad_norm=0.5, decay_on="matrices"
)
ROWS = 4
MICRO_BATCHES = (2, 1)
"""Of each step."""

MODES = {
    2: {
        "data": {"data": 2},
        "zero 1": {"data": 1, "zero": 2, "zero_stage": 1},
        "zero 2": {"data": 1, "zero": 2, "zero_stage": 2},
        "zero 3": {"data": 1, "zero": 2, "zero_stage": 3},
        "tensor": {"data": 1, "tensor": 2},
        "sequence": {"data": 1, "sequence": 2},
        "context": {"data": 1, "context": 2},
    },
    4: {
        "data and zero 2": {"data": 2, "zero": 2, "zero_stage": 2},
        "data and tensor": {"data": 2, "tensor": 2},
        "zero 3 and tensor": {"data": 1, "zero": 2, "tensor": 2, "zero_stage": 3},
        "zero 1 and sequence": {"data": 1, "zero": 2, "sequence": 2, "zero_stage": 1},
        "data and sequence": {"data": 2, "sequence": 2},
        "zero 2 and context": {"data": 1, "zero": 2, "context": 2, "zero_stage": 2},
        "tensor and context": {"data": 1, "tensor": 2, "context": 2},
        "zero 3 and context": {"data": 2, "context": 2, "zero_stage": 3},
        "tensor and sequence": {"data": 1, "tensor": 2, "sequence": 2},
        "sequence and context": {"data": 1, "sequence": 2, "context": 2},
    },
}

COMPILED = ("zero 3", "tensor", "sequence")


def network_and_loss(mode: str):
    network = LlamaModel(replace(CONFIG, num_hidden_layers=LAYERS[mode]), seed=3)
    rng = np.random.default_rng(5)
    for param in network.get_parameters():  # nothing at zero: every gradient is to be seen
        if not np.any(param.asnumpy()):
            param.set_data(Tensor(rng.standard_normal(param.shape).astype(np.float32) * 0.1))
    return network, FlowLoss(network)


@cache
def batches():
    rng = np.random.default_rng(11)
    found = []
    for _ in range(sum(MICRO_BATCHES)):
        latent, noise = (rng.standard_normal((ROWS, 3, 2, 4, 8)).astype(np.float32) for _ in range(2))
        batch = {"latent": latent, "noise": noise, "timestep": rng.uniform(0, 1000, ROWS).astype(np.float32)}
        batch["mask"] = (rng.uniform(size=(ROWS, 7)) < 0.7).astype(np.float32)
        batch["mask"][:, 0] = 1
        batch |= {"ul2": rng.standard_normal((ROWS, 4, 5)), "byt5": rng.standard_normal((ROWS, 3, 3))}
        found.append({name: value.astype(np.float32) for name, value in batch.items()})
    return found


def forward(network, batch):
    """Velocity, op by op: what the graph gives is seen in loss and gradients."""
    device.setup("CPU", "pynative")
    names = ("latent", "timestep", "mask", "ul2", "byt5")
    return network(*(Tensor(batch[name]) for name in names)).asnumpy()


def train(stepper, whole, rows=lambda batch: batch):
    """Two updates; losses, norms, and the gradient of the first step."""
    figures, first, coming = [], None, iter(batches())
    for step, count in enumerate(MICRO_BATCHES):
        for batch in islice(coming, count):
            stepper.add(rows(batch))
        values, norm = stepper.total()
        figures += [float(values[0]), norm]
        first = first or whole(stepper.grads)
        stepper.apply(norm, 1e-2, step + 1)
    return np.array(figures), first


def serial(mode: str):
    network, loss = network_and_loss(mode)
    found = {"velocity": forward(network, batches()[0])}
    device.setup("CPU", mode)
    named = dict(network.parameters_and_names())
    stepper = Stepper(loss, ParameterTuple(list(named.values())), OPTIMIZER, 0.9, list(named), accumulates=True)
    found["figures"], grads = train(stepper, lambda grads: [grad.asnumpy().copy() for grad in grads])
    found |= {f"grad {name}": grad for name, grad in zip(named, grads, strict=True)}
    found |= {f"param {name}": param.asnumpy().copy() for name, param in named.items()}
    averages = zip(named, stepper.update.averages, strict=True)
    return found | {f"ema {name}": average.asnumpy().copy() for name, average in averages}


@cache
def reference(rank: int, mode: str) -> dict[str, np.ndarray]:
    """The serial run's numbers, computed by rank 0."""
    path = Path(os.environ["MG_TEST_FOLDER"]) / f"serial-{mode}.npz"
    if rank == 0:
        np.savez(path.with_suffix(".part.npz"), **serial(mode))
        path.with_suffix(".part.npz").rename(path)
    while not path.exists():
        time.sleep(0.1)
    return dict(np.load(path))


def check(rank: int, world: int, degrees: dict[str, int], mode: str) -> None:
    expected = reference(rank, mode)
    network, loss = network_and_loss(mode)
    mesh = Mesh(ParallelConfig(**degrees), rank, world)
    mesh.apply(network)
    rows = mesh.rows(batches()[0])
    mine = mesh.dims.batch_rows(rank, ROWS)
    np.testing.assert_allclose(forward(network, rows), expected["velocity"][mine], rtol=0, atol=TOLERANCE)
    device.setup("CPU", mode)
    named = dict(network.parameters_and_names())
    assert [f"grad {name}" for name in named] == [name for name in expected if name.startswith("grad ")]
    params = ParameterTuple(list(named.values()))
    shards = mesh.shards(params)
    stepper = Stepper(mesh.loss(loss), params, OPTIMIZER, 0.9, list(named), accumulates=True, shards=shards)
    whole = lambda grads: [shards.held(i, grad).whole(mesh.groups) for i, grad in enumerate(grads)]  # noqa: E731
    figures, grads = train(stepper, whole, mesh.rows)
    np.testing.assert_allclose(figures, expected["figures"], rtol=0, atol=TOLERANCE)
    for i, (name, param) in enumerate(named.items()):
        found = {"grad": grads[i], "param": mesh.held(param).whole(mesh.groups)}
        found["ema"] = shards.held(i, stepper.update.averages[i]).whole(mesh.groups)
        for kind, value in found.items():
            wanted = expected[f"{kind} {name}"]
            np.testing.assert_allclose(value, wanted, rtol=0, atol=TOLERANCE, err_msg=f"{kind} {name}")


def of(world: int):
    return {
        f"training with {label} in {mode}": lambda rank, degrees=degrees, mode=mode: check(rank, world, degrees, mode)
        for label, degrees in MODES[world].items()
        for mode in ("pynative", "graph")
        if (mode == "graph") == (label in COMPILED)
    }

"""The planner's communication beside the calls that a parallel training step of the network itself makes.

One process plays one of the devices: sums over a group are what it gave, which changes values, but no call.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import ParameterTuple, nn

from mg import device
from mg.config.plan import PlanConfig
from mg.models.llama import LlamaConfig, LlamaModel
from mg.models.llama.loss import FlowLoss
from mg.parallel import kernels
from mg.parallel.dims import ParallelDims
from mg.parallel.groups import Groups
from mg.parallel.kernels import counted
from mg.parallel.plan_memory import Shares, Weights
from mg.parallel.plan_time import traffic
from mg.parallel.plans_llama import parallelise_llama
from mg.parallel.shards import Shards

MODEL = LlamaConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_length=(2, 4, 4),
    text_widths=(("ul2", 16),),
)  # fmt: skip
TEXT = 6


class _Own(nn.Cell):
    """Stands for a sum over a group: the own part."""

    def __init__(self, *args):
        super().__init__()

    def construct(self, x):
        return x


def sent(calls, dims):
    """Bytes that a device sends, by the planner's names, from the operands of its calls."""
    found = dict.fromkeys(("data", "zero", "context", "sequence", "tensor"), 0.0)
    names = {"replica": "data", "data": "data", "shard": "zero", "tokens": "ends"}
    found["ends"] = 0.0
    for (kind, group), size in calls.bytes.items():
        others = dims.size(group) - 1
        share = {"all_gather": others, "reduce_scatter": others / (others + 1), "all_to_all": others / (others + 1),
                 "all_reduce": 2 * others / (others + 1)}[kind]  # fmt: skip
        found[names.get(group, group)] += size * share
    return found


@pytest.mark.parametrize("degrees", [
    {"data": 2}, {"zero": 2, "zero_stage": 1}, {"zero": 4, "zero_stage": 3}, {"sequence": 2}, {"context": 2},
    {"tensor": 2}, {"data": 2, "zero": 2, "sequence": 2, "tensor": 2, "context": 2, "zero_stage": 2},
    {"sequence": 4, "zero_stage": 3},
], ids=lambda degrees: "-".join(f"{name}{value}" for name, value in degrees.items()))  # fmt: skip
def test_the_planner_predicts_the_calls_of_a_step(monkeypatch, degrees):
    device.setup("CPU", "pynative")
    monkeypatch.setattr(kernels.ops, "AllReduce", _Own)
    dims = ParallelDims(**degrees)
    groups = Groups(dims, 0, create=lambda name, ranks: None, native=False)
    network = LlamaModel(MODEL)
    network.set_train(True)
    divided = parallelise_llama(network, groups)
    params = ParameterTuple(network.trainable_params())
    shards = Shards(params, [divided.of(param) for param in params], groups)
    draw = np.random.default_rng(0).standard_normal
    latent = [ms.Tensor(np.float32(draw((1, 16, 2, 8, 8)))) for _ in range(2)]
    text = ms.Tensor(np.float32(draw((1, TEXT, 16))))
    inputs = (*latent, ms.Tensor(np.float32([500])), ms.Tensor(np.ones((1, TEXT), np.float32)), text)
    loss = FlowLoss(network)
    gradient = ms.value_and_grad(lambda *given: loss(*given)[0], None, params)
    with counted() as calls:
        _, grads = gradient(*inputs)
        shards.reduce(*grads)
        shards.publish()
    found = sent(calls, dims)
    config = PlanConfig(
        model="tiny", devices=dims.world, text_tokens=TEXT, activations="fp32", recompute=False
    )
    said = traffic(config, MODEL, Weights.of(MODEL), dims, Shares.of(config, 32, dims, 1))
    for name in ("context", "sequence"):
        assert found[name] == getattr(said, name), name
    for name in ("data", "zero", "tensor"):  # parts of odd sizes are filled up, and small layers are not joined twice
        assert found[name] == pytest.approx(getattr(said, name), rel=0.03), name
    # The velocities of all tokens are joined at the end, which the planner leaves out.
    assert found["ends"] <= 32 * MODEL.patch_volume * 4
    assert any(found.values())

"""The flow matching loss: its formula, its zero, and token dropout."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from mg.models.llama import LlamaConfig, LlamaModel
from mg.models.llama.loss import FlowLoss

CONFIG = LlamaConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, in_channels=4,
    max_length=(2, 2, 3), text_widths=(("ul2", 8), ("byt5", 6)),
)  # fmt: skip
SHAPE = (2, 4, 2, 4, 6)  # (b, c, t, h, w): 12 tokens
TOKENS = 12


def batch(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    mask = np.ones((2, 5), np.float32)
    mask[1, 2:] = 0
    return {
        "latent": draw(*SHAPE), "noise": draw(*SHAPE), "timestep": np.float32([1000.0, 250.0]), "mask": mask,
        "ul2": draw(2, 3, 8), "byt5": draw(2, 2, 6),
    }  # fmt: skip


def state_and_target(values, sigma_min):
    """The formulas of the paper in float64: what the network sees and what it should say."""
    tau = 1 - values["timestep"].astype(np.float64).reshape(2, 1, 1, 1, 1) / 1000
    x1, x0 = values["latent"].astype(np.float64), values["noise"].astype(np.float64)
    return tau * x1 + (1 - (1 - sigma_min) * tau) * x0, x1 - (1 - sigma_min) * x0


def tensors(values, loss):
    return [Tensor(values[name]) for name in loss.inputs]


@pytest.fixture(scope="module")
def network():
    """A transformer whose answer is not zero, as that of a fresh one is."""
    network = LlamaModel(CONFIG, seed=1)
    rng = np.random.default_rng(5)
    for param in network.trainable_params():
        param.set_data(Tensor(rng.standard_normal(param.shape).astype(np.float32) * 0.2))
    return network


class Oracle(nn.Cell):
    """Knows noise and data, and gives the velocity or something beside it."""

    def __init__(self, velocity, beside=0.0):
        super().__init__()
        self.config = CONFIG
        self.velocity, self.beside = Tensor(velocity.astype(np.float32)), beside

    def construct(self, latent, timestep, mask, *text):
        return self.velocity + self.beside


@pytest.mark.parametrize("sigma_min", [1e-5, 0.0, 0.1])
def test_the_loss_is_the_formula(network, sigma_min):
    values = batch()
    loss = FlowLoss(network, sigma_min)
    assert loss.inputs == ("latent", "noise", "timestep", "mask", "ul2", "byt5") and loss.terms == ()
    value, weight = loss(*tensors(values, loss))
    state, target = state_and_target(values, sigma_min)
    given = [Tensor(values[name]) for name in ("timestep", "mask", "ul2", "byt5")]
    found = network(Tensor(state.astype(np.float32)), *given).asnumpy()
    assert float(value.asnumpy()) == pytest.approx(((found - target) ** 2).mean(), rel=1e-5)
    assert float(weight.asnumpy()) == np.prod(SHAPE)
    assert value.dtype == weight.dtype == ms.float32


def test_an_oracle_has_no_loss():
    values = batch()
    _, target = state_and_target(values, 1e-5)
    exact, beside = (FlowLoss(Oracle(target, shift)) for shift in (0.0, 0.5))
    assert float(exact(*tensors(values, exact))[0].asnumpy()) < 1e-9
    assert float(beside(*tensors(values, beside))[0].asnumpy()) == pytest.approx(0.25, rel=1e-4)


def test_all_tokens_kept_is_no_dropout(network):
    plain, dropping = FlowLoss(network), FlowLoss(network, token_drop=True)
    assert dropping.inputs == (*plain.inputs, "kept")
    values = {**batch(), "kept": np.arange(2 * TOKENS, dtype=np.int32)}
    whole, kept = (loss(*tensors(values, loss)) for loss in (plain, dropping))
    assert float(kept[0].asnumpy()) == pytest.approx(float(whole[0].asnumpy()), rel=1e-5)
    assert float(kept[1].asnumpy()) == float(whole[1].asnumpy())


def test_only_kept_tokens_count_and_are_seen(network):
    rows = np.int32([0, 3, 7, 11, 12 + 1, 12 + 2, 12 + 3, 12 + 10])  # four of each sample
    loss = FlowLoss(network, token_drop=True)
    values = {**batch(), "kept": rows}
    value, weight = loss(*tensors(values, loss))
    assert float(weight.asnumpy()) == 8 * 16  # tokens times the numbers of a patch
    # What belongs to other tokens does not matter.
    b, t, h, w = np.unravel_index(rows, (2, 2, 2, 3))
    dropped = np.ones((2, 1, 2, 2, 1, 3, 1), bool)
    dropped[b, 0, t, h, 0, w, 0] = False
    dropped = np.broadcast_to(dropped, (2, 4, 2, 2, 2, 3, 2)).reshape(SHAPE)
    other = {**values, "latent": np.where(dropped, 9.0, values["latent"]).astype(np.float32)}
    assert float(loss(*tensors(other, loss))[0].asnumpy()) == pytest.approx(float(value.asnumpy()), rel=1e-5)
    other["latent"] = np.where(dropped, values["latent"], 9.0).astype(np.float32)
    assert abs(float(loss(*tensors(other, loss))[0].asnumpy()) / float(value.asnumpy()) - 1) > 0.1


def test_tokens_are_counted_without_those_that_are_dropped(network):
    values = batch()
    assert FlowLoss(network).units(values) == {"tokens": 2 * TOKENS}
    assert FlowLoss(network, token_drop=True).units({**values, "kept": np.arange(10, dtype=np.int32)}) == {"tokens": 10}

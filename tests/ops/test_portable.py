"""Cells without a CPU kernel are exchanged in place, and nothing else changes."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor, mint, nn

import mg.device
from mg.ops import exchange_cells


class Foreign(nn.Cell):
    """As a foreign model has them: the same embedding in two places, activations in a sequence."""

    def __init__(self):
        super().__init__()
        self.shared = mint.nn.Embedding(7, 4)
        self.inner = nn.SequentialCell(nn.Dense(4, 4), mint.nn.GELU(), nn.Dense(4, 3))
        self.listed = nn.CellList([mint.nn.GELU()])
        self.child = nn.SequentialCell(self.shared)

    def construct(self, index):
        return self.inner(self.shared(index)) + self.listed[0](self.inner(self.child(index)))


@pytest.fixture
def network():
    net = Foreign()
    rng = np.random.default_rng(0)
    for param in net.get_parameters():
        param.set_data(Tensor(rng.standard_normal(param.shape).astype(np.float32)))
    return net


def torch_result(net, index):
    w = {name: torch.tensor(param.asnumpy()) for name, param in net.parameters_and_names()}
    x = w["shared.weight"][torch.tensor(index)]
    x = torch.nn.functional.gelu(x @ w["inner.0.weight"].T + w["inner.0.bias"])
    x = x @ w["inner.2.weight"].T + w["inner.2.bias"]
    return (x + torch.nn.functional.gelu(x)).numpy()


@pytest.mark.parametrize("mode", ["graph", "pynative"])
def test_the_network_runs_and_gives_torch_values(network, mode):
    mg.device.setup("CPU", mode)
    index = np.array([[0, 3, 3], [6, 1, 2]], np.int32)
    expected = torch_result(network, index)
    assert exchange_cells(network) == 4
    np.testing.assert_allclose(network(Tensor(index)).asnumpy(), expected, atol=1e-5)


def test_parameters_keep_their_names_and_stay_one_where_they_were_one(network):
    before = {name: id(param) for name, param in network.parameters_and_names()}
    names = [param.name for param in network.get_parameters()]
    exchange_cells(network)
    assert {name: id(param) for name, param in network.parameters_and_names()} == before
    assert [param.name for param in network.get_parameters()] == names


def test_gradients_reach_the_exchanged_table(network):
    mg.device.setup("CPU", "graph")
    exchange_cells(network)
    index = Tensor(np.array([[0, 3, 3]], np.int32))

    def total(x):
        return network(x).sum()

    places = {id(param): name for name, param in network.parameters_and_names()}
    params = network.trainable_params()
    grads = dict(zip([places[id(param)] for param in params], ms.grad(total, None, params)(index), strict=True))
    table = grads["shared.weight"].asnumpy()
    assert np.abs(table[[0, 3]]).min() > 0 and np.all(table[[1, 2, 4, 5, 6]] == 0)


def test_ascend_keeps_its_own_cells_unless_told(network, monkeypatch):
    monkeypatch.setattr(mg.device, "is_ascend", lambda: True)
    assert exchange_cells(network) == 0 and isinstance(network.shared, mint.nn.Embedding)
    assert exchange_cells(network, always=True) == 4

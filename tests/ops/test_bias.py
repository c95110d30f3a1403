"""A bias per channel, and its gradient by either way of summing."""

import pytest
from mindspore import Parameter, Tensor, nn

import mg.device
from mg.ops import bias
from mg.ops.bias import AddBias


class Biased(nn.Cell):
    def __init__(self, channels, noise):
        super().__init__()
        self.bias = Parameter(Tensor(noise(channels)), name="bias")
        self.shift = AddBias()

    def construct(self, x):
        return self.shift(x, self.bias)


@pytest.mark.parametrize("shape", [(2, 3, 40), (3, 4, 5, 6), (1, 2, 3, 1)])
@pytest.mark.parametrize("product_from, on_cpu", [(0, True), (bias.PRODUCT_FROM, True), (0, False)])
def test_value_and_gradients_are_those_of_the_sum(peer, monkeypatch, shape, product_from, on_cpu):
    monkeypatch.setattr(bias, "PRODUCT_FROM", product_from)
    monkeypatch.setattr(mg.device, "is_cpu", lambda: on_cpu)
    cell = Biased(shape[1], peer.noise)
    peer.agrees(cell, lambda x, bias: x + bias.reshape(-1, *(1,) * (len(shape) - 2)), peer.noise(*shape))


def test_half_precision(peer):
    peer.half(Biased(3, peer.noise), 2, 3, 4)

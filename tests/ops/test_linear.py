"""The linear layer is PyTorch's and follows the type of its input."""

import torch.nn.functional as F

from mg.ops import Linear


def test_values_and_gradients_are_torch(peer):
    peer.agrees(Linear(4, 6), F.linear, peer.noise(2, 3, 5, 4))


def test_without_bias_there_is_no_bias(peer):
    net = Linear(4, 6, bias=False)
    peer.agrees(net, F.linear, peer.noise(2, 5, 4))
    assert [name for name, _ in net.parameters_and_names()] == ["weight"]


def test_half_precision(peer):
    peer.half(Linear(8, 5), 2, 3, 8)


def test_weights_stay_fp32(peer):
    net = Linear(8, 5)
    peer.half(net, 2, 8)
    assert {str(parameter.dtype) for parameter in net.trainable_params()} == {"Float32"}

"""Activations are PyTorch's, by the kernels of the CPU and by those of other backends; so are their gradients."""

import numpy as np
import pytest
import torch.nn.functional as F
from mindspore import nn

from mg.ops import activation


class Cell(nn.Cell):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def construct(self, x):
        return self.function(x)


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize(
    "ours, theirs",
    [
        (activation.silu, F.silu),
        (activation.gelu_tanh, lambda x: F.gelu(x, approximate="tanh")),
    ],
)
def test_activation_is_torch(peer, monkeypatch, ours, theirs, on_cpu):
    monkeypatch.setattr(activation, "on_cpu", peer.answering(on_cpu))
    x = np.concatenate([3.0 * peer.noise(200), [0.0, -30.0, 30.0, -1e-4, 1e-4]]).astype(np.float32)
    peer.agrees(Cell(ours), theirs, x, atol=1e-5)

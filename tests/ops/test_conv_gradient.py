"""Gradients of the CPU's convolution are PyTorch's, on either side of every choice it makes."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mindspore import Parameter, Tensor, nn

import mg.device
from mg.ops.conv_gradient import StrideOneConv, stride_one_conv, strip_rows, turned


class Conv(nn.Cell):
    def __init__(self, convolution, shape):
        super().__init__()
        self.convolution = convolution
        self.weight = Parameter(Tensor(np.zeros(shape, np.float32)), name="weight")

    def construct(self, x):
        return self.convolution(x, self.weight)


CASES = {
    "even batch, many positions": ((2, 3, 6, 6), 4, (3, 3), (1, 1)),
    "odd batch": ((3, 3, 6, 6), 4, (3, 3), (1, 1)),
    "few positions": ((2, 3, 2, 3), 8, (3, 3), (1, 1)),
    "fewer outputs than inputs": ((2, 5, 6, 6), 2, (3, 3), (1, 1)),
    "fewer outputs, odd batch, few positions": ((1, 5, 1, 2), 3, (3, 3), (1, 1)),
    "no padding": ((2, 4, 5, 9), 4, (3, 1), (0, 0)),
    "no padding, fewer outputs": ((2, 4, 5, 9), 3, (3, 1), (0, 0)),
    "pointwise": ((2, 4, 5, 4), 3, (1, 1), (0, 0)),
    "strips": ((2, 3, 32, 20), 5, (3, 3), (1, 1)),
    "strips, fewer outputs": ((3, 5, 21, 20), 2, (3, 3), (1, 1)),
}


@pytest.mark.parametrize("shape, outputs, kernel, pad", CASES.values(), ids=CASES)
def test_gradients_are_those_of_pytorch(peer, shape, outputs, kernel, pad):
    conv = stride_one_conv(shape[1], outputs, kernel, pad)
    assert isinstance(conv, StrideOneConv)
    cell = Conv(conv, (outputs, shape[1], *kernel))
    peer.agrees(cell, lambda x, weight: F.conv2d(x, weight, padding=pad), peer.noise(*shape))


def test_images_are_cut_where_that_was_measured_to_help():
    assert strip_rows(32, 32, 16 * 16) == 8
    assert strip_rows(32, 20, 15) == 16
    assert strip_rows(21, 20, 10) == 7
    assert strip_rows(16, 16, 256) == 0  # below the kernel's threshold
    assert strip_rows(64, 64, 256) == 0  # few images, each worth two threads
    assert strip_rows(32, 32, 64 * 64) == 0  # many channels
    assert strip_rows(31, 31, 256) == 0  # only strips of one row would do


def test_half_precision_gradients(peer):
    shape, cell = (2, 5, 6, 6), StrideOneConv(5, 2, (3, 3), (1, 1))
    x, weight, slope = peer.noise(*shape), peer.noise(2, 5, 3, 3, seed=1), peer.noise(2, 2, 6, 6, seed=2)
    exact = cell.bprop(Tensor(x), Tensor(weight), None, Tensor(slope))
    half = cell.bprop(*(Tensor(a.astype(np.float16)) for a in (x, weight)), None, Tensor(slope.astype(np.float16)))
    for got, want in zip(half, exact, strict=True):
        want = want.asnumpy()
        assert got.asnumpy().dtype == np.float16
        np.testing.assert_allclose(got.asnumpy(), want, atol=0.02 * np.abs(want).max())


def test_elsewhere_the_operator_keeps_its_own_gradients(peer, monkeypatch):
    monkeypatch.setattr(mg.device, "is_cpu", lambda: False)
    conv = stride_one_conv(5, 2, (3, 3), (1, 1))
    assert not isinstance(conv, nn.Cell)
    peer.agrees(Conv(conv, (2, 5, 3, 3)), lambda x, weight: F.conv2d(x, weight, padding=1), peer.noise(2, 5, 4, 4))


def test_turned_weight_is_that_of_the_transposed_convolution(peer):
    weight, x = peer.noise(4, 2, 3, 3), torch.from_numpy(peer.noise(1, 4, 5, 5, seed=1))
    back = torch.from_numpy(turned(Tensor(weight)).asnumpy())
    expected = F.conv_transpose2d(x, torch.from_numpy(weight), padding=1)
    np.testing.assert_allclose(F.conv2d(x, back, padding=1), expected, atol=1e-5)

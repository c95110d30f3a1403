"""The factorised convolutions are PyTorch's plain ones, in values and in all gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mindspore import Tensor

import mg.device
from mg.ops import SpatialConv, SpatialDownsampleConv, SpatialUpsampleConv, TemporalConv, TemporalUpsampleConv, conv


def per_frame(function, x):
    """Apply a function of images to every frame of (b, c, t, h, w)."""
    b, c, t, h, w = x.shape
    y = function(x.transpose(1, 2).reshape(b * t, c, h, w))
    return y.reshape(b, t, *y.shape[1:]).transpose(1, 2)


def replicated(x):
    return torch.cat([x[:, :, :1], x, x[:, :, -1:]], 2)


def along_time(x, weight, bias, stride=1, pad=replicated):
    kernel = weight[:, :, 0, :, None, None]  # (o, i, k, 1, 1)
    x = pad(x) if weight.shape[-1] == 3 else x
    return F.conv3d(x, kernel, bias, stride=(stride, 1, 1))


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("kernel", [1, 3])
def test_spatial_is_conv2d_of_every_frame(peer, kernel, frames):
    peer.agrees(
        SpatialConv(3, 5, kernel),
        lambda x, weight, bias: per_frame(lambda y: F.conv2d(y, weight, bias, padding=kernel // 2), x),
        peer.noise(2, 3, frames, 4, 6),
    )


@pytest.mark.parametrize("kernel", [1, 3])
def test_spatial_without_bias_leaves_it_out(peer, kernel):
    cell = peer.randomise(SpatialConv(3, 5, kernel, add_bias=False))
    x = peer.noise(2, 3, 2, 4, 4)
    weight = torch.from_numpy(cell.weight.asnumpy())
    expected = per_frame(lambda y: F.conv2d(y, weight, padding=kernel // 2), torch.from_numpy(x))
    np.testing.assert_allclose(cell(Tensor(x)).asnumpy(), expected, atol=1e-5)


@pytest.mark.parametrize("band_rows", [0, conv.BAND_ROWS])  # as a convolution, or as a product where frames are few
@pytest.mark.parametrize("frames, stride", [(1, 1), (2, 1), (4, 1), (5, 1), (1, 2), (4, 2), (5, 2)])
def test_temporal_replicates_the_ends(peer, monkeypatch, frames, stride, band_rows):
    monkeypatch.setattr(conv, "BAND_ROWS", band_rows)
    cell = TemporalConv(4, 3, stride)
    x = peer.noise(2, 4, frames, 2, 3)
    peer.agrees(cell, lambda x, weight, bias: along_time(x, weight, bias, stride), x)
    assert cell(Tensor(x)).shape == (2, 4, -(-frames // stride), 2, 3)


def test_temporal_kernel_of_one(peer):
    peer.agrees(TemporalConv(4, 1), along_time, peer.noise(2, 4, 3, 2, 2))


@pytest.mark.parametrize("fold_from", [0, conv.FOLD_FROM])  # through the weights, or added to the frames
@pytest.mark.parametrize("frames, kernel, stride", [(1, 3, 1), (4, 3, 1), (3, 3, 2), (2, 1, 1)])
def test_input_bias_is_a_constant_added_before(peer, monkeypatch, frames, kernel, stride, fold_from):
    monkeypatch.setattr(conv, "FOLD_FROM", fold_from)

    def twin(x, input_bias, weight, bias):
        return along_time(x + input_bias[:, None, None, None], weight, bias, stride)

    peer.agrees(TemporalConv(4, kernel, stride), twin, peer.noise(2, 4, frames, 2, 3), peer.noise(4, seed=5))


def test_symmetric_kernel_commutes_with_time_reversal(peer):
    cell = peer.randomise(TemporalConv(4, 3))
    weight = cell.weight.asnumpy()
    cell.weight.set_data(Tensor(weight + weight[..., ::-1]))
    x = peer.noise(1, 4, 6, 2, 2)
    forwards, backwards = cell(Tensor(x)).asnumpy(), cell(Tensor(x[:, :, ::-1].copy())).asnumpy()
    np.testing.assert_allclose(backwards[:, :, ::-1], forwards, atol=1e-5)
    assert np.abs(backwards - forwards).max() > 0.1


@pytest.mark.parametrize("frames, height, width", [(1, 4, 6), (3, 5, 4)])
def test_downsampling_pads_right_and_bottom(peer, frames, height, width):
    peer.agrees(
        SpatialDownsampleConv(4),
        lambda x, weight, bias: per_frame(lambda y: F.conv2d(F.pad(y, (0, 1, 0, 1)), weight, bias, stride=2), x),
        peer.noise(2, 4, frames, height, width),
    )


@pytest.mark.parametrize("frames", [1, 3])
def test_spatial_upsampling_is_nearest_then_conv2d(peer, frames):
    def enlarge(x, weight, bias):
        return per_frame(lambda y: F.conv2d(F.interpolate(y, scale_factor=2), weight, bias, padding=1), x)

    peer.agrees(SpatialUpsampleConv(4), enlarge, peer.noise(2, 4, frames, 3, 2))


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("zero_pad", [False, True])
def test_temporal_upsampling_is_nearest_then_conv(peer, zero_pad, frames):
    pad = (lambda x: F.pad(x, (0, 0, 0, 0, 1, 1))) if zero_pad else replicated
    peer.agrees(
        TemporalUpsampleConv(4, zero_pad),
        lambda x, weight, bias: along_time(x.repeat_interleave(2, 2), weight, bias, pad=pad),
        peer.noise(2, 4, frames, 2, 3),
    )


CELLS = {
    "spatial": lambda: SpatialConv(4, 4, 3),
    "pointwise": lambda: SpatialConv(4, 4, 1),
    "temporal": lambda: TemporalConv(4, 3),
    "temporal stride 2": lambda: TemporalConv(4, 3, 2),
    "down": lambda: SpatialDownsampleConv(4),
    "up": lambda: SpatialUpsampleConv(4),
    "time up": lambda: TemporalUpsampleConv(4),
}


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_half_precision(peer, cell):
    peer.half(cell(), 1, 4, 3, 4, 4)


def test_half_precision_of_a_single_frame(peer):
    peer.half(TemporalConv(4, 3), 1, 4, 1, 4, 4)


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_pynative_gives_the_numbers_of_the_graph(peer, cell):
    net, x = peer.randomise(cell()), Tensor(peer.noise(2, 4, 3, 4, 4))
    graph = net(x).asnumpy()
    mg.device.setup("CPU", "pynative")
    np.testing.assert_allclose(net(x).asnumpy(), graph, atol=1e-5)

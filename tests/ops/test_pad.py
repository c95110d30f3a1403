"""Edge padding is numpy's; cropping keeps the beginning."""

import numpy as np
import pytest
import torch
from mindspore import Tensor, nn

import mg.device
from mg.ops import crop, pad_edge
from mg.ops.pad import pad_frames


class Pad(nn.Cell):
    def __init__(self, axis, before, after):
        super().__init__()
        self.axis, self.before, self.after = axis, before, after

    def construct(self, x):
        return pad_edge(x, self.axis, self.before, self.after)


@pytest.mark.parametrize("axis, before, after", [(2, 1, 1), (3, 0, 7), (4, 3, 0), (0, 2, 1), (2, 0, 0)])
def test_pad_edge_is_numpy(peer, axis, before, after):
    x = peer.noise(1, 2, 3, 2, 4)
    widths = [(before, after) if i == axis else (0, 0) for i in range(5)]
    np.testing.assert_array_equal(Pad(axis, before, after)(Tensor(x)).asnumpy(), np.pad(x, widths, mode="edge"))


def test_one_slice_is_repeated(peer):
    x = peer.noise(2, 1, 3)
    np.testing.assert_array_equal(Pad(1, 2, 2)(Tensor(x)).asnumpy(), np.repeat(x, 5, 1))


def test_gradients_of_the_copies_add_up(peer):
    peer.agrees(
        Pad(2, 2, 1), lambda x: torch.cat([x[:, :, :1], x[:, :, :1], x, x[:, :, -1:]], 2), peer.noise(1, 2, 3, 2, 2)
    )


def test_half_precision_is_copied_exactly(peer):
    x = peer.noise(1, 2, 3, 2, 2).astype(np.float16)
    got = Pad(2, 1, 0)(Tensor(x)).asnumpy()
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got, np.concatenate([x[:, :, :1], x], 2))


@pytest.mark.parametrize("size", [(2, 3, 4), (4, 6, 8), (1, 6, 5), (9, 9, 9)])
def test_crop_keeps_the_first(peer, size):
    x = peer.noise(1, 2, 4, 6, 8)
    frames, height, width = size
    np.testing.assert_array_equal(crop(Tensor(x), *size).asnumpy(), x[:, :, :frames, :height, :width])


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("border, frames", [(1, 4), (1, 2), (2, 1), (0, 3)])
def test_padded_frames_and_their_gradient(peer, monkeypatch, on_cpu, border, frames):
    monkeypatch.setattr(mg.device, "is_cpu", lambda: on_cpu)
    cell = pad_frames(border)

    def twin(x):
        return torch.cat([x[:, :, :1]] * border + [x] + [x[:, :, -1:]] * border, 2)

    peer.agrees(cell, twin, peer.noise(2, 3, frames, 2, 2), atol=1e-6)

"""Norms in their portable form are PyTorch's, and they do not change what they are given."""

import importlib

import mindspore as ms
import numpy as np
import pytest
import torch.nn.functional as F
from mindspore import Tensor, nn

from mg.ops import GroupNorm, RMSNorm, modulated_rms_norm, norm, spread

# The package exports a function under the module's name.
spread_module = importlib.import_module("mg.ops.spread")


@pytest.mark.parametrize("shape, groups", [((2, 8, 3, 4, 5), 4), ((1, 6, 1, 2, 2), 6), ((2, 4, 2, 3, 3), 1)])
def test_portable_is_torch(peer, shape, groups):
    x = 3.0 * peer.noise(*shape) + 2.0
    peer.agrees(
        GroupNorm(shape[1], groups, fused=False),
        lambda x, gamma, beta: F.group_norm(x, groups, gamma, beta, 1e-6),
        x,
        atol=5e-5,
    )


def test_portable_equals_fused(peer):
    x = Tensor(peer.noise(2, 8, 3, 4, 4) + 1.0)
    portable, fused = (peer.randomise(GroupNorm(8, 4, fused=fused)) for fused in (False, True))
    np.testing.assert_allclose(portable(x).asnumpy(), fused(x).asnumpy(), atol=1e-5)


def test_repeated_calls_give_the_same_bits(peer):
    # The kernel behind it updates running statistics in place; they were constants shared by all calls.
    net = peer.randomise(GroupNorm(8, 4, fused=False))
    x, other = Tensor(peer.noise(2, 8, 3, 4, 4)), Tensor(50.0 + 9.0 * peer.noise(2, 8, 3, 4, 4, seed=7))
    first = net(x).asnumpy()
    for _ in range(3):
        net(other)
        np.testing.assert_array_equal(net(x).asnumpy(), first)


def test_constants_of_the_same_graph_survive(peer):
    net = GroupNorm(4, 2, fused=False)

    @ms.jit
    def with_ones(x):
        y = net(x)
        return y, ms.mint.ones((2,), dtype=ms.float32), ms.mint.zeros((2,), dtype=ms.float32)

    for seed in range(3):
        _, ones, zeros = with_ones(Tensor(10.0 + 5.0 * peer.noise(1, 4, 2, 3, 3, seed=seed)))
        np.testing.assert_array_equal(ones.asnumpy(), np.ones(2, np.float32))
        np.testing.assert_array_equal(zeros.asnumpy(), np.zeros(2, np.float32))


def test_statistics_stay_fp32_for_half_inputs(peer):
    peer.half(GroupNorm(8, 4, fused=False), 1, 8, 2, 4, 4)
    # Squares of 300 overflow FP16.
    x = (300.0 * peer.noise(1, 8, 2, 4, 4)).astype(np.float16)
    y = GroupNorm(8, 4, fused=False)(Tensor(x)).asnumpy()
    groups = x.astype(np.float64).reshape(1, 4, -1)
    expected = (groups - groups.mean(-1, keepdims=True)) / groups.std(-1, keepdims=True)
    np.testing.assert_allclose(y.astype(np.float64).reshape(1, 4, -1), expected, atol=5e-3)


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="channels=6 is not a multiple of norm_groups=4"):
        GroupNorm(6, 4)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_rms_norm_is_torch(peer, monkeypatch, on_cpu):
    monkeypatch.setattr(norm, "on_cpu", peer.answering(on_cpu))
    peer.agrees(RMSNorm(6), lambda x, weight: F.rms_norm(x, (6,), weight, 1e-5), 3.0 * peer.noise(2, 3, 6) + 1.0)


def test_rms_norm_keeps_its_statistics_in_fp32(peer):
    x = (300.0 * peer.noise(2, 64)).astype(np.float16)  # squares beyond FP16
    out = RMSNorm(64)(Tensor(x)).asnumpy()
    wide = x.astype(np.float32)
    assert out.dtype == np.float16
    np.testing.assert_allclose(out, wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5), rtol=2e-3)


def test_rms_norm_hands_the_fused_kernel_weight_and_eps_in_the_type_of_x(monkeypatch, peer):
    # Ascend's kernel cannot run here: a stand-in with its signature and numpy's formula takes its place.
    def kernel(x, gamma, epsilon):
        assert gamma.dtype == x.dtype
        y = x * ms.ops.rsqrt((x * x).mean(-1, keep_dims=True) + epsilon) * gamma
        return y, None

    monkeypatch.setattr(ms.ops, "rms_norm", kernel)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    x = Tensor(peer.noise(2, 3, 6))
    plain, fused = RMSNorm(6, eps=0.5, fused=False), RMSNorm(6, eps=0.5, fused=True)
    for cell in (plain, fused):
        cell.weight.set_data(Tensor(np.arange(1, 7, dtype=np.float32)))
    np.testing.assert_allclose(fused(x).asnumpy(), plain(x).asnumpy(), atol=1e-5)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_modulated_norm_is_torch(peer, monkeypatch, on_cpu):
    for module in (norm, spread_module):
        monkeypatch.setattr(module, "on_cpu", peer.answering(on_cpu))

    class Modulate(nn.Cell):
        def construct(self, x, weight, scale, shift):
            return modulated_rms_norm(x, weight, scale, shift, 1e-5)

    def twin(x, weight, scale, shift):
        return F.rms_norm(x, (6,), weight, 1e-5) * (1 + scale[:, None]) + shift[:, None]

    arrays = 3.0 * peer.noise(2, 5, 6) + 1.0, peer.noise(6), peer.noise(2, 6, seed=1), peer.noise(2, 6, seed=2)
    peer.agrees(Modulate(), twin, *arrays)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_spread_vectors_meet_every_token(peer, monkeypatch, on_cpu):
    monkeypatch.setattr(spread_module, "on_cpu", peer.answering(on_cpu))

    class Gate(nn.Cell):
        def construct(self, x, gate):
            return x * spread(gate, x.shape[1])

    peer.agrees(Gate(), lambda x, gate: x * gate[:, None], peer.noise(2, 5, 6), peer.noise(2, 6, seed=1))

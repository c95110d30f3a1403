"""Attention is PyTorch's, whichever way the score matrix is cut."""

import sys

import mindspore as ms
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mindspore import Tensor, nn

import mg.ops  # noqa: F401 - the package exports a function under the module's name
from mg.ops import attention

SHAPE = (3, 2, 5, 4)  # b, heads, queries, d; 7 keys


class Attend(nn.Cell):
    def construct(self, q, k, v):
        return attention(q, k, v)


@pytest.fixture
def qkv(peer):
    b, heads, n, d = SHAPE
    return peer.noise(b, heads, n, d), peer.noise(b, heads, 7, d, seed=1), peer.noise(b, heads, 7, d, seed=2)


# Scores of one batch entry: 2 * 5 * 7 = 70; of one query: 2 * 7 = 14.
CUTS = {
    "whole": 1 << 26,
    "exactly whole": 210,
    "two entries": 150,
    "one entry": 70,
    "two queries": 28,
    "below one query": 1,
}


@pytest.mark.parametrize("most", CUTS.values(), ids=CUTS)
def test_values_and_gradients_are_torch(peer, monkeypatch, qkv, most):
    monkeypatch.setattr(sys.modules["mg.ops.attention"], "MAX_SCORES", most)
    peer.agrees(Attend(), F.scaled_dot_product_attention, *qkv)


@pytest.mark.parametrize("most", CUTS.values(), ids=CUTS)
def test_hidden_keys_have_no_part(peer, monkeypatch, qkv, most):
    monkeypatch.setattr(sys.modules["mg.ops.attention"], "MAX_SCORES", most)
    mask = np.array([[1, 1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 1, 1, 1]], bool)

    class Masked(nn.Cell):
        def construct(self, q, k, v):
            return attention(q, k, v, Tensor(mask))

    def twin(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=torch.tensor(mask)[:, None, None])

    peer.agrees(Masked(), twin, *qkv)
    q, k, v = qkv
    hidden = ~mask[:, None, :, None]
    other = Masked()(Tensor(q), Tensor(np.where(hidden, 50, k)), Tensor(np.where(hidden, -3, v))).asnumpy()
    np.testing.assert_array_equal(other, Masked()(Tensor(q), Tensor(k), Tensor(v)).asnumpy())


@pytest.mark.parametrize("keys", [1, 7])
def test_no_key_left_gives_zeros(peer, keys):
    q, k, v = peer.noise(2, 2, 5, 4), peer.noise(2, 2, keys, 4, seed=1), peer.noise(2, 2, keys, 4, seed=2)
    mask = np.zeros((2, keys), bool)
    mask[1, 0] = True
    got = attention(Tensor(q), Tensor(k), Tensor(v), Tensor(mask)).asnumpy()
    assert np.all(got[0] == 0)
    np.testing.assert_allclose(got[1], np.broadcast_to(v[1, :, :1], got[1].shape), atol=1e-6)


@pytest.mark.parametrize("queries", [1, 5])
def test_a_single_key_is_copied(peer, queries):
    x = peer.noise(3, 2, queries, 4), peer.noise(3, 2, 1, 4, seed=1), peer.noise(3, 2, 1, 4, seed=2)
    peer.agrees(Attend(), F.scaled_dot_product_attention, *x)


def test_a_single_key_leaves_later_gradients_right(peer, qkv):
    # A fault we had in PyNative: after a softmax over one score, the CPU's gradients of others were wrong.
    mg.device.setup("CPU", "pynative")
    single = [peer.noise(4, 1, 1, 4, seed=seed) for seed in range(3)]
    for inputs in (single, qkv):
        peer.agrees(Attend(), F.scaled_dot_product_attention, *inputs)


@pytest.mark.parametrize("most, largest", [(210, 210), (150, 140), (70, 70), (28, 28), (1, 14)])
def test_the_score_matrix_stays_within_the_limit(monkeypatch, qkv, most, largest):
    module = sys.modules["mg.ops.attention"]
    whole, sizes = module._attend, []

    def counted(q, k, v, bias):
        sizes.append(q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2])
        return whole(q, k, v, bias)

    monkeypatch.setattr(module, "MAX_SCORES", most)
    monkeypatch.setattr(module, "_attend", counted)
    mg.device.setup("CPU", "pynative")
    y = attention(*[Tensor(array) for array in qkv])
    assert max(sizes) == largest and sum(sizes) == 210
    expected = F.scaled_dot_product_attention(*[torch.from_numpy(array) for array in qkv])
    np.testing.assert_allclose(y.asnumpy(), expected, atol=1e-5)


def test_softmax_runs_in_fp32_for_half_inputs():
    # Scores around 300 would give inf in FP16's exp and lose the differences between them.
    q = np.full((1, 1, 2, 4), 10.0, np.float16)
    k = np.array([15.0, 15.01, 14.0], np.float16)[None, None, :, None].repeat(4, -1)
    v = np.eye(3, dtype=np.float16)[None, None]
    out = Attend()(Tensor(q), Tensor(k), Tensor(v)).asnumpy()
    assert out.dtype == np.float16
    expected = F.scaled_dot_product_attention(*[torch.from_numpy(a.astype(np.float32)) for a in (q, k, v)])
    np.testing.assert_allclose(out, expected, atol=0.05)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_fused_kernel_is_asked_for_the_same(peer, qkv, masked, dtype):
    """A stand-in for Ascend's kernel, in numpy: its mask says what is hidden, its types have 16 bits."""
    asked = {}

    def kernel(q, k, v, heads, attn_mask=None, scalar_value=1.0, input_layout=""):
        asked.update(types={x.dtype for x in (q, k, v)}, heads=heads, layout=input_layout)
        hidden = None if attn_mask is None else attn_mask.asnumpy().astype(bool)
        assert hidden is None or hidden.shape == (q.shape[0], 1, q.shape[2], k.shape[2])
        scores = torch.from_numpy(q.float().asnumpy() @ k.float().asnumpy().swapaxes(2, 3)) * scalar_value
        if hidden is not None:
            scores = scores.masked_fill(torch.from_numpy(hidden), -1e30)
        return Tensor(torch.softmax(scores, -1).numpy() @ v.float().asnumpy()).astype(q.dtype)

    mask = np.array([[1, 1, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1], [1] * 7], np.float32)
    q, k, v = (Tensor(array.astype(dtype)) for array in qkv)
    seen = Tensor(mask.reshape(3, 1, 1, 7)) if masked else None
    mg.device.setup("CPU", "pynative")
    narrow = ms.float16 if dtype == np.float32 else None  # the CPU has no BF16 to cast to
    out = sys.modules["mg.ops.attention"].flash_attention(q, k, v, seen, kernel, narrow=narrow)
    assert asked == {"types": {ms.float16}, "heads": 2, "layout": "BNSD"} and out.dtype == q.dtype
    twin = [torch.from_numpy(array) for array in qkv]
    keys = torch.tensor(mask)[:, None, None].bool() if masked else None
    np.testing.assert_allclose(out.asnumpy(), F.scaled_dot_product_attention(*twin, attn_mask=keys), atol=5e-3)

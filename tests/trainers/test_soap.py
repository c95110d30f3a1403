"""SOAP equals its description in numpy, learns what AdamW cannot, and resumes to the same bits."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, ParameterTuple, Tensor
from trainer_toy import give

from mg.config.trainer import OptimizerConfig
from mg.trainers import soap
from mg.trainers.step import ApplyStep

SHAPES = [(4, 3, 3, 3), (5, 6), (7,), (3, 8, 1, 3)]
BETAS = (0.9, 0.95)


class NumpySoap:
    """Algorithm 3 of the paper for one weight as (o, i, k), with this project's refresh, in float64."""

    def __init__(self, weight):
        self.p = weight.astype(np.float64)
        self.shape = (weight.shape[0], weight.shape[1], -1)
        self.m = np.zeros(self.p.reshape(self.shape).shape)  # in the original basis
        self.v = np.zeros_like(self.m)
        o, i = weight.shape[:2]
        self.cov, self.basis = [np.zeros((o, o)), np.zeros((i, i))], [np.eye(o), np.eye(i)]

    def turn(self, x, back=False):
        a, b = self.basis if back else (self.basis[0].T, self.basis[1].T)
        return np.einsum("ab,cd,bdk->ack", a, b, x)

    def step(self, grad, lr, number, eps=1e-8, decay=0.0):
        g = grad.astype(np.float64).reshape(self.shape)
        self.cov[0] += (np.einsum("aik,bik->ab", g, g) - self.cov[0]) * 0.03
        self.cov[1] += (np.einsum("oak,obk->ab", g, g) - self.cov[1]) * 0.03
        self.m = BETAS[0] * self.m + (1 - BETAS[0]) * g
        self.v = BETAS[1] * self.v + (1 - BETAS[1]) * self.turn(g) ** 2
        mean = self.turn(self.m) / (1 - BETAS[0] ** number)
        step = self.turn(mean / (np.sqrt(self.v / (1 - BETAS[1] ** number)) + eps), back=True)
        self.p = self.p * (1 - lr * decay) - lr * step.reshape(self.p.shape)
        if number == 1:
            self.basis = [np.linalg.eigh(cov)[1][:, ::-1] for cov in self.cov]
            self.v = (1 - BETAS[1]) * self.turn(g) ** 2
        elif number % soap.REFRESH_EVERY == 0:
            self.basis = [np.linalg.qr(cov @ basis)[0] for cov, basis in zip(self.cov, self.basis, strict=True)]


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_updates_equal_the_algorithm_in_numpy(mode, decay):
    ms.set_context(mode=mode)
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]
    params = ParameterTuple([Parameter(Tensor(value), name=f"p{i}") for i, value in enumerate(values)])
    config = OptimizerConfig(name="soap", betas=BETAS, weight_decay=decay, clip_grad_norm=0.0)
    update = ApplyStep(params, config, 0.0)
    peers = {i: NumpySoap(value) for i, value in enumerate(values) if value.ndim > 1}
    mixes = {i: rng.standard_normal((value.shape[0],) * 2) for i, value in enumerate(values) if value.ndim > 1}
    for number in range(1, 24):
        grads = [rng.standard_normal(shape) for shape in SHAPES]
        for i, mix in mixes.items():  # directions of different sizes, or the bases would be anything
            grads[i] = np.einsum("ab,b...->a...", mix, grads[i])
        grads = [np.float32(grad) for grad in grads]
        for i, peer in peers.items():
            peer.step(grads[i], 1e-2, number, decay=decay)
        give(update, grads)
        update.apply(1.0, 1e-2, number)
        for i, peer in peers.items():
            np.testing.assert_allclose(params[i].asnumpy(), peer.p, atol=2e-3, err_msg=f"{number} {i}")


def run(name, grads, out_turn, in_turn):
    """Weight after updates with turned gradients; the first one, still without bases, has learning rate 0."""
    param = Parameter(Tensor(np.zeros(grads[0].shape, np.float32)), name="w")
    update = ApplyStep(ParameterTuple([param]), OptimizerConfig(name=name, clip_grad_norm=0.0), 0.0)
    for number, grad in enumerate(grads, 1):
        give(update, [np.float32(out_turn @ grad @ in_turn.T)])
        update.apply(1.0, 1e-2 if number > 1 else 0.0, number)
    return param.asnumpy()


@pytest.mark.parametrize(("name", "same"), [("soap", True), ("adamw", False)])
def test_only_soap_does_not_mind_a_rotation_of_inputs_and_outputs(name, same):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    rng = np.random.default_rng(1)
    a, b = (np.linalg.qr(rng.standard_normal((n, n)))[0] for n in (5, 5))
    mix_a, mix_b = rng.standard_normal((5, 5)), rng.standard_normal((5, 5))
    grads = [mix_a @ rng.standard_normal((5, 5)) @ mix_b for _ in range(15)]
    plain, turned = run(name, grads, np.eye(5), np.eye(5)), run(name, grads, a, b)
    error = np.abs(turned - a @ plain @ b.T).max() / np.abs(plain).max()
    assert (error < 1e-2) == same, error


def test_bases_stay_orthonormal_and_find_the_eigenvectors():
    rng = np.random.default_rng(2)
    wanted = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    covariance = (wanted * [32.0, 16, 8, 4, 2, 1]) @ wanted.T
    group = [Parameter(Tensor(np.float32(value))) for value in
             (np.zeros((6, 6)), covariance, covariance, np.eye(6), np.eye(6))]
    for _ in range(40):
        soap.refresh(*group)
    basis = group[3].asnumpy()
    np.testing.assert_allclose(basis.T @ basis, np.eye(6), atol=1e-5)
    np.testing.assert_allclose(np.abs(basis.T @ wanted), np.eye(6), atol=1e-3)


def test_turning_the_basis_keeps_the_moment():
    rng = np.random.default_rng(3)
    o, i = 4, 3
    moment = Parameter(Tensor(np.float32(rng.standard_normal((o, i, 3, 1)))))
    halves = rng.standard_normal((o, o)), rng.standard_normal((i, i))
    squares = [Parameter(Tensor(np.float32(half @ half.T))) for half in halves]
    bases = [Parameter(Tensor(np.eye(n, dtype=np.float32))) for n in (o, i)]

    def original():
        rotated = moment.asnumpy().reshape(o, -1, i)
        return np.einsum("ab,cd,bkd->akc", bases[0].asnumpy(), bases[1].asnumpy(), rotated)

    before = original()
    soap.refresh(moment, *squares, *bases)
    assert np.abs(bases[0].asnumpy() - np.eye(o)).max() > 0.1
    np.testing.assert_allclose(original(), before, atol=1e-5)


def test_weights_too_large_or_flat_are_left_to_adamw():
    assert soap.is_matrix((128, 64, 3, 3)) and not soap.is_matrix((7,)) and not soap.is_matrix((2048, 8))
    assert not soap.is_matrix((1, 1, 1, 3))

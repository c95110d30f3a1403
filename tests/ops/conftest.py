"""Comparison of cells with PyTorch, shared by the tests of all primitives."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor


def randomise(cell, seed=1):
    """Set every parameter of a cell to noise."""
    rng = np.random.default_rng(seed)
    for parameter in cell.trainable_params():
        parameter.set_data(Tensor(rng.standard_normal(parameter.shape).astype(np.float32)))
    return cell


def value_and_gradients(cell, cotangent, *inputs):
    """Output, gradients of the inputs, gradients of the parameters by name."""
    cotangent = Tensor(cotangent)

    def objective(*args):
        y = cell(*args)
        return (y * cotangent).sum(), y

    parameters = cell.trainable_params()
    positions = tuple(range(len(inputs)))
    run = ms.value_and_grad(objective, positions, parameters or None, has_aux=True)
    (_, y), gradients = run(*[Tensor(array) for array in inputs])
    by_input, by_weight = gradients if parameters else (gradients, ())
    by_input = by_input if isinstance(by_input, tuple) else (by_input,)
    named = {p.name.rsplit(".", 1)[-1]: g.asnumpy() for p, g in zip(parameters, by_weight, strict=True)}
    return y.asnumpy(), [g.asnumpy() for g in by_input], named


def assert_agrees(cell, twin, *inputs, atol=2e-5):
    """A cell gives the output and all the gradients of a PyTorch function of (*inputs, **parameters)."""
    randomise(cell)
    there = [torch.tensor(array, requires_grad=True) for array in inputs]
    weights = {name: torch.tensor(p.asnumpy(), requires_grad=True) for name, p in cell.parameters_and_names()}
    expected = twin(*there, **weights)
    cotangent = np.random.default_rng(2).standard_normal(tuple(expected.shape)).astype(np.float32)
    (expected * torch.from_numpy(cotangent)).sum().backward()

    y, by_input, by_weight = value_and_gradients(cell, cotangent, *inputs)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, expected.detach().numpy(), atol=atol, rtol=1e-4)
    for got, want in zip(by_input, there, strict=True):
        np.testing.assert_allclose(got, want.grad.numpy(), atol=atol, rtol=1e-4)
    assert set(by_weight) == {name for name, w in weights.items() if w.grad is not None}
    for name, got in by_weight.items():
        scale = max(1.0, float(weights[name].grad.abs().max()))
        np.testing.assert_allclose(got / scale, weights[name].grad.numpy() / scale, atol=atol, err_msg=name)


def assert_half_is_near(cell, *shape, atol=0.02):
    """With FP16 activations a cell gives FP16, near its FP32 result."""
    x = noise(*shape)
    for parameter in cell.trainable_params():
        parameter.set_data(Tensor((0.3 * np.random.default_rng(3).standard_normal(parameter.shape)).astype(np.float32)))
    full, half = cell(Tensor(x)).asnumpy(), cell(Tensor(x.astype(np.float16))).asnumpy()
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, full, atol=atol * np.abs(full).max())
    assert np.abs(half - full).max() > 0  # it did not compute in FP32 on the quiet


def noise(*shape, seed=0):
    """Standard normal float32 array."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def answering(value):
    """A function without arguments that a graph takes for a constant."""

    @ms.ops.constexpr
    def answer():
        return value

    return answer


@pytest.fixture(scope="session")
def peer():
    """The helpers above, as attributes."""
    from types import SimpleNamespace

    return SimpleNamespace(
        agrees=assert_agrees,
        answering=answering,
        half=assert_half_is_near,
        noise=noise,
        gradients=value_and_gradients,
        randomise=randomise,
    )

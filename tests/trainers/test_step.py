import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Parameter, ParameterTuple, Tensor
from trainer_toy import FEATURES, RootLoss, ToyLoss, ToyNet, ToySource, give

from mg.config.trainer import OptimizerConfig
from mg.trainers.ema import swapped
from mg.trainers.step import ApplyStep, GradNorm, Stepper, clip_scale

SHAPES = [(3, 4, 2, 2), (7,), (5, 6), ()]


def parameters(rng):
    values = [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]
    return values, ParameterTuple([Parameter(Tensor(value), name=f"p{i}") for i, value in enumerate(values)])


def gradients(rng, size=1.0):
    return [np.float32(rng.standard_normal(shape) * size) for shape in SHAPES]


def norm_of(grads):
    return float(np.sqrt(sum((grad.astype(np.float64) ** 2).sum() for grad in grads)))


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
@pytest.mark.parametrize(("decay", "eps"), [(0.0, 1e-8), (0.1, 1e-3)])
def test_five_updates_equal_torch_adamw_with_clipping(mode, decay, eps):
    ms.set_context(mode=mode)
    rng = np.random.default_rng(0)
    values, params = parameters(rng)
    config = OptimizerConfig(lr=1e-2, betas=(0.8, 0.95), eps=eps, weight_decay=decay, clip_grad_norm=2.0)
    update = ApplyStep(params, config, 0.0)
    peers = [torch.nn.Parameter(torch.tensor(value)) for value in values]
    optimizer = torch.optim.AdamW(peers, betas=(0.8, 0.95), eps=eps, weight_decay=decay)
    for number in range(1, 6):
        lr = 1e-2 / number
        grads = gradients(rng, size=0.1 * number**2)  # the last ones are clipped, the first are not
        for peer, grad in zip(peers, grads, strict=True):
            peer.grad = torch.tensor(grad)
        torch.nn.utils.clip_grad_norm_(peers, 2.0)
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        give(update, grads)
        update.apply(norm_of(grads), lr, number)
    for param, peer in zip(params, peers, strict=True):
        np.testing.assert_allclose(param.asnumpy(), peer.detach().numpy(), rtol=0, atol=1e-6)


def test_the_average_follows_its_formula_and_the_swap_gives_back_the_same_bits():
    rng = np.random.default_rng(1)
    values, params = parameters(rng)
    update = ApplyStep(params, OptimizerConfig(lr=0.1), 0.4)
    expected = [value.astype(np.float64) for value in values]
    for number, kept in enumerate((2 / 11, 3 / 12, 4 / 13, 5 / 14, 0.4, 0.4), start=1):
        grads = gradients(rng)
        give(update, grads)
        update.apply(norm_of(grads), 0.1, number)
        expected = [kept * old + (1 - kept) * param.asnumpy() for old, param in zip(expected, params, strict=True)]
    for average, value in zip(update.averages, expected, strict=True):
        np.testing.assert_allclose(average.asnumpy(), value, atol=1e-6)
    before = [param.asnumpy().tobytes() for param in params]
    with pytest.raises(KeyError), swapped(params, update.averages):
        inside = [param.asnumpy().tobytes() for param in params]
        raise KeyError
    assert inside == [average.asnumpy().tobytes() for average in update.averages]
    assert inside != before
    assert [param.asnumpy().tobytes() for param in params] == before


def test_half_precision_parameters_are_refused():
    params = ParameterTuple([Parameter(Tensor(np.zeros(2, np.float16)), name="half")])
    with pytest.raises(ValueError, match="must be float32.*half"):
        ApplyStep(params, OptimizerConfig(), 0.0)


def test_norm_equals_the_formula():
    grads = gradients(np.random.default_rng(2), size=3.0)
    assert float(GradNorm()(*(Tensor(grad) for grad in grads)).asnumpy()) == pytest.approx(norm_of(grads), rel=1e-6)


def test_clipping_brings_the_norm_to_its_limit_and_leaves_smaller_ones():
    assert clip_scale(8.0, 2.0) == 0.25
    assert clip_scale(1.5, 2.0) == 1.0
    assert clip_scale(8.0, 0.0) == 1.0
    assert clip_scale(0.0, 2.0) == 1.0


def stepper(**kwargs):
    network = ToyNet()
    loss = ToyLoss(network)
    return Stepper(loss, ParameterTuple(loss.trainable_params()), OptimizerConfig(), **{"ema_decay": 0.0, **kwargs})


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
def test_accumulation_equals_the_big_batch_with_unequal_numbers_of_valid_rows(mode):
    ms.set_context(mode=mode)
    source = ToySource()
    parts = [source.batch(index) for index in (0, 5, 2)]  # 1, 6 and 3 valid rows
    assert [part["mask"].sum() for part in parts] == [1, 6, 3]
    joint = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    one = stepper(accumulates=True)
    values, norm = one.gradient(parts)
    grads = [grad.asnumpy().copy() for grad in one.grads]
    big_values, big_norm = one.gradient([joint])
    np.testing.assert_allclose(values, big_values, atol=1e-6)
    assert norm == pytest.approx(big_norm, rel=1e-6)
    for grad, big in zip(grads, one.grads, strict=True):
        np.testing.assert_allclose(grad, big.asnumpy(), atol=1e-6)
        assert np.abs(big.asnumpy()).max() > 1e-3


def test_several_micro_batches_need_a_stepper_made_for_them():
    with pytest.raises(ValueError, match="accumulates=True"):
        stepper().gradient([ToySource().batch(0)] * 2)


def test_gradient_and_terms_equal_torch():
    batch = ToySource().batch(3)
    one = stepper()
    values, _ = one.gradient([batch])
    network = ToyNet()
    first, first_bias, last, last_bias = (
        torch.tensor(param.asnumpy(), requires_grad=True)
        for param in (network.first.weight, network.first.bias, network.last.weight, network.last.bias)
    )
    gain = torch.ones(1, requires_grad=True)
    x, y, mask = (torch.tensor(batch[name]) for name in ("x", "y", "mask"))
    out = torch.tanh(x @ first.T + first_bias) @ last.T + last_bias
    difference = (out * gain - y) * mask
    loss = (difference**2).sum() / (mask.sum() * 3)
    loss.backward()
    np.testing.assert_allclose(
        values, [loss.item(), (difference.abs().sum() / (mask.sum() * 3)).item()], atol=1e-6
    )
    by_shape = {tuple(grad.shape): grad.asnumpy() for grad in one.grads}
    for peer in (first, first_bias, last, last_bias, gain):
        np.testing.assert_allclose(by_shape[tuple(peer.shape)], peer.grad.numpy(), atol=1e-6)


def test_a_finite_loss_with_a_bad_gradient_shows_in_the_norm():
    network = ToyNet()
    loss = RootLoss(network)
    bad = Stepper(loss, ParameterTuple(loss.trainable_params()), OptimizerConfig(), 0.0)
    values, norm = bad.gradient([{"x": np.ones((2, FEATURES), np.float32), "mask": np.float32([[0], [1]])}])
    assert np.isfinite(values).all()
    assert not np.isfinite(norm)


def test_one_compilation_per_shape_and_none_afterwards():
    source = ToySource(wide=(2,))
    one = stepper(ema_decay=0.9)

    def step(index, number):
        _, norm = one.gradient([source.batch(index)])
        one.apply(norm, 1e-3 * number, number)
        return one.compilations

    counts = [step(index, number) for number, index in enumerate((0, 1, 2, 3, 2, 4), start=1)]
    assert counts == [3, 3, 4, 4, 4, 4]  # gradient, norm, update; then the gradient alone for the second shape


def test_a_missing_batch_entry_is_named():
    with pytest.raises(ValueError, match=r"wants \['mask'\].*'x', 'y'"):
        stepper().gradient([{"x": np.zeros((1, FEATURES), np.float32), "y": np.zeros((1, 3), np.float32)}])

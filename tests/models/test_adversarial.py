"""Adversarial losses, LeCAM, R1 and the memories are their formulas, and each gradient stays on its side."""

import json

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, mint, nn

import mg.device
from mg.config.discriminator import PatchConfig
from mg.models.discriminator import (
    ADVERSARIAL,
    DiscriminatorLoss,
    DiscriminatorMemory,
    GeneratorMemory,
    Judge,
    PatchDiscriminator,
    adaptive_weight,
)  # fmt: skip
from mg.models.discriminator.losses import adversarial_loss, clip_mean, lecam, weighted_mean

LOGITS = np.array([-40.0, -2.0, -0.5, 0.0, 0.5, 2.0, 40.0], np.float32)


def value_and_slope(function, x):
    value, slope = ms.value_and_grad(lambda y: (function(y).sum(), function(y)), has_aux=True)(Tensor(x))
    return value[1].asnumpy(), slope.asnumpy()


@pytest.mark.parametrize(
    "name, side, formula",
    [
        ("hinge", "real", lambda x: np.maximum(1 - x, 0) / 2),
        ("hinge", "fake", lambda x: np.maximum(1 + x, 0) / 2),
        ("hinge", "generator", lambda x: -x),
        ("vanilla", "real", lambda x: np.log1p(np.exp(-x)) / 2),
        ("vanilla", "fake", lambda x: np.log1p(np.exp(x)) / 2),
        ("vanilla", "generator", lambda x: -x),
        ("non_saturating", "real", lambda x: np.log1p(np.exp(-x))),
        ("non_saturating", "fake", lambda x: np.log1p(np.exp(x))),
        ("non_saturating", "generator", lambda x: np.log1p(np.exp(-x))),
    ],
)
def test_losses_are_their_formulas(pynative, name, side, formula):
    function = getattr(ADVERSARIAL[name], side)
    value, slope = value_and_slope(function, LOGITS)
    wide, step = LOGITS.astype(np.float64), 1e-6
    np.testing.assert_allclose(value, formula(wide), rtol=2e-5, atol=1e-9)
    np.testing.assert_allclose(slope, (formula(wide + step) - formula(wide - step)) / (2 * step), rtol=1e-4, atol=1e-6)


def test_hand_values(pynative):
    hinge, vanilla = ADVERSARIAL["hinge"], ADVERSARIAL["non_saturating"]
    x = Tensor(np.array([-2.0, 0.0, 3.0], np.float32))
    assert hinge.real(x).asnumpy().tolist() == [1.5, 0.5, 0.0] and hinge.fake(x).asnumpy().tolist() == [0.0, 0.5, 2.0]
    np.testing.assert_allclose(vanilla.generator(x).asnumpy(), [2.126928, 0.693147, 0.048587], rtol=1e-5)


def test_non_saturating_generator_has_a_slope_where_the_discriminator_is_sure(pynative):
    assert value_and_slope(ADVERSARIAL["non_saturating"].generator, np.array([-40.0], np.float32))[1] == -1.0


def test_unknown_losses_list_the_known():
    with pytest.raises(ValueError, match="adversarial='wgan': choose hinge, vanilla, non_saturating"):
        adversarial_loss("wgan")


def test_means_count_valid_logits_and_frames(pynative):
    logits = Tensor(np.arange(12, dtype=np.float32).reshape(2, 3, 1, 2))
    valid = Tensor(np.array([[1, 1, 0], [1, 0, 0]], np.float32))
    means = clip_mean(logits, valid)
    assert means.asnumpy().tolist() == [1.5, 6.5]
    assert float(weighted_mean(means, Tensor(np.array([3.0, 1.0], np.float32))).asnumpy()) == 2.75
    assert float(weighted_mean(means, Tensor(np.zeros(2, np.float32))).asnumpy()) == 0.0


def test_lecam_is_its_formula(pynative):
    real, fake = np.array([2.0, 0.1], np.float32), np.array([-1.0, 0.7], np.float32)
    above, below = lecam(Tensor(real), Tensor(fake), Tensor(np.float32(0.5)), Tensor(np.float32(0.25)))
    np.testing.assert_allclose(above.asnumpy(), [1.75**2, 0.0], rtol=1e-6)
    np.testing.assert_allclose(below.asnumpy(), [1.5**2, 0.0], rtol=1e-6)


def test_adaptive_weight_is_the_clamped_ratio_of_norms(pynative):
    a, b = np.array([[3.0, 4.0]], np.float32), np.array([0.0, 0.0, 2.0], np.float32)
    assert float(adaptive_weight(Tensor(a), Tensor(b), 1e4).asnumpy()) == pytest.approx(2.5)
    assert float(adaptive_weight(Tensor(a), Tensor(b), 2.0).asnumpy()) == 2.0
    assert float(adaptive_weight(Tensor(a), Tensor(0 * b), 7.0).asnumpy()) == 7.0
    assert float(adaptive_weight(Tensor(0 * a), Tensor(b), 7.0).asnumpy()) == 0.0


class Linear(nn.Cell):
    """One logit per clip: the sum of its values times a weight each."""

    def __init__(self, shape):
        super().__init__()
        self.weight = Parameter(Tensor(np.random.default_rng(2).standard_normal(shape).astype(np.float32)), name="d")

    def construct(self, x, mask):
        logits = (x * self.weight).sum((1, 2, 3, 4)).reshape(x.shape[0], 1, 1, 1)
        return logits, mint.narrow(mask, 1, 0, 1)


class Gain(nn.Cell):
    """A generator with one weight."""

    def __init__(self):
        super().__init__()
        self.weight = Parameter(Tensor(np.float32(0.5)), name="gain")

    def construct(self, video, noise):
        return self.weight * video + noise, noise


class Gradients(nn.Cell):
    """Loss, terms and the gradients of all parameters in one graph, as training has them."""

    def __init__(self, loss):
        super().__init__(auto_prefix=False)
        self.loss = loss
        self.gradient = ms.value_and_grad(loss, None, loss.trainable_params(), has_aux=True)

    def construct(self, *inputs):
        return self.gradient(*inputs)


@pytest.fixture
def clips(video):
    """video, mask (5 and 3 valid frames), noise."""
    mask = np.ones((2, 5), np.float32)
    mask[1, 3:] = 0
    return video(2, 3, 5, 16, 16), mask, 0.1 * video(2, 3, 5, 16, 16, seed=1)


def run(loss, clips, **inputs):
    """Return values by name and gradients by the parameter's name."""
    given = dict(zip(("video", "mask", "noise"), clips, strict=True)) | inputs
    (total, weight, *terms), gradients = Gradients(loss)(*(Tensor(given[name]) for name in loss.inputs))
    figures = (float(x.asnumpy()) for x in (total, weight, *terms))
    values = dict(zip(("loss", "weight", *loss.terms), figures, strict=True))
    names = [param.name.removeprefix("discriminator.") for param in loss.trainable_params()]
    return values, {name: gradient.asnumpy() for name, gradient in zip(names, gradients, strict=True)}


@pytest.mark.own_process
def test_r1_of_a_linear_discriminator_is_its_squared_weight(clips):
    linear = Linear((5, 3, 16, 16))
    on, off = np.zeros(1, np.float32), np.float32(0)
    loss = DiscriminatorLoss(Gain(), Judge(linear), "hinge", r1_weight=3.0, r1_every=2)
    values, slopes = run(loss, clips, r1=on)
    mg.device.setup("CPU", "pynative")
    without, slopes_without = run(loss, clips, r1=off)
    weight = linear.weight.asnumpy()
    square = (weight.astype(np.float64) ** 2).sum()
    assert without["r1"] == 0.0 and values["r1"] == pytest.approx(square, rel=1e-5)
    assert values["loss"] - without["loss"] == pytest.approx(6 * square, rel=1e-5)
    np.testing.assert_allclose(slopes["d"] - slopes_without["d"], 12 * weight, rtol=1e-3, atol=1e-3)  # second order


@pytest.mark.own_process
def test_r1_of_a_patchgan_equals_pytorchs_double_backward(clips):
    import torch
    import torch.nn.functional as F

    config = PatchConfig(base_channels=2, max_channels=4, layers=1, time_strides=(2,), norm_groups=2)
    network = PatchDiscriminator(config)
    for _, param in network.parameters_and_names():
        param.set_data(Tensor(param.asnumpy() * 15))
    loss = DiscriminatorLoss(Gain(), Judge(network), "hinge", r1_weight=0.5)
    values, slopes = run(loss, clips, r1=np.zeros(1, np.float32))
    mg.device.setup("CPU", "pynative")  # which has no second order, but compiles nothing
    plain, plain_slopes = run(loss, clips, r1=np.float32(0))
    named = dict(network.parameters_and_names())
    weights = {name: torch.tensor(param.asnumpy(), requires_grad=True) for name, param in named.items()}
    total = 0.0
    for row, frames in enumerate((5, 3)):
        x = torch.tensor(clips[0][row : row + 1, :, :frames], requires_grad=True)
        y = F.leaky_relu(F.conv3d(x, weights["convs.0.weight"], weights["convs.0.bias"], (2, 2, 2), (1, 1, 1)), 0.2)
        y = F.conv3d(y, weights["convs.1.weight"], weights["convs.1.bias"], 1, (1, 1, 1))
        b, c, t, h, w = y.shape
        y = F.group_norm(
            y.transpose(1, 2).reshape(t, c, h, w), 2, weights["norms.1.norm.gamma"], weights["norms.1.norm.beta"], 1e-6
        )
        y = F.leaky_relu(y.reshape(1, t, c, h, w).transpose(1, 2), 0.2)
        y = F.conv3d(y, weights["last.weight"], weights["last.bias"], 1, (1, 1, 1))
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        total = total + frames * (slope**2).sum() / y.numel() / 8
    total.backward()
    assert values["r1"] == pytest.approx(total.item(), rel=1e-4)
    for name in named:
        want = 0.5 * weights[name].grad.numpy() if weights[name].grad is not None else 0.0
        got = slopes[name] - plain_slopes[name]
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-4 * max(1.0, np.abs(want).max()))
    assert values["loss"] == pytest.approx(plain["loss"] + 0.5 * total.item(), rel=1e-4)


def test_loss_of_the_discriminator_is_the_formula_over_valid_frames(pynative, clips):
    network = PatchDiscriminator(PatchConfig(base_channels=4, layers=1, norm_groups=2, time_strides=(2,)))
    for _, param in network.parameters_and_names():
        param.set_data(Tensor(param.asnumpy() * 8))
    numbers = {"lecam_real": np.float32(0.3), "lecam_fake": np.float32(-0.2)}
    loss = DiscriminatorLoss(Gain(), Judge(network), "non_saturating", lecam_weight=0.7)
    on, slopes = run(loss, clips, lecam_on=np.float32(1), **numbers)
    off, slopes_off = run(loss, clips, lecam_on=np.float32(0), **numbers)
    video, _, noise = clips
    rows = []
    for row, frames in enumerate((5, 3)):  # each clip alone and without its padding
        x, extra = video[row : row + 1, :, :frames], noise[row : row + 1, :, :frames]
        whole = Tensor(np.ones((1, frames), np.float32))
        real, fake = (
            network(Tensor(np.ascontiguousarray(y.swapaxes(1, 2))), whole)[0].asnumpy() for y in (x, 0.5 * x + extra)
        )
        cost = (np.logaddexp(0, -real) + np.logaddexp(0, fake)).mean()
        kept = (np.maximum(real + 0.2, 0) ** 2 + np.maximum(0.3 - fake, 0) ** 2).mean()
        right = ((real > 0).mean() + (fake < 0).mean()) / 2
        rows.append([frames * x for x in (cost, real.mean(), fake.mean(), right, kept)])
    cost, real, fake, right, kept = np.sum(rows, 0) / 8
    names = ("loss", "weight", "real", "fake", "accuracy", "lecam")
    np.testing.assert_allclose([off[name] for name in names], [cost, 8, real, fake, right, 0], rtol=1e-4)
    np.testing.assert_allclose([on[name] for name in names], [cost + 0.7 * kept, 8, real, fake, right, kept], rtol=1e-4)
    name = "convs.0.weight"
    assert np.abs(slopes[name] - slopes_off[name]).max() > 1e-3  # LeCAM changes the gradient


def test_the_discriminators_loss_reaches_the_discriminator_only(clips):
    network = PatchDiscriminator(PatchConfig(base_channels=4, layers=1, norm_groups=2))
    generator = Gain()
    _, slopes = run(DiscriminatorLoss(generator, Judge(network), "hinge"), clips)
    assert slopes.pop("gain") == 0.0
    assert slopes and all(np.abs(slope).max() > 0 for name, slope in slopes.items() if "last.bias" not in name)


def test_lecams_averages_move_once_per_observed_step():
    memory = DiscriminatorMemory(decay=0.9, r1_every=4)
    first = memory.inputs(1)
    assert (first["lecam_on"], first["lecam_real"]) == (0.0, 0.0)
    memory.observe(1, {"loss": 9.0, "real": 2.0, "fake": -1.0, "accuracy": 1.0})
    memory.observe(3, {"loss": 9.0, "real": 3.0, "fake": 1.0, "accuracy": 1.0})
    inputs = memory.inputs(4)
    assert inputs["lecam_on"] == 1.0
    assert (inputs["lecam_real"], inputs["lecam_fake"]) == (np.float32(2.1), np.float32(-0.8))
    assert all(value.dtype == np.float32 for value in inputs.values())
    again = DiscriminatorMemory(decay=0.9, r1_every=4)
    again.restore(json.loads(json.dumps(memory.state())))
    for _ in range(2):
        again.observe(5, {"real": 1 / 3, "fake": 0.7})
        memory.observe(5, {"real": 1 / 3, "fake": 0.7})
    assert again.state() == memory.state() and again.inputs(6) == memory.inputs(6)
    assert [memory.inputs(step)["r1"].ndim for step in range(1, 10)] == [1, 0, 0, 0, 1, 0, 0, 0, 1]


def test_the_adversarial_term_comes_in_at_its_step():
    memory = GeneratorMemory(3)
    assert [memory.inputs(step)["adversarial"].ndim for step in (1, 2, 3, 4)] == [0, 0, 1, 1]
    memory.restore(memory.state())

"""The full objective: each term by its formula, on valid frames only; the adaptive weight is PyTorch's."""

import mindspore as ms
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mindspore import Parameter, Tensor, mint, nn

from mg.config.discriminator import PatchConfig
from mg.dataset.clips import latent_mask
from mg.models.discriminator import Judge, PatchDiscriminator
from mg.models.tae.loss import TaeLoss, draw_frames

B, T, H, W = 2, 5, 16, 16
ON, OFF = np.zeros(1, np.float32), np.float32(0)


class Brightness(nn.Cell):
    """Stands for LPIPS: squared difference of the pictures' mean values."""

    def construct(self, a, b):
        difference = a.mean((1, 2, 3)) - b.mean((1, 2, 3))
        return difference * difference


class Free(nn.Cell):
    """A network whose outputs are its parameters."""

    def __init__(self, made, mean, logvar):
        super().__init__()
        self.made, self.mean, self.logvar = (
            Parameter(Tensor(value), name=name)
            for name, value in (("made", made), ("mean", mean), ("logvar", logvar))
        )

    def construct(self, x, noise):
        return self.made * 1.0, self.mean + mint.exp(0.5 * self.logvar) * noise, self.mean * 1.0, self.logvar * 1.0


@pytest.fixture
def judge():
    network = PatchDiscriminator(PatchConfig(base_channels=4, layers=1, norm_groups=2, time_strides=(2,)))
    for _, param in network.parameters_and_names():
        param.set_data(Tensor(param.asnumpy() * 8))
    return Judge(network)


@pytest.fixture
def given(video):
    """A batch by name (5 and 3 valid frames) and the outputs of a network."""
    mask = np.ones((B, T), np.float32)
    mask[1, 3:] = 0
    latents = [video(B, 4, 1, 2, 2, seed=seed) for seed in (2, 3, 4)]
    batch = {"video": video(B, 3, T, H, W), "mask": mask, "latent_mask": latent_mask(mask, 8), "noise": latents[0]}
    batch["adversarial"] = ON
    return batch, [video(B, 3, T, H, W, seed=1), *latents[1:]]


def values_of(loss, batch):
    total, weight, *terms = (float(x.asnumpy()) for x in loss(*(Tensor(batch[name]) for name in loss.inputs)))
    return dict(zip(("loss", "weight", *loss.terms), (total, weight, *terms), strict=True))


def slopes_of(loss, batch, params):
    def objective(*inputs):
        return loss(*inputs)[0]

    slope = ms.grad(objective, None, ms.ParameterTuple(params))
    return [x.asnumpy() for x in slope(*(Tensor(batch[name]) for name in loss.inputs))]


def row_of(given, row, frames):
    """One clip without its padding."""
    batch, outputs = given
    alone = {name: value if np.ndim(value) < 2 else value[row : row + 1] for name, value in batch.items()}
    alone["video"], alone["mask"] = alone["video"][:, :, :frames], alone["mask"][:, :frames]
    outputs = [outputs[0][row : row + 1, :, :frames], *(x[row : row + 1] for x in outputs[1:])]
    return alone, outputs


def test_a_padded_batch_is_the_mean_over_the_clips_valid_frames(pynative, given, judge):
    options = {"perceptual": Brightness(), "judge": judge, "outlier_weight": 1.0, "outlier_r": 0.5}
    whole = values_of(TaeLoss(Free(*given[1]), **options), given[0])
    parts = []
    for row, frames in enumerate((5, 3)):
        batch, outputs = row_of(given, row, frames)
        parts.append(values_of(TaeLoss(Free(*outputs), **options), batch))
    for name in ("rec", "kl", "outlier", "perceptual", "adversarial"):
        assert whole[name] == pytest.approx((5 * parts[0][name] + 3 * parts[1][name]) / 8, rel=1e-4), name
    assert whole["weight"] == 8
    want = whole["rec"] + 1e-6 * whole["kl"] + whole["outlier"] + whole["perceptual"] + 0.1 * whole["adversarial"]
    assert whole["loss"] == pytest.approx(want, rel=1e-5)


def test_padded_frames_have_exactly_no_gradient(pynative, given, judge):
    network = Free(*given[1])
    batch = {**given[0], "perceptual_frames": np.array([[4, 0], [2, 1]], np.int32)}
    loss = TaeLoss(network, perceptual=Brightness(), perceptual_frames=2, judge=judge, kl_weight=0.0)
    (slope,) = slopes_of(loss, batch, [network.made])
    assert (slope[1, :, 3:] == 0).all()
    assert (np.abs(slope[0]).max((0, 2, 3)) > 0).all() and (np.abs(slope[1, :, :3]).max((0, 2, 3)) > 0).all()


def test_perceptual_error_of_drawn_frames(pynative, given):
    batch, outputs = given
    error = (outputs[0].mean((1, 3, 4)) - batch["video"].mean((1, 3, 4))) ** 2  # (b, t)
    drawn = {**batch, "perceptual_frames": np.array([[4, 0], [2, 1]], np.int32)}
    options = {"perceptual": Brightness(), "perceptual_weight": 3.0}
    some = values_of(TaeLoss(Free(*outputs), perceptual_frames=2, **options), drawn)
    every = values_of(TaeLoss(Free(*outputs), **options), batch)
    want = (5 * error[0, [4, 0]].mean() + 3 * error[1, [2, 1]].mean()) / 8
    assert some["perceptual"] == pytest.approx(want, rel=1e-4)
    assert every["perceptual"] == pytest.approx((error * batch["mask"]).sum() / 8, rel=1e-4)
    assert some["loss"] == pytest.approx(some["rec"] + 3 * want + 1e-6 * some["kl"], rel=1e-5)


def test_frames_are_drawn_among_the_valid_ones_alike():
    mask = np.zeros((3, 6), np.float32)
    mask[0], mask[1, :4], mask[2, :1] = 1, 1, 1
    draws = np.stack([draw_frames(np.random.default_rng(seed), mask, 3) for seed in range(2000)])
    assert draws.shape == (2000, 3, 3) and draws.dtype == np.int32
    for row, valid in enumerate((6, 4, 1)):
        counts = np.bincount(draws[:, row].ravel(), minlength=valid)
        assert len(counts) == valid and np.abs(counts / counts.mean() - 1).max() < 0.15
    assert all(len(set(row)) == 3 for row in draws[:, 0])  # none twice
    assert draw_frames(np.random.default_rng(0), np.ones((2, 1), np.float32), 8).shape == (2, 1)


def test_without_the_adversarial_term_the_loss_is_the_plain_one(pynative, given, judge):
    batch, outputs = given
    with_judge = values_of(TaeLoss(Free(*outputs), judge=judge, adaptive_limit=1e4), {**batch, "adversarial": OFF})
    plain = values_of(TaeLoss(Free(*outputs)), batch)
    assert with_judge.pop("adversarial") == with_judge.pop("adaptive") == 0.0
    assert with_judge == plain


def test_charbonnier_is_its_formula(pynative, given):
    batch, outputs = given
    error = np.sqrt((outputs[0] - batch["video"]) ** 2 + 1e-6).mean((1, 3, 4))
    values = values_of(TaeLoss(Free(*outputs), "charbonnier"), batch)
    assert values["rec"] == pytest.approx((error * batch["mask"]).sum() / 8, rel=1e-5)


@pytest.mark.parametrize(
    "term, options",
    [
        ("rec", {"kl_weight": 0.0}),
        ("kl", {"kl_weight": 100.0}),
        ("outlier", {"kl_weight": 0.0, "outlier_weight": 10.0, "outlier_r": 1.0}),
        ("perceptual", {"kl_weight": 0.0, "perceptual_weight": 30.0}),
        ("adversarial", {"kl_weight": 0.0, "adversarial_weight": 10.0}),
    ],
)
def test_each_term_lowers_its_own_value(pynative, given, judge, term, options):
    if term == "perceptual":
        options["perceptual"] = Brightness()
    if term == "adversarial":
        options["judge"] = judge
    batch, outputs = given
    network = Free(*outputs)
    loss = TaeLoss(network, **options)
    params = [network.made, network.mean, network.logvar]
    before = values_of(loss, batch)[term]
    for _ in range(15):
        for param, slope in zip(params, slopes_of(loss, batch, params), strict=True):
            size = np.abs(slope).max()
            if size > 0:
                param.set_data(Tensor(param.asnumpy() - 0.02 * slope / size))
    assert values_of(loss, batch)[term] < before - 0.1 * abs(before)


def test_outlier_penalty_takes_planted_outliers_away(pynative, given):
    """Share of latent positions beyond 3 standard deviations, with and without the penalty."""
    batch, outputs = given
    rng = np.random.default_rng(0)
    mean = rng.standard_normal((1, 4, 1, 16, 16)).astype(np.float32)
    mean[0, :, 0, 3, ::4] *= 12.0

    def share(z):
        centred = z - z.mean((3, 4), keepdims=True)
        spread = np.sqrt((centred**2).mean((3, 4)).sum(1))[..., None, None]
        return (np.sqrt((centred**2).sum(1)) > 3 * spread).mean()

    one = {name: value[:1] if np.ndim(value) > 1 else value for name, value in batch.items()}
    one["noise"] = np.zeros_like(mean)
    shares = {}
    for weight in (0.0, 100.0):
        network = Free(outputs[0][:1], mean.copy(), np.zeros_like(mean))
        loss = TaeLoss(network, kl_weight=1e-9, outlier_weight=weight)
        for _ in range(40):
            (slope,) = slopes_of(loss, one, [network.mean])
            network.mean.set_data(Tensor(network.mean.asnumpy() - 2.0 * slope))
        shares[weight] = share(network.mean.asnumpy())
    assert shares[0.0] == share(mean) > 0.01 and shares[100.0] < 0.5 * shares[0.0]


def torch_objective(net, judge, batch, weight, limit):
    """rec + weight * adaptive * adversarial from PyTorch's own gradients; each clip without its padding."""
    params = {name: torch.tensor(p.asnumpy()) for name, p in judge.discriminator.parameters_and_names()}
    video, noise = torch.tensor(batch["video"]), torch.tensor(batch["noise"])
    mean, logvar = net.encode(video)
    made = net.decode(mean + torch.exp(0.5 * logvar.clamp(-30, 20)) * noise)[:, :, :T, :H, :W]
    rec, adversarial = 0.0, 0.0
    for row, frames in enumerate((5, 3)):
        x = made[row : row + 1, :, :frames]
        rec = rec + frames / 8 * (x - video[row : row + 1, :, :frames]).abs().mean()
        y = F.leaky_relu(F.conv3d(x, params["convs.0.weight"], params["convs.0.bias"], (2, 2, 2), 1), 0.2)
        y = F.conv3d(y, params["convs.1.weight"], params["convs.1.bias"], 1, 1)
        b, c, t, h, w = y.shape
        affine = params["norms.1.norm.gamma"], params["norms.1.norm.beta"]
        y = F.group_norm(y.transpose(1, 2).reshape(t, c, h, w), 2, *affine, 1e-6)
        y = F.leaky_relu(y.reshape(1, t, c, h, w).transpose(1, 2), 0.2)
        adversarial = adversarial - frames / 8 * F.conv3d(y, params["last.weight"], params["last.bias"], 1, 1).mean()
    last = dict(net.named_parameters())["decoder.conv_out.conv_temp.weight"]
    slopes = [torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (rec, adversarial)]
    adaptive = min((slopes[0] / (slopes[1] + 1e-8)).item(), limit)
    (rec + weight * adaptive * adversarial).backward()
    return rec.item(), adversarial.item(), adaptive, net


@pytest.mark.slow
def test_adaptive_weight_and_gradients_equal_pytorchs_in_graph_mode(build, twin, video, judge, given):
    """One graph of the small autoencoder; odd frames, so that the reconstruction is cropped, and padding."""
    network = build()
    batch, _ = given
    loss = TaeLoss(network, kl_weight=0.0, judge=judge, adversarial_weight=0.3, adaptive_limit=1e4)
    names = ["decoder.conv_out.conv_temp", "decoder.conv_in.conv_spat", "encoder.conv_in.conv_spat"]
    names = [f"{name}.weight" for name in names]
    params = ms.ParameterTuple([dict(network.parameters_and_names())[name] for name in names])
    gradient = ms.value_and_grad(loss, None, params, has_aux=True)

    class Step(nn.Cell):
        def __init__(self):
            super().__init__(auto_prefix=False)
            self.loss = loss

        def construct(self, *inputs):
            return gradient(*inputs)

    (total, _, rec, _, adversarial, adaptive), slopes = Step()(*(Tensor(batch[name]) for name in loss.inputs))
    want_rec, want_adversarial, want_adaptive, net = torch_objective(twin(), judge, batch, 0.3, 1e4)
    got = [float(x.asnumpy()) for x in (rec, adversarial, adaptive, total)]
    want_total = want_rec + 0.3 * want_adaptive * want_adversarial
    np.testing.assert_allclose(got, [want_rec, want_adversarial, want_adaptive, want_total], rtol=2e-3)
    peers = dict(net.named_parameters())
    for name, slope in zip(names, slopes, strict=True):
        want = peers[name].grad.numpy().reshape(slope.shape)
        np.testing.assert_allclose(slope.asnumpy(), want, atol=3e-3 * np.abs(want).max(), err_msg=name)

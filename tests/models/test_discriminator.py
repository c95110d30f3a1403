"""The PatchGAN is a stack of 3-D convolutions, blind to padding; it tells two sorts of videos apart."""

import mindspore as ms
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mindspore import Tensor, nn

from mg.config.discriminator import DiscriminatorConfig, PatchConfig
from mg.errors import UserError
from mg.models.discriminator import DiscriminatorLoss, Judge, PatchDiscriminator
from mg.models.discriminator.tubelets import cut_tubelets, draw_tubelets

CONFIG = PatchConfig(base_channels=4, max_channels=8, layers=2, time_strides=(1, 2), norm_groups=2)


def louder(network, scale=10.0):
    """Weights large enough for logits that differ."""
    rng = np.random.default_rng(7)
    for name, parameter in network.parameters_and_names():
        value = parameter.asnumpy() * scale
        if "bias" in name or "beta" in name:
            value = rng.standard_normal(value.shape)
        if "gamma" in name:
            value = rng.uniform(0.5, 1.5, value.shape)
        parameter.set_data(Tensor(value.astype(np.float32)))
    return network


def torch_logits(network, video):
    """The same network from PyTorch's conv3d and group_norm: (b, c, t, h, w) -> (b, t2, h2, w2)."""
    weights = {name: torch.tensor(param.asnumpy()) for name, param in network.parameters_and_names()}
    config, y = network.config, torch.tensor(video)
    for i in range(config.layers + 2):
        name = f"convs.{i}" if i <= config.layers else "last"
        stride = (config.strides[i], 2, 2) if i < config.layers else 1
        padding = (config.time_kernel // 2, 1, 1)
        y = F.conv3d(y, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=stride, padding=padding)
        if i > config.layers:
            return y[:, 0].numpy()
        if f"norms.{i}.norm.gamma" in weights:
            b, c, t, h, w = y.shape
            affine = weights[f"norms.{i}.norm.gamma"], weights[f"norms.{i}.norm.beta"]
            y = F.group_norm(y.transpose(1, 2).reshape(b * t, c, h, w), config.norm_groups, *affine, 1e-6)
            y = y.reshape(b, t, c, h, w).transpose(1, 2)
        y = F.leaky_relu(y, 0.2)


def frames_first(video):
    return Tensor(np.ascontiguousarray(video.swapaxes(1, 2)))


@pytest.mark.parametrize("frames", [1, 5])
@pytest.mark.parametrize(
    "config", [CONFIG, PatchConfig(base_channels=4, layers=1, norm="none", time_kernel=1, time_strides=(2,))]
)
def test_logits_are_those_of_pytorchs_conv3d(pynative, video, config, frames):
    network = louder(PatchDiscriminator(config))
    x = video(2, 3, frames, 16, 20)
    logits, mask = network(frames_first(x), Tensor(np.ones((2, frames), np.float32)))
    want = torch_logits(network, x)
    np.testing.assert_allclose(logits.asnumpy(), want, atol=1e-4 * np.abs(want).max())
    assert mask.asnumpy().tolist() == np.ones((2, want.shape[1])).tolist()


def test_padding_changes_no_logit_and_has_no_gradient(pynative, video):
    network = louder(PatchDiscriminator(CONFIG))
    x, mask = video(2, 3, 7, 16, 16), np.ones((2, 7), np.float32)
    mask[0, 4:] = 0

    def total(frames, mask):
        logits, valid = network(frames, mask)
        return (logits.sum((2, 3)) * valid).sum(), logits, valid

    (_, logits, valid), gradient = ms.value_and_grad(total, has_aux=True)(frames_first(x), Tensor(mask))
    alone, valid_alone = network(frames_first(x[:1, :, :4]), Tensor(mask[:1, :4]))
    assert valid.asnumpy().tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]] and valid_alone.asnumpy().tolist() == [[1, 1]]
    np.testing.assert_allclose(logits.asnumpy()[:1, :2], alone.asnumpy(), rtol=1e-4, atol=1e-4)
    assert (gradient.asnumpy()[0, 4:] == 0).all() and (gradient.asnumpy()[0, :4] != 0).any((1, 2, 3)).all()


def test_channels_never_exceed_the_cap():
    wide = PatchConfig(base_channels=64, max_channels=256, layers=4, time_strides=(1, 2))
    assert wide.channels == (64, 128, 256, 256, 256) and wide.strides == (1, 2, 1, 1)
    network = PatchDiscriminator(PatchConfig(base_channels=8, max_channels=16, layers=3))
    widths = [conv.weight.shape[0] for conv in network.convs]
    assert widths == [8, 16, 16, 16] and network.last.weight.shape[:2] == (1, 16)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"base_channels": 12}, "norm_groups=8 must divide base_channels=12"),
        ({"time_kernel": 2}, "time_kernel=2 must be an odd number"),
        ({"time_strides": (1, 0)}, r"time_strides=\(1, 0\) must be numbers, 1 or above"),
        ({"max_channels": 0}, "max_channels=0 must be 1 or above"),
        ({"norm": "batch"}, "norm='batch': choose group or none"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        PatchConfig(**options)


def test_training_options_out_of_range_are_refused():
    for options in ({"start": 0}, {"lecam_decay": 1.0}, {"r1_weight": -1.0}, {"tubelet_size": (0, 8, 8)}):
        with pytest.raises(UserError, match=next(iter(options))):
            DiscriminatorConfig(**options)


def test_frames_too_small_for_the_layers_are_refused(pynative, video):
    with pytest.raises(ValueError, match="8 x 16 are too small for a discriminator of layers=2; give at least 12"):
        PatchDiscriminator(CONFIG)(frames_first(video(1, 3, 1, 8, 16)), Tensor(np.ones((1, 1), np.float32)))


class Given(nn.Cell):
    """A generator whose videos are its second input."""

    def construct(self, video, noise):
        return noise


def test_learns_to_tell_smooth_videos_from_noise():
    """Separable toy set: at least 95 % of held-out patches are judged rightly."""
    rng = np.random.default_rng(0)

    def batch(n=8):
        phase = rng.uniform(0, 6, (n, 3, 1, 1, 1))
        waves = np.sin(np.arange(16).reshape(1, 1, 1, 1, 16) / 3 + np.arange(3).reshape(1, 1, 3, 1, 1) + phase)
        real = np.broadcast_to(0.7 * waves, (n, 3, 3, 16, 16)) + 0.1 * rng.standard_normal((n, 3, 3, 16, 16))
        fake = 0.5 * rng.standard_normal((n, 3, 3, 16, 16))
        mask = np.ones((n, 3), np.float32)
        return [Tensor(np.ascontiguousarray(x, np.float32)) for x in (real, mask, fake)]

    network = PatchDiscriminator(CONFIG)
    loss = DiscriminatorLoss(Given(), Judge(network), "hinge")
    optimizer = nn.Adam(network.trainable_params(), 2e-3, 0.5, 0.9)

    class Step(nn.Cell):
        def __init__(self):
            super().__init__(auto_prefix=False)
            self.loss, self.optimizer = loss, optimizer
            self.gradient = ms.value_and_grad(loss, None, optimizer.parameters, has_aux=True)

        def construct(self, *inputs):
            values, gradients = self.gradient(*inputs)
            self.optimizer(gradients)
            return values

    step = Step()
    before = float(loss(*batch())[4].asnumpy())
    for _ in range(40):
        step(*batch())
    _, _, real, fake, accuracy = (float(x.asnumpy()) for x in loss(*batch(32)))
    assert before < 0.9 and accuracy > 0.95 and real > 0.3 > -0.3 > fake


def test_tubelets_are_the_cuts_at_their_places(pynative, video):
    x, mask = video(2, 5, 3, 9, 10), np.ones((2, 5), np.float32)  # frames first
    mask[0, 3:] = 0
    places = np.array([[[0, 1, 2], [1, 5, 6]], [[3, 0, 0], [2, 4, 3]]], np.int32)
    cuts, cut_mask = (y.asnumpy() for y in cut_tubelets(Tensor(x), Tensor(mask), Tensor(places), (2, 4, 3)))
    want = [x[i, t : t + 2, :, r : r + 4, c : c + 3] for i in range(2) for t, r, c in places[i]]
    np.testing.assert_allclose(cuts, np.stack(want), atol=1e-6)
    assert cut_mask.tolist() == [[1, 1]] * 4


def test_places_are_drawn_within_valid_frames_and_reach_everything():
    mask = np.zeros((3, 8), np.float32)
    mask[0], mask[1, :5], mask[2, :2] = 1, 1, 1
    places = draw_tubelets(np.random.default_rng(0), mask, 12, 10, 4000, (4, 6, 3))
    assert places.shape == (3, 4000, 3) and places.dtype == np.int32
    for row, last in zip(places, (4, 1, 0), strict=True):  # a clip of 2 frames gives what it has, then padding
        for axis, most in enumerate((last, 6, 7)):
            counts = np.bincount(row[:, axis], minlength=most + 1)
            assert len(counts) == most + 1
            assert counts.min() > 0.8 * 4000 / (most + 1)
    images = draw_tubelets(np.random.default_rng(0), np.ones((1, 1), np.float32), 4, 4, 5, (4, 6, 3))
    assert (images[..., :2] == 0).all()  # no larger than the frame


def test_judge_shows_real_and_made_videos_at_the_same_places(pynative, video):
    judge = Judge(PatchDiscriminator(CONFIG), 3, (2, 12, 12))
    x, mask = Tensor(video(2, 3, 4, 16, 16)), Tensor(np.ones((2, 4), np.float32))
    places = Tensor(draw_tubelets(np.random.default_rng(1), mask.asnumpy(), 16, 16, 3, (2, 12, 12)))
    cuts, cut_mask, weights = judge.show(x, mask, (places,))
    again, _, _ = judge.show(x + 1.0, mask, (places,))
    assert cuts.shape == (6, 2, 3, 12, 12) and cut_mask.shape == (6, 2)
    np.testing.assert_allclose(again.asnumpy() - cuts.asnumpy(), 1.0, atol=1e-5)
    np.testing.assert_allclose(weights.asnumpy(), [4 / 3] * 6, rtol=1e-6)


@pytest.mark.parametrize("tubelets", [0, 3])
def test_a_single_image_has_a_gradient_in_a_graph(tubelets):
    """Batches of one image have sizes of 1 on which gradients of mint.matmul do not compile; two of them have not."""
    judge = Judge(louder(PatchDiscriminator(CONFIG)), tubelets, (2, 16, 16))
    image = np.random.default_rng(3).standard_normal((1, 3, 1, 24, 24)).astype(np.float32)
    places = np.array([[[0, 0, 0], [0, 8, 3], [0, 2, 8]]], np.int32)

    class Squares(nn.Cell):
        def __init__(self):
            super().__init__()
            self.judge = judge

        def construct(self, video, mask, *rest):
            logits, _, _ = self.judge(video, mask, *rest)
            return (logits * logits).sum()

    def slope(video):
        rest = [Tensor(np.repeat(places, len(video), 0))] if tubelets else []
        return ms.grad(Squares(), 0)(Tensor(video), Tensor(np.ones((len(video), 1), np.float32)), *rest).asnumpy()

    alone, both = slope(image), slope(np.concatenate([image, -image]))
    assert np.abs(alone).max() > 1e-3
    np.testing.assert_allclose(alone[0], both[0], rtol=1e-4, atol=1e-5 * np.abs(both[0]).max())

"""The training objective is its formula, and frames that only fill a batch do not count."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, mint, nn

import mg.device
from mg.dataset.clips import latent_mask
from mg.models.tae.loss import TaeLoss, outlier_penalty

B, T, H, W, Z = 2, 11, 4, 6, 3


class Stub(nn.Cell):
    """A network whose outputs are given."""

    def __init__(self, reconstruction, mean, logvar):
        super().__init__()
        self.reconstruction, self.mean, self.logvar = Tensor(reconstruction), Tensor(mean), Tensor(logvar)

    def construct(self, x, noise):
        return self.reconstruction, self.mean + mint.exp(0.5 * self.logvar) * noise, self.mean, self.logvar


@pytest.fixture
def given(video):
    """video, mask (7 and 11 valid frames), noise, reconstruction, mean, logvar."""
    mask = np.zeros((B, T), np.float32)
    mask[0, :7], mask[1] = 1, 1
    latent = (B, Z, 2, 2, 3)
    rng = np.random.default_rng(5)
    noise, mean, logvar = (rng.standard_normal(latent).astype(np.float32) for _ in range(3))
    return video(B, 3, T, H, W), mask, noise, video(B, 3, T, H, W, seed=1), mean, logvar


def run(given, **options):
    video, mask, noise, *outputs = given
    loss = TaeLoss(Stub(*outputs), **options)
    inputs = (video, mask, latent_mask(mask, 8), noise)
    return [float(value.asnumpy()) for value in loss(*map(Tensor, inputs))]


def expected_terms(given, power):
    video, mask, _, rec, mean, logvar = (array.astype(np.float64) for array in given)
    frames = [(i, j) for i in range(B) for j in range(T) if mask[i, j]]
    error = np.mean([(np.abs(rec[i, :, j] - video[i, :, j]) ** power).mean() for i, j in frames])
    kl = 0.5 * (mean**2 + np.exp(logvar) - 1 - logvar)
    valid = kl[0, :, :1].sum() + kl[1].sum()  # the second latent frame of the first video holds padding only
    return error, valid / (len(frames) * 3 * H * W)


@pytest.mark.parametrize("mode", ["graph", "pynative"])
@pytest.mark.parametrize("reconstruction, power", [("l1", 1), ("l2", 2)])
def test_loss_is_the_formula(given, reconstruction, power, mode):
    mg.device.setup("CPU", mode)
    loss, frames, rec, kl = run(given, reconstruction=reconstruction, kl_weight=0.3)
    error, divergence = expected_terms(given, power)
    assert frames == 18
    np.testing.assert_allclose((rec, kl), (error, divergence), rtol=1e-5)
    np.testing.assert_allclose(loss, error + 0.3 * divergence, rtol=1e-5)


def test_kl_of_a_standard_normal_is_zero(given):
    given = (*given[:4], np.zeros_like(given[4]), np.zeros_like(given[5]))
    assert run(given)[3] == 0.0


def test_only_valid_frames_count(given):
    before = run(given, outlier_weight=1.0, outlier_r=1.0)
    video, mask, noise, rec, mean, logvar = (array.copy() for array in given)
    video[0, :, 7:], rec[0, :, 7:] = 0.9, -0.9
    mean[0, :, 1], logvar[0, :, 1] = 40.0, 3.0
    assert run((video, mask, noise, rec, mean, logvar), outlier_weight=1.0, outlier_r=1.0) == before
    rec[0, :, 6] += 0.5
    assert run((video, mask, noise, rec, mean, logvar), outlier_weight=1.0, outlier_r=1.0) != before


def test_padded_batch_is_the_mean_over_the_videos_frames(given):
    video, mask, noise, rec, mean, logvar = given
    whole = run(given)[2]
    first = run((video[:1, :, :7], mask[:1, :7], noise[:1, :, :1], rec[:1, :, :7], mean[:1, :, :1], logvar[:1, :, :1]))
    second = run(tuple(array[1:] for array in given))
    np.testing.assert_allclose(whole, (7 * first[2] + 11 * second[2]) / 18, rtol=1e-5)


def test_padding_has_no_gradient(given):
    video, mask, noise, rec, mean, logvar = given

    class Identity(nn.Cell):
        def construct(self, x, noise):
            return 0.5 * x, noise, noise, noise

    loss = TaeLoss(Identity())

    def objective(*inputs):
        return loss(*inputs)[0]

    gradient = ms.grad(objective)(*map(Tensor, (video, mask, latent_mask(mask, 8), noise))).asnumpy()
    assert (gradient[0, :, 7:] == 0).all()
    np.testing.assert_allclose(np.abs(gradient[0, :, :7]), 0.5 / (18 * 3 * H * W), rtol=1e-4)
    np.testing.assert_allclose(np.abs(gradient[1]), 0.5 / (18 * 3 * H * W), rtol=1e-4)


def test_batch_without_valid_frames_gives_zero(given):
    video, mask, *rest = given
    assert run((video, np.zeros_like(mask), *rest), outlier_weight=1.0)[:4] == [0, 0, 0, 0]


def penalty_by_loops(z, r):
    b, _, t, h, w = z.shape
    out = np.zeros((b, t))
    for i in range(b):
        for j in range(t):
            frame = z[i, :, j].astype(np.float64)
            centre, spread = frame.mean((1, 2)), np.linalg.norm(frame.std((1, 2)))
            for y in range(h):
                for x in range(w):
                    out[i, j] += max(np.linalg.norm(frame[:, y, x] - centre) - r * spread, 0) / (h * w)
    return out


@pytest.mark.parametrize("r", [0.5, 1.0, 3.0])
def test_outlier_penalty_is_the_formula(r):
    z = np.random.default_rng(3).standard_normal((2, Z, 3, 5, 7)).astype(np.float32)
    z[0, :, 1, 2, 3] = 30.0
    expected = penalty_by_loops(z, r)
    assert expected[0, 1] > 0.1
    np.testing.assert_allclose(outlier_penalty(Tensor(z), r).asnumpy(), expected, atol=1e-5)


def test_outlier_penalty_is_zero_within_r_and_scales_with_what_is_beyond():
    inside = np.tile(np.array([1.0, -1.0], np.float32), 8).reshape(1, 1, 1, 4, 4)  # std 1, every distance 1
    assert outlier_penalty(Tensor(inside), 1.001).asnumpy().tolist() == [[0.0]]
    np.testing.assert_allclose(outlier_penalty(Tensor(inside), 0.75).asnumpy(), 0.25, rtol=1e-5)
    spike = np.zeros((1, 1, 1, 10, 10), np.float32)
    spike[..., 4, 4] = 1.0
    one, three = (outlier_penalty(Tensor(scale * spike), 3.0).asnumpy() for scale in (1.0, 3.0))
    np.testing.assert_allclose(one, (0.99 - 3 * (0.01 * 0.99) ** 0.5) / 100, rtol=1e-4)
    np.testing.assert_allclose(three, 3 * one, rtol=1e-5)


def test_outlier_penalty_is_off_by_default_and_sees_the_sample(given):
    assert len(run(given)) == 4
    video, mask, noise, rec, mean, logvar = given
    z = mean + np.exp(0.5 * logvar) * noise
    per_frame = penalty_by_loops(z, 1.0)
    frames = mask.sum(1)  # a clip counts by its frames; the first has one valid latent, the second two
    expected = (frames[0] * per_frame[0, 0] + frames[1] * per_frame[1].mean()) / frames.sum()
    loss, _, error, kl, outlier = run(given, kl_weight=0.0, outlier_weight=10.0, outlier_r=1.0)
    np.testing.assert_allclose(outlier, expected, rtol=1e-4)
    np.testing.assert_allclose(loss, error + 10.0 * expected, rtol=1e-4)
    assert run((video, mask, 2 * noise, rec, mean, logvar), outlier_weight=1.0, outlier_r=1.0)[4] != outlier


def test_gradient_is_finite_at_constant_latents():
    constant = Tensor(np.full((1, Z, 2, 3, 3), 0.7, np.float32))

    def objective(z):
        return outlier_penalty(z, 3.0).sum()

    value, gradient = ms.value_and_grad(objective)(constant)
    assert float(value.asnumpy()) == 0.0
    assert np.isfinite(gradient.asnumpy()).all()


def test_noise_reaches_the_reconstruction_of_the_network(pynative, tae, video):
    x, ones = Tensor(video(1, 3, 5, 16, 16)), (Tensor(np.ones((1, 5), np.float32)), Tensor(np.ones((1, 1), np.float32)))
    loss = TaeLoss(tae, reconstruction="l2", kl_weight=0.0)
    quiet, loud = Tensor(np.zeros((1, 4, 1, 2, 2), np.float32)), Tensor(video(1, 4, 1, 2, 2))
    _, mean, _ = tae.encode(x)
    expected = ((tae.decode(mean, num_target_frames=5).asnumpy() - x.asnumpy()) ** 2).mean()
    np.testing.assert_allclose(loss(x, *ones, quiet)[0].asnumpy(), expected, rtol=1e-4)
    assert abs(float(loss(x, *ones, loud)[0].asnumpy()) - expected) > 1e-4


def test_unknown_reconstruction_is_refused(given):
    with pytest.raises(ValueError, match="reconstruction='huber': choose l1, l2, charbonnier"):
        TaeLoss(Stub(*given[3:]), reconstruction="huber")

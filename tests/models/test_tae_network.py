"""The autoencoder is its PyTorch twin in values and gradients, and keeps its promises about frames, sizes and noise."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor

import mg.device
from mg.models.tae import PRESETS, TAE_CONFIG, TemporalAutoencoder


def close(got, expected, atol=1e-4):
    np.testing.assert_allclose(got.asnumpy() if isinstance(got, Tensor) else got, expected, atol=atol)


@pytest.fixture(scope="module")
def reference(small, build):
    return build(dict(small, temporal_upsample_padding="zeros"))


@pytest.mark.slow
@pytest.mark.parametrize("padding, mode", [("replicate", "graph"), ("replicate", "pynative"), ("zeros", "pynative")])
def test_moments_and_pixels_are_torch(small, tae, reference, twin, video, padding, mode):
    net = tae if padding == "replicate" else reference
    peer, x = twin(dict(small, temporal_upsample_padding=padding)), video(2, 3, 9, 16, 16)
    with torch.no_grad():
        mean, logvar = peer.encode(torch.from_numpy(x))
        pixels = peer.decode(mean)
    mg.device.setup("CPU", mode)
    _, got_mean, got_logvar = net.encode(Tensor(x))
    close(got_mean, mean)
    close(got_logvar, logvar)
    close(net.decode(Tensor(mean.numpy())), pixels)


def torch_gradients(net, x, noise, weights):
    """Reconstruction and gradients of a weighted sum of it and of the moments."""
    mean, logvar = net.encode(torch.from_numpy(x))
    rec = net.decode(mean + torch.exp(0.5 * logvar) * torch.from_numpy(noise))[:, :, : x.shape[2]]
    loss = sum((torch.from_numpy(w) * y).sum() for w, y in zip(weights, (rec, mean, logvar), strict=True))
    loss.backward()
    return rec.detach(), {name: parameter.grad.numpy() for name, parameter in net.named_parameters()}


SHALLOW = {"ch_mult": [1, 2], "temporal_downsample_level": [0], "temporal_upsample_level": [1]}


# All levels op by op, two levels as a graph, which takes long to compile.
@pytest.mark.slow
@pytest.mark.parametrize(
    "mode, change, recompute",
    [("pynative", {}, False), ("pynative", SHALLOW, True), ("graph", SHALLOW, False), ("graph", SHALLOW, True)],
)
def test_gradients_of_all_parameters_are_torch(small, build, twin, video, mode, change, recompute):
    mg.device.setup("CPU", mode)
    config = dict(small, **change)
    net = build(config, use_recompute=recompute)
    latent = (1, 4, *net.latent_size(5, 16, 16))
    x, noise = video(1, 3, 5, 16, 16), video(*latent, seed=1)
    weights = video(1, 3, 5, 16, 16, seed=2), video(*latent, seed=3), video(*latent, seed=4)
    rec, expected = torch_gradients(twin(config), x, noise, weights)
    by_rec, by_mean, by_logvar = map(Tensor, weights)

    def objective(x, noise):
        rec, _, mean, logvar = net.construct(x, noise)
        return (by_rec * rec).sum() + (by_mean * mean).sum() + (by_logvar * logvar).sum(), rec

    parameters = net.trainable_params()
    run = ms.value_and_grad(objective, None, parameters, has_aux=True)
    (_, got), gradients = run(Tensor(x), Tensor(noise))
    close(got, rec)
    assert {parameter.name for parameter in parameters} == set(expected)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        want = expected[parameter.name]
        scale = max(1.0, np.abs(want).max())
        np.testing.assert_allclose(gradient.asnumpy() / scale, want / scale, atol=2e-4, err_msg=parameter.name)


def test_latent_sizes_round_up(tae):
    for n in range(1, 34):
        assert tae.latent_size(n, n + 1, n + 2) == tuple(int(np.ceil(m / 8)) for m in (n, n + 1, n + 2))
        assert TemporalAutoencoder.get_latent_size((n, n, 16)) == (int(np.ceil(n / 8)),) * 2 + (2,)


@pytest.mark.parametrize("frames", [1, 2, 7, 8, 9, 16, 17, 33])
def test_any_number_of_frames(pynative, tae, twin, small, video, frames):
    x, peer = video(1, 3, frames, 8, 8), twin(small)
    with torch.no_grad():
        mean, _ = peer.encode(torch.from_numpy(x))
        pixels = peer.decode(mean)
    z, got, _ = tae.encode(Tensor(x))
    assert z.shape == (1, 4, -(-frames // 8), 1, 1)
    close(got, mean)
    rec = tae.decode(got, num_target_frames=frames)
    assert rec.shape == x.shape
    close(rec, pixels[:, :, :frames])


@pytest.mark.parametrize("frames", [1, 3, 4, 5, 9])
def test_four_frames_per_latent_frame(pynative, build, twin, small, video, frames):
    config = {**small, "temporal_downsample_level": [0, 1], "temporal_upsample_level": [2, 1]}
    x, peer = video(1, 3, frames, 8, 8), twin(config)
    with torch.no_grad():
        mean, _ = peer.encode(torch.from_numpy(x))
        pixels = peer.decode(mean)
    net = build(config, use_tile=True, encode_tile=4, decode_tile=4, decode_overlap=0) if frames == 4 else build(config)
    _, got, _ = net.encode(Tensor(x))
    assert got.shape == (1, 4, -(-frames // 4), 1, 1) == (1, 4, *net.latent_size(frames, 8, 8))
    close(got, mean)
    close(net.decode(got, num_target_frames=frames), pixels[:, :, :frames])


def test_sides_are_padded_with_their_edges_and_cut_again(pynative, tae, video):
    x = video(1, 3, 2, 13, 19)
    padded = np.pad(x, [(0, 0)] * 3 + [(0, 3), (0, 5)], mode="edge")
    _, mean, logvar = tae.encode(Tensor(x))
    _, whole_mean, whole_logvar = tae.encode(Tensor(padded))
    close(mean, whole_mean.asnumpy(), atol=1e-6)
    close(logvar, whole_logvar.asnumpy(), atol=1e-6)

    whole = tae.decode(whole_mean).asnumpy()
    assert whole.shape == (1, 3, 8, 16, 24)
    close(tae.decode(mean), whole[..., :13, :19], atol=1e-6)
    close(tae.decode(mean, target_size=(16, 20)), whole[..., :16, :20], atol=1e-6)
    close(tae.decode(Tensor(mean.asnumpy())), whole, atol=1e-6)


def test_image_is_the_first_frame(pynative, tae, video):
    z = Tensor(video(1, 4, 1, 2, 2))
    image = tae.decode(z, num_target_frames=1)
    assert image.shape == (1, 3, 1, 16, 16)
    close(image, tae.decode(z).asnumpy()[:, :, :1], atol=0)


def test_sample_is_mean_plus_scaled_noise(pynative, tae, video):
    x, noise = Tensor(video(1, 3, 3, 16, 16)), video(1, 4, 1, 2, 2, seed=8)
    z, mean, logvar = tae.encode(x, Tensor(noise))
    close(z, mean.asnumpy() + np.exp(0.5 * logvar.asnumpy()) * noise, atol=1e-6)


def test_own_noise_is_a_function_of_the_seed_and_the_call(pynative, small, build, video):
    x = Tensor(video(1, 3, 1, 16, 16))
    first, again, other = (build(small, seed=seed) for seed in (3, 3, 4))
    draws = [first.encode(x)[0].asnumpy() for _ in range(2)]
    np.testing.assert_array_equal(again.encode(x)[0].asnumpy(), draws[0])
    np.testing.assert_array_equal(again.encode(x)[0].asnumpy(), draws[1])
    assert np.abs(draws[0] - draws[1]).max() > 1e-3
    assert np.abs(other.encode(x)[0].asnumpy() - draws[0]).max() > 1e-3


def test_deterministic_sample_is_the_mean(pynative, build, video):
    net, x, noise = build(sample_deterministic=True), Tensor(video(1, 3, 1, 16, 16)), Tensor(video(1, 4, 1, 2, 2))
    z, mean, _ = net.encode(x, noise)
    np.testing.assert_array_equal(z.asnumpy(), mean.asnumpy())
    np.testing.assert_array_equal(net(x, noise)[1].asnumpy(), mean.asnumpy())


def test_construct_is_encode_then_decode(pynative, tae, video):
    x, noise = Tensor(video(1, 3, 5, 12, 16)), Tensor(video(1, 4, 1, 2, 2))
    rec, z, mean, logvar = tae(x, noise)
    assert rec.shape == x.shape
    z2, mean2, logvar2 = tae.encode(x, noise)
    for got, expected in ((z, z2), (mean, mean2), (logvar, logvar2)):
        close(got, expected.asnumpy(), atol=1e-5)
    close(rec, tae.decode(z2, num_target_frames=5).asnumpy(), atol=1e-5)


def test_still_video_stays_still(pynative, tae, reference, video):
    x = np.repeat(video(1, 3, 1, 16, 16), 24, 2)
    _, mean, _ = tae.encode(Tensor(x))
    latent = mean.asnumpy()
    close(latent, np.repeat(latent[:, :, :1], 3, 2), atol=1e-5)
    pixels = tae.decode(mean).asnumpy()
    close(pixels, np.repeat(pixels[:, :, :1], 24, 2), atol=1e-5)
    # The reference's zero padding darkens the ends: what its weights were trained with.
    pixels = reference.decode(mean).asnumpy()
    assert np.abs(pixels[:, :, 0] - pixels[:, :, 12]).max() > 1e-2


def test_batch_is_independent_videos(pynative, tae, video):
    x = video(2, 3, 9, 16, 16)
    _, mean, logvar = tae.encode(Tensor(x))
    rec = tae.decode(mean)
    for i in range(2):
        _, one_mean, one_logvar = tae.encode(Tensor(x[i : i + 1]))
        close(mean.asnumpy()[i : i + 1], one_mean.asnumpy(), atol=1e-5)
        close(logvar.asnumpy()[i : i + 1], one_logvar.asnumpy(), atol=1e-5)
        close(rec.asnumpy()[i : i + 1], tae.decode(one_mean).asnumpy(), atol=1e-5)


def test_temporal_attention_sees_the_neighbouring_frames(pynative, tae, video):
    # Mirroring a frame keeps the norm's statistics, so only the attention can carry the change to other frames.
    cell = tae.encoder.mid.attn_1[1]
    x = video(1, 16, 3, 2, 4)
    for changed, watched in ((0, 1), (2, 1), (1, 0), (1, 2)):
        mirrored = x.copy()
        mirrored[:, :, changed] = mirrored[:, :, changed, :, ::-1]
        before, after = cell(Tensor(x)).asnumpy(), cell(Tensor(mirrored)).asnumpy()
        assert np.abs(before - after)[:, :, watched].max() > 1e-3


def test_without_output_projection_only_space_attends(pynative, small, build, video):
    config = dict(small, attn_type="spat_only")
    vanilla, spatial = build(small), build(config)
    for name, parameter in vanilla.parameters_and_names():
        if ".attn_1.1.proj_out." in name:
            parameter.set_data(Tensor(np.zeros(parameter.shape, np.float32)))
    x, z = Tensor(video(1, 3, 9, 16, 16)), Tensor(video(1, 4, 2, 2, 2))
    close(vanilla.encode(x)[1], spatial.encode(x)[1].asnumpy(), atol=1e-5)
    close(vanilla.decode(z), spatial.decode(z).asnumpy(), atol=1e-5)


def test_quant_convs_stand_between_the_halves(pynative, small, build, tae, video):
    net = build(dict(small, use_quant_conv=True, use_post_quant_conv=True))
    weights = {name: parameter.asnumpy() for name, parameter in net.parameters_and_names()}

    def pointwise(name, x):
        for part in ("conv_spat", "conv_temp"):
            w = weights[f"{name}.{part}.weight"]
            x = np.einsum("oi,bithw->bothw", w.reshape(w.shape[:2]), x)
            x = x + weights[f"{name}.{part}.bias"][:, None, None, None]
        return x

    x, z = Tensor(video(1, 3, 2, 16, 16)), video(1, 4, 1, 2, 2)
    _, mean, logvar = tae.encode(x)
    moments = pointwise("quant_conv", np.concatenate([mean.asnumpy(), logvar.asnumpy()], 1))
    _, got_mean, got_logvar = net.encode(x)
    close(got_mean, moments[:, :4], atol=1e-5)
    close(got_logvar, moments[:, 4:], atol=1e-5)
    close(net.decode(Tensor(z)), tae.decode(Tensor(pointwise("post_quant_conv", z))).asnumpy(), atol=1e-5)


def test_log_variance_is_clamped(pynative, small, build, video):
    net = build(small)
    bias = net.encoder.conv_out.conv_temp.bias
    bias.set_data(Tensor(np.array([0] * 4 + [-99, 99, 0, 0], np.float32)))
    _, _, logvar = net.encode(Tensor(video(1, 3, 1, 16, 16)))
    assert (logvar.asnumpy()[:, 0] == -30).all() and (logvar.asnumpy()[:, 1] == 20).all()
    assert np.abs(logvar.asnumpy()[:, 2:]).max() < 15


@pytest.mark.slow
def test_half_precision_is_near(pynative, build, tae, video):
    net, x = build(dtype="fp16"), Tensor(video(1, 3, 9, 16, 16))
    _, mean, logvar = net.encode(x)
    rec = net.decode(mean)
    assert {str(y.dtype) for y in (mean, logvar, rec)} == {"Float32"}  # moments and pixels are FP32 again
    close(mean, tae.encode(x)[1].asnumpy(), atol=0.02)
    close(rec, tae.decode(mean).asnumpy(), atol=0.02)


def test_attributes_follow_the_config(tae):
    assert (tae.scale_factor, tae.shift_factor) == (0.85, 0.03)
    assert (tae.time_compress, tae.spatial_compress, tae.out_channels) == (8, 8, 4)
    assert (TAE_CONFIG["z_channels"], TAE_CONFIG["scaling_factor"], TAE_CONFIG["shift_factor"]) == (16, 1.5305, 0.0609)
    assert TAE_CONFIG is PRESETS["sd35"]


@pytest.mark.parametrize(
    "shape, words",
    [((3, 4, 16, 16), "x has shape"), ((1, 4, 4, 16, 16), r"give \(batch, 3"), ((1, 3, 0, 8, 8), "0, 8, 8")],
)
def test_bad_videos_are_refused(tae, shape, words):
    for method in (tae.encode, tae):
        with pytest.raises(ValueError, match=words):
            method(Tensor(np.zeros(shape, np.float32)) if 0 not in shape else ms.mint.zeros(shape))


def test_bad_latents_and_targets_are_refused(tae, video):
    with pytest.raises(ValueError, match="z has shape"):
        tae.decode(Tensor(video(1, 3, 1, 2, 2)))
    z = Tensor(video(1, 4, 2, 2, 2))
    with pytest.raises(ValueError, match="num_target_frames=17: these latents decode to 16"):
        tae.decode(z, num_target_frames=17)
    with pytest.raises(ValueError, match="num_target_frames=0"):
        tae.decode(z, num_target_frames=0)
    with pytest.raises(ValueError, match="width=17"):
        tae.decode(z, target_size=(16, 17))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"encode_overlap": 8}, "encode_overlap=8"),
        ({"encode_tile": 12}, "encode_tile=12: use a multiple of 8"),
        ({"decode_tile": 0}, "decode_tile=0"),
        ({"decode_overlap": 4}, "decode_overlap=4"),
        ({"decode_overlap": 32}, "decode_overlap=32: it must be below decode_tile=32"),
        ({"spatial_tile": 60}, "spatial_tile=60"),
        ({"spatial_overlap": 512}, "spatial_overlap=512: it must be below"),
        ({"dtype": "fp8"}, "dtype=fp8"),
    ],
)
def test_bad_options_are_refused(small, options, words):
    with pytest.raises(ValueError, match=words):
        TemporalAutoencoder(small, **options)

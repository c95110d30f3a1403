"""A fresh autoencoder treats the frames of a still video as images, and is a function of its seed."""

import numpy as np
from mindspore import Tensor

from mg.models.tae import PRESETS, TemporalAutoencoder
from mg.models.tae.init import INITIAL_LOGVAR, initial_value


def parameters(net):
    return {name: parameter.asnumpy() for name, parameter in net.parameters_and_names()}


def test_values_are_a_function_of_seed_and_name(small):
    first, again, other = (parameters(TemporalAutoencoder(small, seed=seed)) for seed in (1, 1, 2))
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name])
    drawn = [name for name, value in first.items() if not np.array_equal(value, other[name])]
    assert {name for name in first if name.endswith((".conv_spat.weight", ".to_q.weight"))} <= set(drawn)
    assert not [name for name in drawn if name.endswith((".gamma", ".beta"))]
    a, b = "decoder.up.0.block.0.conv1.conv_spat.weight", "decoder.up.0.block.1.conv1.conv_spat.weight"
    assert first[a].shape == first[b].shape and np.abs(first[a] - first[b]).max() > 1e-3


def test_weights_keep_the_variance(small):
    net = parameters(TemporalAutoencoder(dict(small, ch=32), seed=0))
    weight = net["encoder.down.3.block.0.conv1.conv_spat.weight"]
    fan_in = 64 * 9
    np.testing.assert_allclose(weight.var(), 1 / fan_in, rtol=0.03)
    assert 0.99 * (3 / fan_in) ** 0.5 < np.abs(weight).max() <= (3 / fan_in) ** 0.5  # uniform
    assert abs(weight.mean()) < 3 / (fan_in * weight.size) ** 0.5


def test_norms_are_the_identity_and_biases_zero(small):
    net = parameters(TemporalAutoencoder(small))
    for name, value in net.items():
        if name.endswith(".gamma"):
            assert (value == 1).all(), name
        elif name == "encoder.conv_out.conv_temp.bias":
            assert value.tolist() == [0.0] * 4 + [INITIAL_LOGVAR] * 4
        elif value.ndim == 1 and not name.endswith(".conv_in.conv_temp.bias"):
            assert (value == 0).all(), name


def test_temporal_convolutions_pass_the_middle_frame(small):
    net = parameters(TemporalAutoencoder(small))
    weight = net["encoder.conv_in.conv_temp.weight"]
    np.testing.assert_array_equal(weight[:, :, 0, 1], np.eye(8))
    assert (weight[..., [0, 2]] == 0).all()
    # Resampling weighs neighbours, channel by channel, and keeps a constant.
    weight = net["encoder.down.0.downsample_temp.conv.weight"]
    np.testing.assert_array_equal(weight[:, :, 0].sum(-1), np.eye(8))
    np.testing.assert_array_equal(weight, weight[..., ::-1])


def test_residual_blocks_start_as_their_shortcuts(pynative, small, video):
    block = TemporalAutoencoder(small).encoder.down[0].block[0]
    x = video(1, 8, 3, 4, 4)
    np.testing.assert_array_equal(block(Tensor(x)).asnumpy(), x)


def test_temporal_attention_adds_nothing_unless_the_reference_is_asked_for():
    from mg.models.tae.config import TaeConfig

    name, shape = "encoder.mid.attn_1.1.proj_out.weight", (8, 8)
    ours, theirs = (initial_value(name, shape, TaeConfig.from_mapping(PRESETS[p]), 0) for p in ("sd35", "reference"))
    assert (ours == 0).all() and np.abs(theirs).max() > 0.1


def test_fresh_network_sees_a_still_video_as_one_image(pynative, small, video):
    net = TemporalAutoencoder(small, seed=5)
    image = video(1, 3, 1, 16, 16)
    _, still, logvar = net.encode(Tensor(np.repeat(image, 9, 2)))
    _, alone, _ = net.encode(Tensor(image))
    assert still.shape[2] == 2
    np.testing.assert_allclose(still.asnumpy(), np.repeat(alone.asnumpy(), 2, 2), atol=1e-5)
    # Little sampling noise at first.
    assert abs(logvar.asnumpy().mean() - INITIAL_LOGVAR) < 1.5

    frames = net.decode(alone).asnumpy()
    np.testing.assert_allclose(frames, np.repeat(frames[:, :, :1], 8, 2), atol=1e-6)
    assert frames.std() > 1e-3

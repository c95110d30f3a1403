"""Weights files: which network they belong to, what is forgiven and what is refused."""

import numpy as np
import pytest
from mindspore import Tensor

from mg.errors import UserError
from mg.models.tae import PRESETS, TemporalAutoencoder
from mg.models.tae.adapter import export_reference, parameter_shapes
from mg.models.tae.config import TaeConfig
from mg.models.tae.loading import config_of, from_checkpoint, metadata_of
from mg.weights import write_weights

# What files without metadata are taken for: norm groups and the latents' scale are the defaults.
PLAIN = dict(PRESETS["sd35"], ch=32, ch_mult=[1, 1, 2, 2], num_res_blocks=1, z_channels=4)


def assert_holds(net, tensors):
    for name, parameter in net.parameters_and_names():
        np.testing.assert_array_equal(parameter.asnumpy(), tensors[name], err_msg=name)


def assert_config(net, config):
    assert net.config == TaeConfig.from_mapping(config)


@pytest.fixture(scope="module")
def tensors(weights_for):
    return weights_for(parameter_shapes(PLAIN))


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_metadata_tell_the_configuration(tmp_path, small, weights_for, suffix):
    config = dict(small, tile_blend="uniform", scaling_factor=0.7, shift_factor=-0.2)
    tensors = weights_for(parameter_shapes(config))
    path = tmp_path / f"tae{suffix}"
    write_weights(path, tensors, metadata_of(TaeConfig.from_mapping(config)))
    net = from_checkpoint(str(path), sample_deterministic=True)
    assert_config(net, config)
    assert_holds(net, tensors)
    assert (net.scale_factor, net.shift_factor, net.sample_deterministic) == (0.7, -0.2, True)


@pytest.mark.parametrize("prefix", ["", "autoencoder.", "_backbone.", "autoencoder._backbone."])
def test_shapes_tell_the_configuration(tmp_path, tensors, prefix):
    path = tmp_path / "tae.safetensors"
    write_weights(path, {prefix + name: value for name, value in tensors.items()})
    net = from_checkpoint(str(path))
    assert_config(net, PLAIN)
    assert_holds(net, tensors)


@pytest.mark.parametrize(
    "change",
    [
        {"attn_type": "spat_only"},
        {"in_channels": 1, "out_ch": 1},
        {"use_quant_conv": True, "use_post_quant_conv": True},
        {"ch_mult": [1, 2], "temporal_downsample_level": [0], "temporal_upsample_level": [1]},
        {"temporal_downsample_level": [1, 2], "temporal_upsample_level": [3, 2]},
    ],
)
def test_shapes_tell_other_configurations(tmp_path, weights_for, change):
    config = dict(PLAIN, **change)
    write_weights(tmp_path / "tae.safetensors", weights_for(parameter_shapes(config)))
    assert TaeConfig.from_mapping(config_of(str(tmp_path / "tae.safetensors"))) == TaeConfig.from_mapping(config)


def test_unused_tensors_tell_the_reference(tmp_path, weights_for):
    config = dict(PLAIN, **{key: PRESETS["reference"][key] for key in ("temporal_upsample_padding", "tile_blend")})
    config["zero_init_temporal_attention"] = False
    tensors = weights_for(parameter_shapes(config))
    path = tmp_path / "tae.ckpt"
    write_weights(path, {f"autoencoder.{name}": value for name, value in export_reference(tensors, config).items()})
    net = from_checkpoint(str(path))
    assert_config(net, config)
    assert_holds(net, tensors)


def test_a_given_configuration_comes_first(tmp_path, small, weights_for):
    tensors = weights_for(parameter_shapes(small))
    write_weights(tmp_path / "tae.safetensors", tensors)
    net = from_checkpoint(str(tmp_path / "tae.safetensors"), small)
    assert_config(net, small)
    assert_holds(net, tensors)


def test_half_precision_files_load_into_fp32(tmp_path, small, weights_for):
    tensors = weights_for(parameter_shapes(small))
    write_weights(tmp_path / "tae.safetensors", tensors, dtype="fp16")
    net = TemporalAutoencoder(small, pretrained=str(tmp_path / "tae.safetensors"))
    assert_holds(net, {name: value.astype(np.float16).astype(np.float32) for name, value in tensors.items()})


def test_all_misfits_are_told_at_once_and_nothing_is_set(tmp_path, small, weights_for):
    tensors = weights_for(parameter_shapes(small))
    del tensors["encoder.norm_out.beta"]
    tensors["encoder.extra.weight"] = np.zeros(3, np.float32)
    tensors["decoder.norm_out.gamma"] = np.zeros(5, np.float32)
    path = tmp_path / "tae.safetensors"
    write_weights(path, tensors)
    net = TemporalAutoencoder(small, seed=3)
    before = {name: parameter.asnumpy().copy() for name, parameter in net.parameters_and_names()}
    with pytest.raises(UserError) as error:
        net.load(str(path))
    message = str(error.value)
    assert "\n" not in message and str(path) in message
    assert "1 missing: encoder.norm_out.beta" in message
    assert "1 unexpected: encoder.extra.weight" in message
    assert "decoder.norm_out.gamma (5,) instead of (8,)" in message
    assert_holds(net, before)


def test_nan_is_refused_by_name(tmp_path, small, weights_for):
    tensors = weights_for(parameter_shapes(small))
    tensors["decoder.conv_in.conv_temp.bias"][2] = np.nan
    write_weights(tmp_path / "tae.safetensors", tensors)
    with pytest.raises(UserError, match=r"tae.safetensors: NaN or infinity in decoder.conv_in.conv_temp.bias"):
        TemporalAutoencoder(small, pretrained=str(tmp_path / "tae.safetensors"))


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_truncated_file_is_refused(tmp_path, tensors, suffix):
    path = tmp_path / f"tae{suffix}"
    write_weights(path, tensors)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=f"tae{suffix}: damaged"):
        from_checkpoint(str(path))


@pytest.mark.parametrize(
    "foreign",
    [
        {"layers.0.attention.wq.weight": (8, 8)},
        {"encoder.conv_in.weight": (32, 3, 3, 3), "decoder.conv_in.weight": (64, 4, 3, 3)},
        {"encoder.conv_in.conv_spat.weight": ()},
        {"encoder.conv_in.conv_spat.weight": (8, 3, 3, 3), "decoder.conv_in.conv_spat.weight": (8, 4, 3, 3)},
    ],
)
def test_another_models_file_is_refused(tmp_path, foreign):
    path = tmp_path / "other.safetensors"
    write_weights(path, {name: np.ones(shape, np.float32) for name, shape in foreign.items()})
    with pytest.raises(UserError, match="other.safetensors.*not the weights of a temporal autoencoder"):
        from_checkpoint(str(path))


def test_unknown_norm_groups_are_asked_for(tmp_path, small, weights_for):
    write_weights(tmp_path / "tae.safetensors", weights_for(parameter_shapes(small)))
    with pytest.raises(UserError, match="tae.safetensors: its widths .* 32 norm groups.*give the configuration"):
        from_checkpoint(str(tmp_path / "tae.safetensors"))


@pytest.mark.parametrize("text", ["{", '{"channels": 3}', '{"ch": 0}', "[1]", '{"ch": "many"}'])
def test_damaged_metadata_are_refused(tmp_path, tensors, text):
    path = tmp_path / "tae.safetensors"
    write_weights(path, tensors, {"mg.tae_config": text})
    with pytest.raises(UserError, match="tae.safetensors: .*mg.tae_config"):
        from_checkpoint(str(path))


def test_loaded_network_computes_what_the_saved_one_did(pynative, tmp_path, small, tae, video):
    x = Tensor(video(1, 3, 3, 16, 16))
    path = tmp_path / "tae.safetensors"
    tensors = {name: parameter.asnumpy() for name, parameter in tae.parameters_and_names()}
    write_weights(path, tensors, metadata_of(tae.config))
    for got, expected in zip(from_checkpoint(str(path)).encode(x)[1:], tae.encode(x)[1:], strict=True):
        np.testing.assert_array_equal(got.asnumpy(), expected.asnumpy())

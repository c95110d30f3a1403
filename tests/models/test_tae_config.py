"""Configurations: presets, defaults and refusals."""

from dataclasses import FrozenInstanceError, fields

import pytest

from mg.models.tae.config import PRESETS, TAE_CONFIG, TaeConfig


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_complete_configurations(name):
    preset = PRESETS[name]
    assert set(preset) == {field.name for field in fields(TaeConfig)}
    config = TaeConfig.from_mapping(preset)
    assert {key: list(v) if isinstance(v := getattr(config, key), tuple) else v for key in preset} == preset
    assert (config.time_compression, config.spatial_compression) == (8, 8)


def test_reference_differs_in_its_three_deviations():
    different = {key: PRESETS["reference"][key] for key in TAE_CONFIG if PRESETS["reference"][key] != TAE_CONFIG[key]}
    assert different == {
        "temporal_upsample_padding": "zeros",
        "tile_blend": "uniform",
        "zero_init_temporal_attention": False,
    }


def test_presets_can_be_changed_as_dicts():
    config = TaeConfig.from_mapping(dict(PRESETS["reference"], ch=32))
    assert (config.ch, config.ch_mult, config.temporal_upsample_padding) == (32, (1, 2, 4, 4), "zeros")
    assert PRESETS["reference"]["ch"] == 128


def test_keys_left_out_keep_their_defaults():
    config = TaeConfig.from_mapping({"ch": 64})
    assert config == TaeConfig.from_mapping(dict(TAE_CONFIG, ch=64))
    assert (config.scaling_factor, config.z_channels) == (1.5305, 16)


def test_compression_counts_the_levels():
    config = TaeConfig.from_mapping(
        {"ch_mult": [1, 2, 4], "temporal_downsample_level": [1], "temporal_upsample_level": [2]}
    )
    assert (config.spatial_compression, config.time_compression) == (4, 2)


def test_a_configuration_does_not_change():
    with pytest.raises(FrozenInstanceError):
        TaeConfig.from_mapping({}).ch = 1


@pytest.mark.parametrize(
    "change, words",
    [
        ({"channels": 3}, r"unknown TAE config keys \['channels'\]; known keys are"),
        ({"double_z": False}, "double_z=False"),
        ({"attn_resolutions": [16]}, r"attn_resolutions=\[16\]"),
        ({"dropout": 0.1}, "dropout=0.1"),
        ({"attn_type": "linear"}, "attn_type='linear'.*vanilla"),
        ({"temporal_upsample_padding": "reflect"}, "temporal_upsample_padding='reflect'.*replicate"),
        ({"tile_blend": "cosine"}, "tile_blend='cosine'.*linear"),
        ({"ch": 0}, "ch=0"),
        ({"norm_groups": 0}, "norm_groups=0"),
        ({"num_res_blocks": 0}, "num_res_blocks=0"),
        ({"ch_mult": []}, "ch_mult="),
        ({"ch_mult": [1, 0, 4, 4]}, "ch_mult="),
        ({"temporal_downsample_level": [0, 1, 3]}, r"temporal_downsample_level=\[0, 1, 3\]: use 0..2"),
        ({"temporal_upsample_level": [0, 1, 2]}, r"temporal_upsample_level=\[0, 1, 2\]: use 1..3"),
        ({"temporal_upsample_level": [3, 2]}, "same length"),
    ],
)
def test_bad_values_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        TaeConfig.from_mapping(change)

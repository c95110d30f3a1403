"""The reference's own numbers and names (fp32, made with its code and weights by formula)."""

import re

import numpy as np
import pytest
from mindspore import Tensor

import mg.device
from mg.models.tae import PRESETS, TemporalAutoencoder
from mg.models.tae.adapter import parameter_shapes


def listed(path):
    """Names and shapes of a parameter list of the reference, its unused tensors left out."""
    lines = (line.split(" ", 1) for line in path.read_text().splitlines())
    shapes = {name: tuple(int(n) for n in re.findall(r"\d+", shape)) for name, shape in lines}
    return {name: shape for name, shape in shapes.items() if ".temb_proj." not in name}


@pytest.fixture(scope="module")
def reference(build):
    return build(dict(PRESETS["reference"], ch=32))


# Graph mode once, op by op otherwise: compiling two graphs per length takes long.
@pytest.mark.slow
@pytest.mark.parametrize("frames, mode", [(1, "pynative"), (4, "pynative"), (9, "pynative"), (9, "graph")])
def test_values_are_those_of_the_reference(root, reference, frames, mode):
    mg.device.setup("CPU", mode)
    with np.load(root / "tests" / "golden" / "tae_ch32.npz") as golden:
        _, mean, logvar = reference.encode(Tensor(golden[f"x{frames}"]))
        np.testing.assert_allclose(mean.asnumpy(), golden[f"mean{frames}"], atol=1e-4)
        np.testing.assert_allclose(logvar.asnumpy(), golden[f"logvar{frames}"], atol=1e-4)
        rec = reference.decode(Tensor(golden[f"mean{frames}"]))
        np.testing.assert_allclose(rec.asnumpy(), golden[f"rec{frames}"], atol=1e-4)


@pytest.mark.parametrize("preset", ["sd35", "reference"])
def test_names_and_shapes_are_those_of_the_reference(root, preset):
    expected = listed(root / "tests" / "golden" / "tae_params.txt")
    assert len(expected) > 200
    assert parameter_shapes(PRESETS[preset]) == expected


def test_the_network_has_the_parameters_it_is_said_to_have(root, reference):
    built = {name: tuple(parameter.shape) for name, parameter in reference.parameters_and_names()}
    assert built == listed(root / "tests" / "golden" / "tae_ch32_params.txt")
    assert list(built) == list(parameter_shapes(dict(PRESETS["reference"], ch=32)))


@pytest.mark.parametrize(
    "change",
    [
        {"attn_type": "spat_only"},
        {"use_quant_conv": True, "use_post_quant_conv": True},
        {"num_res_blocks": 2, "ch_mult": [1, 2, 1], "temporal_downsample_level": [1], "temporal_upsample_level": [1]},
    ],
)
def test_parameter_shapes_follow_the_config(small, change):
    config = dict(small, **change)
    net = TemporalAutoencoder(config)
    built = {name: tuple(parameter.shape) for name, parameter in net.parameters_and_names()}
    assert built == parameter_shapes(config)
    assert {parameter.name for parameter in net.trainable_params()} == set(built)

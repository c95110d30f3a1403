"""The PyTorch twin gives the reference's numbers: only then is its speed a fair measure."""

import importlib.util
import zlib

import numpy as np
import pytest
import torch

CONFIG = {
    "ch": 32,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "z_channels": 16,
    "in_channels": 3,
    "out_ch": 3,
    "norm_groups": 32,
    "attn_type": "vanilla",
    "temporal_upsample_padding": "zeros",
    "temporal_downsample_level": [0, 1, 2],
    "temporal_upsample_level": [3, 2, 1],
}


@pytest.fixture(scope="module")
def torch_tae(root):
    spec = importlib.util.spec_from_file_location("torch_tae", root / "benchmarks" / "torch_tae.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def formula_weights(shapes):
    """The weights behind tests/golden/tae_ch32.npz: noise seeded by each name, scaled by fan-in."""
    tensors = {}
    for name, shape in shapes.items():
        noise = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF).standard_normal(shape).astype(np.float32)
        scaled = noise / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else noise * 0.1
        tensors[name] = (scaled + name.endswith("gamma")).astype(np.float32)
    return tensors


def test_values_are_the_reference_ones(torch_tae, root):
    net = torch_tae.TorchTAE(CONFIG)
    net.load_arrays(formula_weights({name: tuple(value.shape) for name, value in net.named_parameters()}))
    with np.load(root / "tests" / "golden" / "tae_ch32.npz") as golden, torch.no_grad():
        for frames in (1, 4, 9):
            mean, logvar = net.encode(torch.from_numpy(golden[f"x{frames}"]))
            np.testing.assert_allclose(mean, golden[f"mean{frames}"], atol=1e-4)
            np.testing.assert_allclose(logvar, golden[f"logvar{frames}"], atol=1e-4)
            np.testing.assert_allclose(net.decode(mean), golden[f"rec{frames}"], atol=1e-4)


def test_padding_of_the_upsampler_matters_only_at_the_ends(torch_tae):
    x = torch.randn(1, 4, 6, 2, 2, generator=torch.Generator().manual_seed(0))
    zeros = torch_tae.TemporalUpsample(4, "zeros")
    replicate = torch_tae.TemporalUpsample(4, "replicate")
    replicate.load_state_dict(zeros.state_dict())
    with torch.no_grad():
        difference = (zeros(x) - replicate(x)).abs().amax((0, 1, 3, 4))
    assert (difference[1:-1] == 0).all() and difference[0] > 0.01 and difference[-1] > 0.01


@pytest.mark.parametrize("change", [{"num_res_blocks": 1}, {"ch": 16, "ch_mult": [1, 3]}, {"attn_type": "spat_only"}])
def test_names_and_shapes_follow_the_config(torch_tae, change):
    from mg.models.tae.adapter import parameter_shapes

    config = dict(CONFIG, norm_groups=16) | change
    if len(config["ch_mult"]) == 2:
        config.update(temporal_downsample_level=[0], temporal_upsample_level=[1])
    net = torch_tae.TorchTAE(config)
    assert {name: tuple(value.shape) for name, value in net.named_parameters()} == parameter_shapes(config)

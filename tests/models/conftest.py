"""A small autoencoder with weights by formula and its PyTorch twin, shared by the tests of the TAE."""

import importlib.util
import zlib

import numpy as np
import pytest

from mg.models.tae.config import PRESETS

SMALL = dict(PRESETS["tiny"], ch=8, ch_mult=[1, 1, 2, 2], norm_groups=4, z_channels=4)


def formula_weights(shapes):
    """Noise seeded by each name, scaled by fan-in: the weights behind tests/golden/tae_ch32.npz."""
    tensors = {}
    for name, shape in shapes.items():
        noise = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF).standard_normal(shape).astype(np.float32)
        scaled = noise / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else noise * 0.1
        tensors[name] = (scaled + name.endswith("gamma")).astype(np.float32)
    return tensors


def set_weights(network, tensors):
    from mindspore import Tensor

    for name, parameter in network.parameters_and_names():
        parameter.set_data(Tensor(tensors[name]))
    return network


@pytest.fixture(scope="session")
def small():
    """The small configuration; copy it before changing it."""
    return SMALL


@pytest.fixture(scope="session")
def weights_for():
    """The function from names and shapes to weights."""
    return formula_weights


@pytest.fixture(scope="session")
def build():
    """Build a TAE whose weights follow the formula: build(config, **options)."""
    from mg.models.tae import TemporalAutoencoder
    from mg.models.tae.adapter import parameter_shapes

    def make(config=SMALL, **options):
        return set_weights(TemporalAutoencoder(config, **options), formula_weights(parameter_shapes(config)))

    return make


@pytest.fixture(scope="session")
def tae(build):
    """The small TAE; do not change it."""
    return build()


@pytest.fixture(scope="session")
def twin(root):
    """Build the PyTorch TAE with the same weights: twin(config)."""
    from mg.models.tae.adapter import parameter_shapes

    spec = importlib.util.spec_from_file_location("torch_tae", root / "benchmarks" / "torch_tae.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def make(config=SMALL):
        net = module.TorchTAE(config)
        net.load_arrays(formula_weights(parameter_shapes(config)))
        return net

    return make


@pytest.fixture
def pynative():
    """Run the test op by op: no compilation."""
    import mg.device

    mg.device.setup("CPU", "pynative")


@pytest.fixture(scope="session")
def video():
    """Make a random video in [-1, 1]: video(b, 3, t, h, w, seed=0)."""

    def make(*shape, seed=0):
        return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)

    return make

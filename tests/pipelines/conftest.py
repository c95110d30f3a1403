"""Small clips, a tiny autoencoder with random weights, and networks that compile each shape once for all tests."""

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for train_toy


def moving(t, h, w, seed=0):
    """Smooth colours that drift: uint8 (t, h, w, 3), another picture for every seed."""
    time, y, x = np.mgrid[:t, :h, :w].astype(np.float32)
    planes = [
        128 + 100 * np.sin(x / (5 + seed) + time / 3),
        60 + 4 * y + 6 * time + 9 * seed,
        128 + 90 * np.cos((x + y) / 11 + seed - time / 4),
    ]
    return np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8)


def encode(path, frames, rate=Fraction(25)):
    """Write H.264 without colour subsampling, which odd sizes need; almost lossless."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "4"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv444p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def clip():
    """Write a clip: clip(path, t, h, w, rate, seed) -> path."""

    def make(path, t=9, h=32, w=32, rate=Fraction(25), seed=0):
        return encode(path, moving(t, h, w, seed), rate)

    return make


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Path of random weights of the preset tiny."""
    import mg.device

    mg.device.setup("CPU", "graph")
    from mg.models.tae import PRESETS, TemporalAutoencoder
    from mg.models.tae.loading import metadata_of
    from mg.weights import write_weights

    network = TemporalAutoencoder(PRESETS["tiny"], seed=1)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    tensors = {name: param.asnumpy() for name, param in network.parameters_and_names()}
    write_weights(path, tensors, metadata_of(network.config))
    return path


@pytest.fixture(scope="session")
def networks():
    """The networks that `reconstruct` has built so far, by arguments."""
    return {}


@pytest.fixture(autouse=True)
def one_network_for_all(monkeypatch, networks):
    from mg.models.tae.loading import from_checkpoint
    from mg.pipelines import reconstruct

    def cached(path, config, **options):
        key = (str(path), config is None, *sorted(options.items()))
        if key not in networks:
            networks[key] = from_checkpoint(path, config, **options)
        return networks[key]

    monkeypatch.setattr(reconstruct, "from_checkpoint", cached)


@pytest.fixture(scope="session")
def lpips_file(tmp_path_factory):
    """Path of random weights of LPIPS."""
    from mg.models.perceptual.adapter import parameter_shapes
    from mg.weights import write_weights

    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    tensors = {name: 0.05 * np.abs(rng.standard_normal(shape)) for name, shape in parameter_shapes().items()}
    write_weights(path, {name: value.astype(np.float32) for name, value in tensors.items()})
    return path

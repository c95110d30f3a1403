"""LPIPS equals the package `lpips`, and one written from the paper's definition, under the same random weights."""

import importlib
import sys
import types

import mindspore as ms
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mindspore import Tensor, nn

from mg.errors import UserError
from mg.models.perceptual import Lpips, from_weights
from mg.models.perceptual.adapter import CHANNELS, from_public, parameter_shapes
from mg.weights import write_weights


@pytest.fixture(scope="module")
def tensors():
    rng = np.random.default_rng(3)
    made = {}
    for name, shape in parameter_shapes().items():
        noise = rng.standard_normal(shape).astype(np.float32)
        if name.startswith("lin"):
            made[name] = np.abs(noise)
        else:
            made[name] = noise * (2 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.1 * noise
    return made


@pytest.fixture(scope="module")
def path(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    write_weights(path, tensors)
    return path


def torch_lpips(tensors, a, b):
    """The distance of pictures in [-1, 1] (n, 3, h, w), from the definition."""
    weights = {name: torch.tensor(value, dtype=torch.float64) for name, value in tensors.items()}
    statistics = [-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]
    shift, scale = (torch.tensor(x, dtype=torch.float64).view(1, 3, 1, 1) for x in statistics)

    def features(x):
        x, number = (x - shift) / scale, 0
        for depth, group in enumerate(CHANNELS):
            x = F.max_pool2d(x, 2) if depth else x
            for _ in group:
                x = F.relu(F.conv2d(x, weights[f"convs.{number}.weight"], weights[f"convs.{number}.bias"], padding=1))
                number += 1
            yield x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)

    total = 0
    for tap, (x, y) in enumerate(zip(features(a), features(b), strict=True)):
        total = total + ((x - y) ** 2 * weights[f"lin.{tap}"].view(1, -1, 1, 1)).sum(1).mean((1, 2))
    return total


def pictures(n=2, h=24, w=33):
    rng = np.random.default_rng(0)
    return [rng.uniform(-1, 1, (n, 3, h, w)).astype(np.float32) for _ in range(2)]


def test_distance_and_gradient_equal_pytorchs_in_graph_mode(path, tensors):
    a, b = pictures()
    network = from_weights(path)
    value, gradient = _run(network, a, b)
    x = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    want = torch_lpips(tensors, x, torch.tensor(b, dtype=torch.float64))
    want.sum().backward()
    np.testing.assert_allclose(value, want.detach().numpy(), rtol=1e-4)
    np.testing.assert_allclose(gradient, x.grad.numpy(), atol=2e-4 * x.grad.abs().max().item())


LAYERS = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
"""Convolutions among torchvision's vgg16().features."""


@pytest.fixture
def package(monkeypatch):
    """The package, whose VGG-16 is put together here in place of torchvision's, which is not installed."""
    layers, before = [], 3
    for depth, group in enumerate(CHANNELS):
        layers += [torch.nn.MaxPool2d(2, 2)] if depth else []
        for channels in group:
            layers += [torch.nn.Conv2d(before, channels, 3, padding=1), torch.nn.ReLU(inplace=True)]
            before = channels
    network = types.SimpleNamespace(features=torch.nn.Sequential(*layers))
    models = types.ModuleType("torchvision.models")
    models.vgg16 = lambda pretrained: network
    torchvision = types.ModuleType("torchvision")
    torchvision.models = models
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    return importlib.import_module("lpips").LPIPS(pretrained=False, net="vgg", verbose=False), network.features


def test_distance_equals_that_of_the_package_with_its_own_names(package, tensors, pynative, tmp_path):
    peer, features = package
    with torch.no_grad():
        for number, layer in enumerate(LAYERS):
            features[layer].weight.copy_(torch.tensor(tensors[f"convs.{number}.weight"]))
            features[layer].bias.copy_(torch.tensor(tensors[f"convs.{number}.bias"]))
        for tap in range(5):
            peer.lins[tap].model[1].weight.copy_(torch.tensor(tensors[f"lin.{tap}"]).view(1, -1, 1, 1))
    vgg = {f"features.{name}": value.numpy() for name, value in features.state_dict().items()}
    lin = {name: value.numpy() for name, value in peer.state_dict().items() if name.startswith("lin")}
    write_weights(tmp_path / "public.safetensors", from_public(vgg, lin))
    network = from_weights(tmp_path / "public.safetensors")
    a, b = pictures(2, 32, 40)
    with torch.no_grad():
        want = peer(torch.tensor(a), torch.tensor(b)).numpy().ravel()
    np.testing.assert_allclose(network(Tensor(a), Tensor(b)).asnumpy(), want, rtol=1e-4)
    assert want[0] != pytest.approx(want[1], rel=1e-3)


def _run(network, a, b):
    class Total(nn.Cell):
        def __init__(self):
            super().__init__(auto_prefix=False)
            self.network = network

        def construct(self, a, b):
            each = self.network(a, b)
            return each.sum(), each

    (_, each), gradient = ms.value_and_grad(Total(), 0, has_aux=True)(Tensor(a), Tensor(b))
    return each.asnumpy(), gradient.asnumpy()


def test_value_range_is_an_argument(pynative, path):
    a, b = pictures(1, 16, 16)
    want = from_weights(path)(Tensor(a), Tensor(b)).asnumpy()
    bytes_a, bytes_b = ((x + 1) * 127.5 for x in (a, b))
    got = from_weights(path, (0, 255))(Tensor(bytes_a), Tensor(bytes_b)).asnumpy()
    np.testing.assert_allclose(got, want, rtol=1e-4)
    with pytest.raises(ValueError, match=r"value_range=\(1, 1\)"):
        Lpips((1, 1))


def test_training_mode_changes_nothing_and_nothing_is_trained(pynative, path):
    a, b = (Tensor(x) for x in pictures(1, 16, 16))
    network = from_weights(path)
    before = network(a, b).asnumpy()
    network.set_train(True)
    assert (network(a, b).asnumpy() == before).all() and network.trainable_params() == []
    assert (network(a, a).asnumpy() == 0).all()


def test_black_pictures_have_finite_gradients(pynative):
    network = Lpips()  # all features are zero
    _, gradient = _run(network, *(0 * x for x in pictures(1, 16, 16)))
    assert (gradient == 0).all()


def test_weights_that_do_not_fit_are_named(tensors, tmp_path):
    wrong = {**tensors, "lin.4": np.zeros(3, np.float32), "extra": np.zeros(1, np.float32)}
    del wrong["convs.3.bias"]
    write_weights(tmp_path / "wrong.safetensors", wrong)
    with pytest.raises(UserError, match=r"missing: convs.3.bias.*unexpected: extra.*lin.4 \(3,\) instead of \(512,\)"):
        from_weights(tmp_path / "wrong.safetensors")


def test_public_names_are_those_of_torchvision_and_lpips(tensors):
    kinds = ("weight", "bias")
    vgg = {f"features.{n}.{kind}": tensors[f"convs.{i}.{kind}"] for i, n in enumerate(LAYERS) for kind in kinds}
    vgg["classifier.0.weight"] = np.zeros((2, 2), np.float32)
    lin = {f"lin{i}.model.1.weight": tensors[f"lin.{i}"].reshape(1, -1, 1, 1) for i in range(5)}
    made = from_public(vgg, lin)
    assert made.keys() == tensors.keys()
    assert all((made[name] == tensors[name]).all() for name in made)
    del vgg["features.28.bias"]
    with pytest.raises(UserError, match="features.28.bias is missing"):
        from_public(vgg, lin)
    with pytest.raises(UserError, match="features.0.weight is missing.* and 18 more"):
        from_public({}, lin)

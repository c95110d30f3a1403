"""PyTorch's .bin to .safetensors: the same tensors for our reader and for transformers, and nothing run or left."""

import json
import os
import pickle
import sys
import tracemalloc

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

from mg.errors import UserError
from mg.pipelines.convert_hf import convert, fetch
from mg.weights import read_metadata, read_weights, write_weights

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def t5(cls=T5ForConditionalGeneration, dtype=torch.float32, **options):
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    return cls(T5Config(**sizes, decoder_start_token_id=0, **options)).to(dtype).eval()


def message_of(call, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def assert_equal_but_for_ties(folder, model, tied):
    """Compare the folder's tensors, by our reader, with a model's state."""
    read, state = read_weights(folder), model.state_dict()
    assert set(read) == set(state) - set(tied)
    for name, array in read.items():
        np.testing.assert_array_equal(array, state[name].float().numpy(), err_msg=name)


class Bomb:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", ["10GB", "4KB"])
def test_a_model_of_transformers_single_and_sharded(tmp_path, dtype, size):
    model = t5(dtype=dtype)
    model.save_pretrained(tmp_path, safe_serialization=False, max_shard_size=size)
    shards = len(list(tmp_path.glob("*.bin")))
    assert shards == 1 if size == "10GB" else shards > 3
    done = convert(tmp_path)
    assert done.tied == dict.fromkeys(
        ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"), "shared.weight"
    )
    assert_equal_but_for_ties(tmp_path, model, done.tied)
    kind = "bf16" if dtype == torch.bfloat16 else str(dtype).removeprefix("torch.")
    assert done.dtypes == {kind: done.tensors} and done.tensors == len(model.state_dict()) - 3
    for path in tmp_path.glob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(path).values()} == {dtype}
    if shards == 1:
        assert read_metadata(tmp_path) == {"format": "pt"}
    else:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == done.size
        assert len(set(index["weight_map"].values())) == shards
    for path in tmp_path.glob("*.bin"):
        path.unlink()
    again, info = T5ForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())
    state = again.state_dict()
    for name, tensor in model.state_dict().items():  # tied ones included
        assert torch.equal(state[name], tensor.float()), name


def test_an_encoder_alone_untied_head_and_old_pickle(tmp_path):
    model = t5(T5EncoderModel, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    done = convert(tmp_path)
    assert done.tied == {"encoder.embed_tokens.weight": "shared.weight"}
    assert_equal_but_for_ties(tmp_path, model, done.tied)


def test_every_type_and_layout_is_kept(tmp_path):
    base = torch.arange(24.0)
    tensors = {
        "double": torch.tensor([1 / 3], dtype=torch.float64),
        "integers": torch.tensor([2**40]),
        "mask": torch.tensor([True, False]),
        "turned": base.reshape(4, 6).T,
        "part": base[5:9],
        "whole": base,
        "view": base.reshape(2, 12),
        "none": torch.zeros(0, 3),
        "none.too": torch.zeros(0, 3),
        "scalar": torch.tensor(1.5, dtype=torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert convert(tmp_path).tied == {}
    read = load_file(tmp_path / "model.safetensors")
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor.detach()), name


def test_another_folder_gets_the_companions(tmp_path):
    source, output = tmp_path / "in", tmp_path / "out" / "deep"
    model = t5()
    model.save_pretrained(source, safe_serialization=False, max_shard_size="8KB")
    for name in ("spiece.model", "tokenizer_config.json", "merges.txt", "README.md", "training_args.bin"):
        (source / name).write_text(name)
    before = names(source)
    convert(source, output)
    assert names(source) == before
    extra = [name for name in names(output) if not name.startswith("model")]
    assert extra == ["config.json", "generation_config.json", "merges.txt", "spiece.model", "tokenizer_config.json"]
    assert (output / "spiece.model").read_text() == "spiece.model"
    assert (output / "config.json").read_bytes() == (source / "config.json").read_bytes()


def test_what_is_there_is_converted_again_by_force_only(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    write_weights(tmp_path / "model.safetensors", {"w": np.zeros(2)})
    assert convert(tmp_path).found == convert(tmp_path, tmp_path / "out").found == tmp_path / "model.safetensors"
    assert read_weights(tmp_path)["w"].tolist() == [0, 0] and not (tmp_path / "out").exists()
    assert convert(tmp_path, tmp_path / "out", force=True).found is None
    assert read_weights(tmp_path / "out")["w"].tolist() == [1, 1]
    assert read_weights(tmp_path / "model.safetensors")["w"].tolist() == [0, 0]
    convert(tmp_path, force=True)
    assert read_weights(tmp_path)["w"].tolist() == [1, 1]
    (tmp_path / "out" / "model.safetensors").rename(tmp_path / "out" / "model.safetensors.index.json")
    said = message_of(convert, tmp_path, tmp_path / "out", force=True)
    assert "model.safetensors.index.json of an earlier conversion is in it; choose another --output_dir" in said


# ---- what is refused


@pytest.mark.parametrize("writer", ["pickle", "torch", "old torch"])
@pytest.mark.parametrize("output", ["same", "another"])
def test_a_pickle_bomb_is_refused_and_not_run(tmp_path, writer, output):
    folder, target = tmp_path / "in", tmp_path / "ran"
    folder.mkdir()
    path, content = folder / "pytorch_model-00002-of-00002.bin", {"b": torch.ones(2), "w": Bomb(target)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps({"w": Bomb(target)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    torch.save({"a": torch.ones(2)}, folder / "pytorch_model-00001-of-00002.bin")
    weight_map = {"a": "pytorch_model-00001-of-00002.bin", "b": path.name}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    before = names(tmp_path)
    said = message_of(convert, folder, None if output == "same" else tmp_path / "out")
    assert said == f"{path}: refused, and nothing in it was run: it asks for posix.mkdir; fetch the weights elsewhere"
    assert names(tmp_path) == before  # neither what the bomb makes, nor the first shard, nor an empty folder


def test_a_whole_model_instead_of_its_state_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "pytorch_model.bin")
    assert "refused, and nothing in it was run: it asks for torch.nn" in message_of(convert, tmp_path)


@pytest.mark.parametrize("cut", [0, 3, 300, -1, "half", "text", "old half"])
def test_a_damaged_file_is_named(tmp_path, cut):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": torch.ones(1000)}, path, _use_new_zipfile_serialization=cut != "old half")
    data = path.read_bytes()
    text = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    path.write_bytes(text if cut == "text" else data[: len(data) // 2 if isinstance(cut, str) else cut])
    said = message_of(convert, tmp_path)
    assert said.startswith(f"{path}: ") and ("damaged or incomplete" in said or "no plain state dict" in said)
    assert names(tmp_path) == ["pytorch_model.bin"]


def test_no_flipped_byte_ends_otherwise_than_in_one_line(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.int32)}, path)
    data, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        broken = bytearray(data)
        broken[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        try:
            convert(tmp_path, force=True)
        except UserError as error:
            refused += 1
            assert str(error).startswith(str(path)) and "\n" not in str(error)
    assert refused > 10


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([torch.ones(1)], "it holds a list, not tensors by name; give a plain state dict"),
        ({"state_dict": {"w": torch.ones(1)}}, "'state_dict' is a dict, no tensor; give a plain state dict"),
        ({"w": torch.ones(1), "step": 3}, "'step' is a int, no tensor"),
        ({3: torch.ones(1)}, "3 is a Tensor, no tensor"),
        ({"w": torch.ones(1, dtype=torch.complex64)}, "w is torch.complex64, which is not supported"),
        ({"w": torch.ones(1).to(torch.float8_e4m3fn)}, "w is torch.float8_e4m3fn, which is not supported"),
        ({"w": torch.eye(2).to_sparse()}, "w is torch.float32, which is not supported"),
    ],
)
def test_what_is_no_plain_state_dict(tmp_path, content, expected):
    torch.save(content, tmp_path / "pytorch_model.bin")
    said = message_of(convert, tmp_path, tmp_path / "out")
    assert said.startswith(f"{tmp_path / 'pytorch_model.bin'}: {expected}")
    assert not (tmp_path / "out").exists()


def test_shards_that_contradict_their_index(tmp_path):
    def index(weight_map):
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))

    for shard in ("a.bin", "b.bin"):
        torch.save({"w": torch.ones(1)}, tmp_path / shard)
    index({"w": "a.bin", "v": "a.bin"})
    assert "a.bin: the index promises the tensor v, which is not in it" in message_of(convert, tmp_path)
    index({"w": "a.bin", "v": "c.bin"})
    assert "the shard c.bin is not beside it" in message_of(convert, tmp_path)
    index({"w": "../a.bin"})
    assert "weight_map leads to '../a.bin'" in message_of(convert, tmp_path)
    torch.save({"w": torch.ones(1), "v": torch.ones(1)}, tmp_path / "b.bin")
    index({"w": "a.bin", "v": "b.bin"})
    assert "b.bin: the tensor w is in another shard too" in message_of(convert, tmp_path)
    torch.save({"w": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert "it holds both pytorch_model.bin and" in message_of(convert, tmp_path)
    assert not list(tmp_path.glob("*.safetensors*"))


def test_no_folder_no_weights_no_torch(tmp_path, monkeypatch):
    assert message_of(convert, tmp_path / "no").startswith(f"{tmp_path / 'no'}: there is no such folder")
    (tmp_path / "flax_model.msgpack").write_bytes(b"x")
    assert "neither pytorch_model.bin nor pytorch_model.bin.index.json is in it" in message_of(convert, tmp_path)
    torch.save({"w": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert message_of(convert, tmp_path).endswith("pip install torch")


def test_memory_is_that_of_one_tensor(tmp_path):
    weight_map = {}
    for number in range(6):
        tensors = {f"{number}.{part}": torch.full((500_000,), number + part / 10) for part in range(4)}
        torch.save(tensors, tmp_path / f"pytorch_model-{number}.bin")
        weight_map |= dict.fromkeys(tensors, f"pytorch_model-{number}.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    tracemalloc.start()
    try:
        done = convert(tmp_path, tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert done.size == 48_000_000
    assert peak < 6_000_000  # what is mapped does not count, and is given back when memory is short
    assert read_weights(tmp_path / "out")["5.3"][-1] == np.float32(5.3)


# ---- the hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with one model, whose files appear in the folder `local_dir` or in `cache`; lists the calls."""
    from fnmatch import fnmatch

    files = {"config.json": b"{}", "pytorch_model.bin": b"", "onnx/model.json": b""}
    calls = []

    def snapshot_download(model, **options):
        calls.append({"model": model, **options})
        folder = options["local_dir"] or tmp_path / "cache"
        for name, data in files.items():
            wanted = any(fnmatch(name, pattern) for pattern in options["allow_patterns"])
            if wanted and not any(fnmatch(name, pattern) for pattern in options["ignore_patterns"]):
                folder.mkdir(exist_ok=True)
                (folder / name).write_bytes(data)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return files, calls


def test_bin_is_downloaded_only_where_nothing_better_is(hub, tmp_path):
    files, calls = hub
    assert fetch("a/b", revision="v1", endpoint="https://mirror") == tmp_path / "cache"
    assert names(tmp_path / "cache") == ["config.json", "pytorch_model.bin"]
    asked = {(call["model"], call["revision"], call["endpoint"]) for call in calls}
    assert asked == {("a/b", "v1", "https://mirror")}
    files["model.safetensors"] = b""
    assert fetch("a/b", tmp_path / "out") == tmp_path / "out"
    assert names(tmp_path / "out") == ["config.json", "model.safetensors"]
    fetch("a/b", tmp_path / "out", force=True)
    assert "pytorch_model.bin" in names(tmp_path / "out")


@pytest.mark.parametrize("model", ["../a", "/a/b", "a/b/c", "./a", "", "a b", "https://huggingface.co/a/b"])
def test_what_is_no_model_id_is_not_asked_for(hub, model):
    assert message_of(fetch, model).startswith(f"{model}: neither a folder nor a model id")
    assert hub[1] == []


@pytest.mark.parametrize(
    "error", [LocalEntryNotFoundError("no\nway"), ConnectionError("no\nway"), OSError(28, "no way")]
)
def test_no_network_is_one_line(monkeypatch, error):
    def snapshot_download(*arguments, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    said = message_of(fetch, "google/byt5-small")
    assert said.startswith("google/byt5-small: there is no such folder, and as a name on the hub it cannot be ")
    assert "no way" in said and "HF_ENDPOINT" in said


def test_a_long_reason_ends_with_a_word(monkeypatch):
    words = [f"word{number}" for number in range(40)]

    def snapshot_download(*arguments, **options):
        raise OSError(" ".join(words))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    reason = message_of(fetch, "google/byt5-small").partition("(")[2].partition(")")[0]
    *kept, last = reason.split()
    assert kept == words[: len(kept)] and last == "..." and 140 < len(reason) <= 160

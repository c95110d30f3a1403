"""Checkpoints of the transformer: ours, the reference's, other table sizes, and all that can be wrong with them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mg.errors import UserError
from mg.models.llama import LlamaConfig, LlamaModel, load_llama, parameter_shapes, read_config
from mg.models.llama.loading import adapted, resized_table
from mg.weights import write_weights

CONFIG = LlamaConfig(
    hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2, in_channels=2,
    max_length=(2, 3, 4), text_widths=(("ul2", 5),),
)  # fmt: skip


def tensors(config=CONFIG):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in parameter_shapes(config).items()}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG.to_dict(), "fps": True}))
    write_weights(tmp_path / "diffusion_pytorch_model.safetensors", tensors())
    return tmp_path


def values(network):
    return {name: parameter.asnumpy() for name, parameter in network.parameters_and_names()}


def test_a_folder_is_loaded(folder):
    config, rest = read_config(folder)
    assert config == CONFIG and rest == {"fps": True}
    loaded = values(load_llama(folder))
    for name, value in tensors().items():
        np.testing.assert_array_equal(loaded[name], value)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_names_of_the_references_training_are_known(tmp_path, suffix):
    path = tmp_path / f"llama{suffix}"
    write_weights(path, {f"network.model.{name}": value for name, value in tensors().items()})
    loaded = values(load_llama(path, CONFIG))
    name = "layers.0.self_attn.q_proj.weight"
    np.testing.assert_array_equal(loaded[name], tensors()[name])


def test_position_tables_are_interpolated_with_their_ends_kept():
    table = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    longer = resized_table(table, 9)
    at = np.linspace(0, 3, 9)
    want = np.stack([np.interp(at, np.arange(4), column) for column in table.T], 1)
    np.testing.assert_allclose(longer, want, atol=1e-6)
    np.testing.assert_allclose(resized_table(table, 2), table[[0, 3]], atol=0)
    np.testing.assert_array_equal(resized_table(table[:1], 3), np.repeat(table[:1], 3, 0))
    assert resized_table(table, 4) is table


def test_stage_two_starts_from_stage_one(tmp_path):
    path = tmp_path / "stage1.safetensors"
    write_weights(path, tensors(replace(CONFIG, max_length=(1, 3, 4))))
    loaded = values(load_llama(path, replace(CONFIG, max_length=(3, 5, 4))))
    first = tensors(replace(CONFIG, max_length=(1, 3, 4)))
    t, h = (f"pos_embedding_table_{axis}.embedding_table" for axis in "th")
    np.testing.assert_array_equal(loaded[t], np.repeat(first[t], 3, 0))
    np.testing.assert_allclose(loaded[h][[0, 2, 4]], first[h], atol=1e-6)
    np.testing.assert_array_equal(loaded["final_layer.proj.weight"], first["final_layer.proj.weight"])


def test_patch_weights_of_either_layout():
    conv = replace(CONFIG, patch_embedder="conv3d")
    flat = adapted(tensors(conv), CONFIG)["latent_embedder.proj.weight"]
    assert flat.shape == (8, 8)
    np.testing.assert_array_equal(adapted({"latent_embedder.proj.weight": flat}, conv)["latent_embedder.proj.weight"],
                                  tensors(conv)["latent_embedder.proj.weight"])  # fmt: skip


def _without(folder, name):
    kept = {key: value for key, value in tensors().items() if key != name}
    write_weights(folder / "diffusion_pytorch_model.safetensors", kept)


def _nan(folder, name):
    changed = tensors()
    changed[name][0] = np.nan
    write_weights(folder / "diffusion_pytorch_model.safetensors", changed)


def _truncated(folder, name):
    path = folder / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _no_config(folder, name):
    (folder / "config.json").unlink()


def _bad_config(folder, name):
    (folder / "config.json").write_text('{"hidden_size": ')


@pytest.mark.parametrize(
    "damage, message",
    [
        (_without, "missing.*final_layer.proj.weight"),
        (_nan, "final_layer.proj.weight"),
        (_truncated, "diffusion_pytorch_model.safetensors"),
        (_no_config, "config.json: missing"),
        (_bad_config, "config.json: not readable as JSON"),
    ],
)
def test_damaged_folders_are_named(folder, damage, message):
    damage(folder, "final_layer.proj.weight")
    with pytest.raises(UserError, match=message):
        load_llama(folder)


def test_a_bare_file_needs_a_configuration(folder):
    with pytest.raises(UserError, match="says nothing of its sizes"):
        load_llama(folder / "diffusion_pytorch_model.safetensors")


def test_a_name_with_and_without_its_prefix_is_refused():
    both = {**tensors(), "network.model.final_layer.proj.weight": np.zeros((8, 8), np.float32)}
    with pytest.raises(UserError, match="final_layer.proj.weight twice"):
        adapted(both, CONFIG)


def test_loading_leaves_no_initial_value(folder):
    fresh = values(LlamaModel(CONFIG))
    loaded = values(load_llama(folder))
    assert all(np.abs(fresh[name] - loaded[name]).max() > 0 for name in fresh)

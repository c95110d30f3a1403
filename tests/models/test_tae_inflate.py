"""An inflated image VAE is the image VAE: names, shapes, values, and refusals."""

import importlib.util
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from mg.errors import UserError
from mg.weights import read_weights, write_weights

CONFIG = {
    "ch": 32,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "z_channels": 16,
    "in_channels": 3,
    "out_ch": 3,
    "norm_groups": 32,
    "temporal_downsample_level": [0, 1, 2],
    "temporal_upsample_level": [3, 2, 1],
}


@pytest.fixture(scope="module")
def adapter():
    from mg.models.tae import adapter

    return adapter


@pytest.fixture(scope="module")
def tool(root):
    """The command's main function (tools/ is a folder of scripts, not a package)."""
    spec = importlib.util.spec_from_file_location("inflate_vae_to_tae", root / "tools" / "inflate_vae_to_tae.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def image_vae():
    """A diffusers AutoencoderKL of the SD3.5 shape with random weights and a quarter of the channels."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 128, 128),
        layers_per_block=2,
        latent_channels=16,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
    with torch.no_grad():  # fresh norms are all ones and zeros, which would hide a swapped pair
        for value in vae.parameters():
            if value.ndim == 1:
                value.add_(0.2 * torch.randn_like(value))
    return vae


@pytest.fixture(scope="module")
def vae_file(image_vae, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    image_vae.save_pretrained(folder)
    return folder / "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def vae_tensors(vae_file):
    return read_weights(vae_file)


@pytest.fixture(scope="module")
def inflated_net(tool, vae_file, tmp_path_factory):
    """Our TAE with the weights the command wrote."""
    from mg.models.tae import TAE_CONFIG, TemporalAutoencoder
    from mg.weights import load_into

    target = tmp_path_factory.mktemp("tae") / "tae.safetensors"
    tool(["--src", str(vae_file), "--target", str(target)])
    net = TemporalAutoencoder(config=dict(TAE_CONFIG, ch=32))
    load_into(net, read_weights(target), path=str(target))
    net.set_train(False)
    return net


def golden_shapes(path):
    lines = [line.split(" ", 1) for line in path.read_text().splitlines()]
    return {name: tuple(int(size) for size in re.findall(r"\d+", shape)) for name, shape in lines}


# ------------------------------------------------------------------------------------------------ names and shapes


@pytest.mark.parametrize(("ch", "file"), [(128, "tae_params.txt"), (32, "tae_ch32_params.txt")])
def test_parameter_shapes_are_the_reference_ones_in_its_order(adapter, root, ch, file):
    golden = golden_shapes(root / "tests" / "golden" / file)
    config = dict(CONFIG, ch=ch)
    assert list(adapter.parameter_shapes(config, dead=True).items()) == list(golden.items())
    living = {name: shape for name, shape in golden.items() if "temb_proj" not in name}
    assert adapter.parameter_shapes(config) == living
    assert len(living) == 436 - 48


def test_parameter_shapes_are_those_of_the_network(adapter):
    from mg.models.tae import PRESETS, TemporalAutoencoder

    config = PRESETS["tiny"]
    net = TemporalAutoencoder(config=config)
    assert {item.name: tuple(item.shape) for item in net.get_parameters()} == adapter.parameter_shapes(config)


@pytest.mark.parametrize(
    ("vae_name", "name"),
    [
        ("encoder.conv_in.weight", "encoder.conv_in.conv_spat.weight"),
        ("encoder.down_blocks.1.resnets.0.conv_shortcut.bias", "encoder.down.1.block.0.nin_shortcut.conv_spat.bias"),
        ("encoder.down_blocks.2.downsamplers.0.conv.weight", "encoder.down.2.downsample_spat.conv.weight"),
        ("decoder.up_blocks.0.upsamplers.0.conv.bias", "decoder.up.3.upsample_spat.conv.bias"),
        ("decoder.up_blocks.3.resnets.2.norm2.weight", "decoder.up.0.block.2.norm2.gamma"),
        ("decoder.mid_block.resnets.1.norm1.bias", "decoder.mid.block_2.norm1.beta"),
        ("decoder.mid_block.attentions.0.to_out.0.weight", "decoder.mid.attn_1.0.proj_out.weight"),
        ("encoder.mid_block.attentions.0.proj_attn.bias", "encoder.mid.attn_1.0.proj_out.bias"),
        ("encoder.mid_block.attentions.0.group_norm.weight", "encoder.mid.attn_1.0.norm.gamma"),
        ("encoder.conv_norm_out.bias", "encoder.norm_out.beta"),
        ("post_quant_conv.weight", "post_quant_conv.conv_spat.weight"),
    ],
)
def test_names_follow_the_rules(adapter, vae_name, name):
    assert adapter.tae_name(vae_name, 4) == name


def test_every_spatial_tensor_and_only_those_come_from_the_vae(adapter, vae_tensors):
    tensors, report = adapter.inflate(vae_tensors, CONFIG)
    assert list(tensors) == list(adapter.parameter_shapes(CONFIG))
    assert len(report.inflated) == len(vae_tensors) == 244
    assert len(report.initialised) == 436 - 48 - 244
    assert report.num_parameters == sum(array.size for array in tensors.values())
    assert sum(tensors[name].size for name in report.inflated) == sum(array.size for array in vae_tensors.values())
    source = vae_tensors["decoder.up_blocks.2.resnets.0.conv1.weight"]
    np.testing.assert_array_equal(tensors["decoder.up.1.block.0.conv1.conv_spat.weight"], source)


def test_temporal_tensors_start_neutral_and_repeatably(adapter, vae_tensors):
    first, _ = adapter.inflate(vae_tensors, CONFIG)
    again, _ = adapter.inflate(dict(reversed(vae_tensors.items())), CONFIG)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    kernel = first["encoder.down.0.downsample_temp.conv.weight"]
    np.testing.assert_array_equal(kernel[:, :, 0, 1], np.eye(32))
    assert not kernel[..., 0].any() and not kernel[..., 2].any()
    np.testing.assert_array_equal(first["decoder.up.0.block.0.nin_shortcut.conv_temp.weight"][:, :, 0, 0], np.eye(32))
    assert not first["encoder.mid.attn_1.1.proj_out.weight"].any()
    query, key = (first[f"encoder.mid.attn_1.1.{part}.weight"] for part in ("to_q", "to_k"))
    assert query.std() == pytest.approx(128**-0.5, rel=0.03)
    assert abs(np.corrcoef(query.ravel(), key.ravel())[0, 1]) < 0.03


def test_quant_convs_are_mapped_when_the_config_has_them_and_refused_otherwise(adapter, vae_tensors):
    rng = np.random.default_rng(0)
    extra = {
        "quant_conv.weight": rng.standard_normal((32, 32, 1, 1)).astype(np.float32),
        "quant_conv.bias": rng.standard_normal(32).astype(np.float32),
        "post_quant_conv.weight": rng.standard_normal((16, 16, 1, 1)).astype(np.float32),
        "post_quant_conv.bias": rng.standard_normal(16).astype(np.float32),
    }
    config = dict(CONFIG, use_quant_conv=True, use_post_quant_conv=True)
    tensors, _ = adapter.inflate({**vae_tensors, **extra}, config)
    np.testing.assert_array_equal(tensors["quant_conv.conv_spat.weight"], extra["quant_conv.weight"])
    np.testing.assert_array_equal(tensors["post_quant_conv.conv_temp.weight"][:, :, 0, 0], np.eye(16))
    with pytest.raises(UserError, match="4 unmapped: quant_conv.weight"):
        adapter.inflate({**vae_tensors, **extra}, CONFIG)
    _, report = adapter.inflate({**vae_tensors, **extra}, CONFIG, ignore=["^(post_)?quant_conv"])
    assert set(report.skipped) == set(extra)


def test_sizes_are_inferred_from_the_tensors(adapter):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        block_out_channels=(8, 16, 48),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    tensors = {name: value.detach().numpy() for name, value in vae.named_parameters()}
    config = adapter.infer_config(tensors, CONFIG, dict(vae.config))
    sizes = {"ch": 8, "ch_mult": [1, 2, 6], "num_res_blocks": 1, "z_channels": 4}
    told = {"norm_groups": 8, "scaling_factor": 0.18215}
    levels = {"temporal_downsample_level": [0, 1], "temporal_upsample_level": [2, 1]}
    assert config == CONFIG | sizes | told | levels
    _, report = adapter.inflate(tensors, config)
    assert len(report.inflated) == len(tensors)


# ----------------------------------------------------------------------------- the proof: equal to the image VAE


def as_image_batch(x):
    """(1, c, t, h, w) -> (t, c, h, w)."""
    return np.ascontiguousarray(x[0].swapaxes(0, 1))


@pytest.mark.parametrize("frames", [1, 9])
def test_images_and_still_videos_equal_the_image_vae(inflated_net, image_vae, frames):
    import mindspore as ms
    import torch

    rng = np.random.default_rng(frames)
    image = rng.uniform(-1, 1, (1, 3, 1, 32, 40)).astype(np.float32)
    with torch.no_grad():
        posterior = image_vae.encode(torch.from_numpy(image[:, :, 0])).latent_dist
        latent = posterior.mean
        picture = image_vae.decode(latent).sample.numpy()

    video = np.repeat(image, frames, axis=2)
    _, mean, logvar = (value.asnumpy() for value in inflated_net.encode(ms.Tensor(video)))
    assert mean.shape == (1, 16, -(-frames // 8), 4, 5)
    for expected, value in ((latent, mean), (posterior.logvar, logvar)):
        np.testing.assert_allclose(as_image_batch(value), np.repeat(expected.numpy(), mean.shape[2], 0), atol=1e-4)

    latents = np.repeat(latent.numpy()[:, :, None], mean.shape[2], axis=2)
    decoded = inflated_net.decode(ms.Tensor(latents), num_target_frames=frames).asnumpy()
    np.testing.assert_allclose(as_image_batch(decoded), np.repeat(picture, frames, 0), atol=1e-4)
    assert picture.std() > 0.1 and latent.std() > 0.05  # a dead network would agree with anything


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_and_shards_give_the_widened_values(tool, image_vae, tmp_path, dtype):
    import copy

    import torch

    half = copy.deepcopy(image_vae).to(getattr(torch, dtype))
    half.save_pretrained(tmp_path / "whole")
    half.save_pretrained(tmp_path / "shards", max_shard_size="2MB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    sources = [tmp_path / "whole", tmp_path / "shards", next((tmp_path / "shards").glob("*.index.json"))]
    for index, source in enumerate(sources):
        tool(["-s", str(source), "-t", str(tmp_path / f"{index}.safetensors")])
        tensors = read_weights(tmp_path / f"{index}.safetensors")
        for name, target in {
            "encoder.conv_in.weight": "encoder.conv_in.conv_spat.weight",
            "decoder.mid_block.attentions.0.to_q.weight": "decoder.mid.attn_1.0.q.weight",
            "decoder.up_blocks.3.resnets.1.norm2.bias": "decoder.up.0.block.1.norm2.beta",
        }.items():
            expected = half.state_dict()[name].float().numpy()
            np.testing.assert_array_equal(tensors[target].reshape(expected.shape), expected)


# ------------------------------------------------------------------------------------------------ the command line


def test_command_writes_both_formats_and_prints_a_summary(tool, vae_file, tmp_path, capsys):
    arrays = []
    for name in ("tae.safetensors", "tae.ckpt"):
        tool(["-s", str(vae_file), "-t", str(tmp_path / name)])
        arrays.append(read_weights(tmp_path / name))
        shown = capsys.readouterr().out
        assert "244 tensors inflated, 144 initialised, 0 skipped" in shown and name in shown
        assert f"{sum(array.size for array in arrays[0].values()):,} parameters" in shown
        assert '"ch": 32' in shown
    from mg.models.tae import TAE_CONFIG, TaeConfig
    from mg.models.tae.loading import config_of

    expected = dict(TAE_CONFIG, ch=32, scaling_factor=0.18215)  # diffusers' default, from the config.json beside
    assert TaeConfig.from_mapping(config_of(str(tmp_path / "tae.safetensors"))) == TaeConfig.from_mapping(expected)
    assert list(arrays[0]) and set(arrays[0]) == set(arrays[1])
    assert all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0])


def spoil(tensors, kind):
    changed = dict(tensors)
    if kind == "extra":
        changed["encoder.mystery.weight"] = np.zeros(3, np.float32)
        return changed, "unmapped: encoder.mystery.weight"
    if kind == "temporal":
        changed["encoder.conv_in.conv_temp.weight"] = np.zeros((32, 32, 1, 3), np.float32)
        return changed, "unmapped: encoder.conv_in.conv_temp.weight"
    if kind == "missing":
        del changed["decoder.conv_norm_out.bias"]
        return changed, "missing: decoder.norm_out.beta"
    if kind == "misshaped":
        changed["decoder.conv_out.bias"] = np.zeros(4, np.float32)
        return changed, re.escape("mis-shaped: decoder.conv_out.bias (4,), expected (3,)")
    if kind == "other model":
        return {"transformer.weight": np.zeros(3, np.float32)}, "not the tensors of a diffusers AutoencoderKL"
    changed["encoder.conv_in.bias"] = np.full(32, np.nan, np.float32)
    return changed, "encoder.conv_in.bias"


@pytest.mark.parametrize("kind", ["extra", "temporal", "missing", "misshaped", "other model", "nan"])
def test_wrong_tensors_are_refused_by_name(tool, vae_tensors, tmp_path, kind):
    changed, message = spoil(vae_tensors, kind)
    source, target = tmp_path / "wrong.safetensors", tmp_path / "out.safetensors"
    write_weights(source, changed)
    with pytest.raises(UserError, match=message) as caught:
        tool(["--src", str(source), "--target", str(target)])
    assert str(source) in str(caught.value) and "\n" not in str(caught.value)
    assert not target.exists()


@pytest.mark.parametrize("name", ["cut.safetensors", "weights.bin", "absent.safetensors"])
def test_unreadable_sources_are_refused_by_name(tool, vae_file, tmp_path, name):
    source = tmp_path / name
    if name != "absent.safetensors":
        source.write_bytes(vae_file.read_bytes()[:100_000])
    with pytest.raises(UserError, match=re.escape(name)):
        tool(["--src", str(source), "--target", str(tmp_path / "out.safetensors")])
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--src", "a"], "--target"),
        (["--src", "a", "--target", "b.ckpt", "--preset", "huge"], "--preset"),
        (["--src", "a", "--target", "b.ckpt", "--ignore", "("], r"--ignore \("),
        (["--src", "a", "--target", "b.ckpt", "--unknown"], "--unknown"),
    ],
)
def test_wrong_command_lines_are_one_line(root, flags, message):
    command = [sys.executable, str(root / "tools" / "inflate_vae_to_tae.py"), *flags]
    environment = dict(os.environ, PYTHONPATH=str(root))
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert re.search(message, done.stderr) and done.stderr.count("\n") == 1


# --------------------------------------------------------------------------------------- checkpoints of the reference


def test_reference_export_and_import_are_inverse(adapter, vae_tensors, root):
    tensors, _ = adapter.inflate(vae_tensors, CONFIG)
    exported = adapter.export_reference(tensors, CONFIG)
    golden = golden_shapes(root / "tests" / "golden" / "tae_ch32_params.txt")
    assert {name: array.shape for name, array in exported.items()} == golden
    assert not any(array.any() for name, array in exported.items() if "temb_proj" in name)
    wrapped = {f"autoencoder.{name.replace('.mid.', '.mid._backbone.')}": array for name, array in exported.items()}
    back = adapter.drop_dead(wrapped)
    assert list(back) == list(tensors)
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)


def test_export_of_incomplete_tensors_is_refused(adapter, vae_tensors):
    tensors, _ = adapter.inflate(vae_tensors, CONFIG)
    tensors["decoder.conv_out.conv_spat.bias"] = np.zeros(4, np.float32)
    del tensors["encoder.norm_out.beta"]
    with pytest.raises(UserError, match=r"missing: encoder.norm_out.beta; 1 mis-shaped: decoder.conv_out.conv_spat"):
        adapter.export_reference(tensors, CONFIG)


def test_two_tensors_of_one_name_are_refused(adapter):
    twice = {"encoder.a.weight": np.zeros(1), "autoencoder.encoder.a.weight": np.zeros(1)}
    with pytest.raises(UserError, match="encoder.a.weight twice"):
        adapter.drop_dead(twice)

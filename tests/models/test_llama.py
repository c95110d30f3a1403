"""The transformer gives the reference's numbers and PyTorch's gradients, and treats its inputs as it says."""

import importlib
import importlib.util
import json
import zlib
from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Tensor

import mg.device
from mg.errors import UserError
from mg.models.llama import PRESETS, LlamaConfig, LlamaModel, count_parameters, parameter_shapes

SMALL = LlamaConfig(
    hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, in_channels=4,
    max_length=(3, 4, 5), text_widths=(("ul2", 6), ("metaclip", 5), ("byt5", 7)),
)  # fmt: skip
LENGTHS = (3, 2, 2)


def formula(name, shape):
    """The weights behind tests/golden/llama_small.npz."""
    noise = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF).standard_normal(shape).astype(np.float32)
    scaled = noise / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else noise * 0.1
    return (scaled + ("layernorm" in name or name.endswith("_norm.weight"))).astype(np.float32)


def build(config=SMALL, **options):
    network = LlamaModel(config, **options)
    for name, parameter in network.parameters_and_names():
        parameter.set_data(Tensor(formula(name, parameter.shape)))
    return network


def inputs(b=2, size=(3, 4, 6), config=SMALL, seed=0):
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((b, config.in_channels, *size), np.float32)
    timestep = rng.uniform(0, 1000, b).astype(np.float32)
    mask = np.ones((b, sum(LENGTHS)), np.float32)
    mask[0, 1:3] = 0
    widths = dict(config.text_widths)
    text = [
        rng.standard_normal((b, n, widths[kind]), np.float32)
        for n, kind in zip(LENGTHS, ("ul2", "metaclip", "byt5"), strict=True) if kind in widths
    ]  # fmt: skip
    return [latent, timestep, mask, *text]


def run(network, arrays):
    return network(*[Tensor(array) for array in arrays]).asnumpy()


@pytest.fixture(scope="module")
def twin_class(root):
    spec = importlib.util.spec_from_file_location("torch_llama", root / "benchmarks" / "torch_llama.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TorchLlama


@pytest.fixture
def small(pynative):
    return build()


@pytest.mark.parametrize("mode", ["graph", "pynative"])
@pytest.mark.parametrize("embedder", ["linear", "conv3d"])
def test_values_are_those_of_the_reference(root, mode, embedder):
    mg.device.setup("CPU", mode)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_attention_heads=4, num_hidden_layers=2, max_length=(4, 6, 6)
    )
    network = build(config)
    if embedder == "conv3d":
        weight = network.latent_embedder.proj.weight.asnumpy()
        network = build(replace(config, patch_embedder="conv3d"))
        network.latent_embedder.proj.weight.set_data(Tensor(weight.reshape(64, 16, 1, 2, 2)))
    with np.load(root / "tests" / "golden" / "llama_small.npz") as golden:
        mask = np.ones((2, 7), np.float32)  # the reference attends to padding too
        latent = np.ascontiguousarray(golden["x"].transpose(0, 2, 1, 3, 4))  # its latents are (b, t, c, h, w)
        text = [golden[kind] for kind in ("ul2", "metaclip", "byt5")]
        out = run(network, [latent, golden["t"].astype(np.float32), mask, *text])
        np.testing.assert_allclose(out.transpose(0, 2, 1, 3, 4), golden["out"], atol=1e-4)


@pytest.mark.parametrize(
    "name, count, tables",
    [
        ("llama-1B", 934_170_624, (32, 73, 73)),
        ("llama-1B", 933_972_480, (1, 24, 24)),
        ("llama-5B", 4_921_466_880, (32, 73, 73)),
        ("llama-5B", 4_921_165_824, (32, 24, 24)),
        ("llama-30B", 29_303_193_600, (32, 73, 73)),
        ("llama-30B", 29_302_401_024, (1, 24, 24)),
    ],
)
def test_parameter_counts_are_those_of_the_reference(name, count, tables):
    assert count_parameters(replace(PRESETS[name], max_length=tables)) == count


@pytest.mark.parametrize(
    "changes",
    [{}, {"qk_norm": True, "num_key_value_heads": 2}, {"attention_bias": True, "patch_embedder": "conv3d"},
     {"text_widths": (("metaclip", 5),)}],
)  # fmt: skip
def test_the_listed_parameters_are_the_networks(changes):
    config = replace(SMALL, **changes)
    network = LlamaModel(config)
    own = {name: tuple(parameter.shape) for name, parameter in network.parameters_and_names()}
    assert list(own) == list(parameter_shapes(config)) and own == parameter_shapes(config)
    assert LlamaConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("mode", ["graph", "pynative"])
@pytest.mark.parametrize("recompute", [None, 1])
def test_values_and_gradients_are_torch(twin_class, mode, recompute):
    if (mode, recompute) == ("pynative", 1):
        recompute = 2
    mg.device.setup("CPU", mode)
    network, arrays = build(recompute_every_nth_block=recompute), inputs()
    twin = twin_class(24, 40, 2, 4, c=4, max_length=(3, 4, 5), text=(6, 5, 7))
    twin.load_state_dict({name: torch.from_numpy(formula(name, s)) for name, s in parameter_shapes(SMALL).items()})
    latent, timestep, mask, *text = [torch.from_numpy(array) for array in arrays]
    expected = twin(latent.transpose(1, 2), timestep, *text, mask).transpose(1, 2)
    (expected**2).sum().backward()

    def objective(*values):
        velocity = network(*values)
        return (velocity * velocity).sum(), velocity

    params = ms.ParameterTuple(network.trainable_params())
    step = ms.value_and_grad(objective, None, params, has_aux=True)
    (_, velocity), gradients = step(*[Tensor(array) for array in arrays])
    np.testing.assert_allclose(velocity.asnumpy(), expected.detach(), atol=1e-4)
    theirs = dict(twin.named_parameters())
    for (name, _), gradient in zip(network.parameters_and_names(), gradients, strict=True):
        want = theirs[name].grad.numpy()
        np.testing.assert_allclose(gradient.asnumpy(), want, atol=2e-4 * max(1.0, np.abs(want).max()), err_msg=name)


def test_off_the_cpu_the_same_numbers(small, monkeypatch):
    want = run(small, inputs())
    for module in ("mg.ops.norm", "mg.ops.spread", "mg.ops.attention"):
        module = importlib.import_module(module)
        monkeypatch.setattr(module, "on_cpu", lambda: False)
    np.testing.assert_allclose(run(small, inputs()), want, atol=1e-5)


def test_padding_of_the_text_is_inert(small):
    arrays = inputs()
    want = run(small, arrays)
    arrays[3][0, 1:3] = 1e3
    np.testing.assert_array_equal(run(small, arrays), want)
    arrays[3][0, 0] += 1.0
    assert np.abs(run(small, arrays)[0] - want[0]).max() > 1e-4


def test_a_text_without_any_token_is_a_text(small):
    arrays = inputs()
    arrays[2][:] = 0
    first = run(small, arrays)
    arrays[3] = arrays[3] + 5
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(run(small, arrays), first)


def test_a_batch_is_its_members(small):
    arrays = inputs(b=3)
    together = run(small, arrays)
    for i in range(3):
        np.testing.assert_allclose(run(small, [array[i : i + 1] for array in arrays])[0], together[i], atol=2e-5)


def test_every_frame_has_a_part_in_every_other(small):
    arrays = inputs()
    want = run(small, arrays)
    arrays[0][:, :, 2] += 1.0
    assert np.abs(run(small, arrays)[:, :, 0] - want[:, :, 0]).max() > 1e-4


def test_the_same_content_elsewhere_is_another_token(small):
    arrays = inputs(b=1, size=(3, 4, 6))
    arrays[0][:] = 1.0
    out = run(small, arrays)[0]  # (c, t, h, w), patches of 2 x 2
    tokens = out.reshape(4, 3, 2, 2, 3, 2).transpose(1, 2, 4, 0, 3, 5).reshape(18, -1)
    assert all(np.abs(tokens[i] - tokens[j]).max() > 1e-4 for i in range(18) for j in range(i))


def test_patches_of_several_frames(pynative):
    config = replace(SMALL, patch_size=(2, 2, 2))
    network = LlamaModel(config)
    latent = inputs(size=(4, 4, 6))[0]
    tokens = network.patchify(Tensor(latent))
    assert tokens.shape == (2, 2 * 2 * 3, 4 * 8)
    p = latent[1, :, 2:4, 2:4, 4:6]  # last token: (c, p, q, r)
    np.testing.assert_array_equal(tokens.asnumpy()[1, -1], p.reshape(-1))
    targets = network.patch_targets(Tensor(latent))
    np.testing.assert_array_equal(targets.asnumpy()[1, -1], p.transpose(1, 2, 3, 0).reshape(-1))
    np.testing.assert_array_equal(network.unpatchify(targets, latent.shape).asnumpy(), latent)
    assert run(build(config), inputs(size=(4, 4, 6))).shape == latent.shape


def test_kept_tokens_all_kept_is_no_dropout(small):
    arrays = [Tensor(array) for array in inputs()]
    n = 3 * 2 * 3
    whole = small.token_velocity(*arrays).asnumpy()
    every = small.token_velocity(*arrays, kept=Tensor(np.arange(2 * n, dtype=np.int32))).asnumpy()
    np.testing.assert_allclose(every, whole, atol=1e-6)
    rows = np.concatenate([np.arange(0, n, 2), n + np.arange(1, n, 2)]).astype(np.int32)
    some = small.token_velocity(*arrays, kept=Tensor(rows)).asnumpy()
    assert some.shape == (2, n // 2, whole.shape[2]) and np.abs(some[0] - whole[0, ::2]).max() > 1e-4


@pytest.mark.parametrize(
    "size, message",
    [((4, 4, 6), "t=4 needs 4 positions, the model has 3"), ((3, 10, 6), "h=10 needs 5 positions, the model has 4"),
     ((3, 4, 5), "w=5 is no multiple of the patch 2")],
)  # fmt: skip
def test_sizes_beyond_the_tables_are_refused(small, size, message):
    with pytest.raises(UserError, match=message):
        small.check_size(*size)
    with pytest.raises(UserError, match=message):
        run(small, inputs(size=size))


def test_fewer_key_heads_are_repeated_heads(pynative):
    narrow = build(replace(SMALL, num_key_value_heads=2))
    wide = build()
    params = dict(wide.parameters_and_names())
    for name, parameter in narrow.parameters_and_names():
        value = parameter.asnumpy()
        if "k_proj" in name or "v_proj" in name:
            value = value.reshape(2, 1, 6, -1).repeat(2, 1).reshape(24, -1)
        params[name].set_data(Tensor(np.ascontiguousarray(value)))
    np.testing.assert_allclose(run(narrow, inputs()), run(wide, inputs()), atol=1e-5)


def test_query_and_key_norms_make_their_scale_irrelevant(pynative):
    network = build(replace(SMALL, qk_norm=True))
    want = run(network, inputs())
    for name, parameter in network.parameters_and_names():
        if "q_proj" in name or "k_proj" in name:
            parameter.set_data(parameter * 7.0)
    np.testing.assert_allclose(run(network, inputs()), want, atol=1e-4)


def test_a_new_network_has_velocity_zero(pynative):
    network = LlamaModel(SMALL, seed=3)
    np.testing.assert_array_equal(run(network, inputs()), 0.0)
    same, other = LlamaModel(SMALL, seed=3), LlamaModel(SMALL, seed=4)
    name = "layers.1.mlp.up_proj.weight"
    weight, again, different = (dict(net.parameters_and_names())[name].asnumpy() for net in (network, same, other))
    np.testing.assert_array_equal(weight, again)
    assert np.abs(weight - different).max() > 0.01 and abs(weight.std() - 0.02) < 0.002


def test_half_precision_activations_are_near(pynative):
    arrays = inputs()
    full, half = run(build(), arrays), run(build(dtype="fp16"), arrays)
    assert half.dtype == np.float32 and 0 < np.abs(full - half).max() < 0.03 * np.abs(full).max()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"hidden_size": 25}, "hidden_size=25 must be a multiple of num_attention_heads=4"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3 must be a divisor"),
        ({"text_widths": (("byt5", 7), ("ul2", 6))}, "in this order"),
        ({"max_length": (0, 4, 4)}, "max_length"),
        ({"max_length": "4,4,4"}, "max_length='4,4,4' must be three numbers"),
        ({"max_length": (4, "4", 4)}, "max_length="),
        ({"patch_embedder": "mlp"}, "linear or conv3d"),
        ({"hidden_size": "192"}, "hidden_size='192' must be a whole number of at least 1"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers=2.0 must be a whole number"),
        ({"num_key_value_heads": "4"}, "num_key_value_heads='4' must be a divisor"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps='1e-5' must be a number above 0"),
        ({"qk_norm": "false"}, "qk_norm='false' must be true or false"),
        ({"attention_bias": 1}, "attention_bias=1 must be true or false"),
        ({"text_widths": 5}, "text_widths=5 must be pairs"),
        ({"text_widths": (("ul2", "6"),)}, "text_widths="),
    ],
)
def test_bad_configurations_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        replace(SMALL, **changes)
    with pytest.raises(UserError, match=message):  # as config.json would say it
        LlamaConfig.from_dict(json.loads(json.dumps({**SMALL.to_dict(), **changes})))
    with pytest.raises(UserError, match="unknown keys.*'depth'"):
        LlamaConfig.from_dict({**SMALL.to_dict(), "depth": 3})

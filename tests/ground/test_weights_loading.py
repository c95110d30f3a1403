"""Checks of tensors and loading into a network."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from mg.errors import UserError
from mg.weights import check_finite, load_into


def message_of(call, *arguments, **options) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nan_and_infinity_are_named():
    good = {"a": np.ones(3, np.float32), "i": np.array([1]), "none": np.zeros(0, np.float32)}
    check_finite(good, "w.safetensors")
    bad = {**good, "b": np.array([1, np.nan]), "c": np.array([[np.inf]]), "d": np.array(-np.inf, np.float16)}
    said = message_of(check_finite, bad, "w.safetensors")
    assert said.startswith("w.safetensors: NaN or infinity in b, c, d; ")
    many = {f"t{number:02d}": np.array([np.nan]) for number in range(25)}
    assert "t19 and 5 more" in message_of(check_finite, many, "w.safetensors")


class Net(nn.Cell):
    def __init__(self):
        super().__init__()
        self.layer = nn.Dense(3, 2)
        self.scale = Parameter(Tensor(1.0, ms.float32), name="scale")
        self.half = Parameter(Tensor(np.zeros(2), ms.float16), name="half")
        self.brain = Parameter(Tensor(np.zeros(2), ms.bfloat16), name="brain")
        self.steps = Parameter(Tensor(np.zeros(1), ms.int32), name="steps")

    def construct(self, x):
        return self.layer(x) * self.scale


def tensors_for_net() -> dict[str, np.ndarray]:
    return {
        "layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "layer.bias": np.array([10.0, 20.0], np.float32),
        "scale": np.array(2.0, np.float32),
        "half": np.array([0.1, 0.2], np.float32),
        "brain": np.array([1.5, -3.0], np.float32),
        "steps": np.array([7]),
    }


def test_loading_sets_values_in_each_parameters_type():
    net = Net()
    before = {name: param.dtype for name, param in net.parameters_and_names()}
    load_into(net, tensors_for_net(), path="w.safetensors")
    assert {name: param.dtype for name, param in net.parameters_and_names()} == before
    for name, param in net.parameters_and_names():
        expected = tensors_for_net()[name].astype(np.float16 if name == "half" else np.float32)
        np.testing.assert_array_equal(param.asnumpy().astype(np.float32), expected.astype(np.float32), err_msg=name)
    y = net(Tensor(np.ones((1, 3), np.float32))).asnumpy()
    np.testing.assert_array_equal(y, [[2 * (0 + 1 + 2 + 10), 2 * (3 + 4 + 5 + 20)]])


def test_loading_into_a_compiled_network_takes_effect():
    net, x = Net(), Tensor(np.ones((1, 3), np.float32))
    net(x)
    load_into(net, tensors_for_net(), path="w.safetensors")
    assert net(x).asnumpy().tolist() == [[26, 64]]


def test_loading_does_not_share_memory_with_the_arrays():
    net, tensors = Net(), tensors_for_net()
    load_into(net, tensors, path="w.safetensors")
    tensors["layer.bias"][:] = 0
    assert net.layer.bias.asnumpy().tolist() == [10, 20]


def test_prefixes_are_stripped_and_dead_tensors_ignored():
    net = Net()
    tensors = {f"wrap.{name.replace('layer.', 'layer._backbone.')}": a for name, a in tensors_for_net().items()}
    tensors["wrap.layer.dead.weight"] = np.ones(1)
    options = {"ignore": [r"layer\.dead\..*"], "strip": ["wrap.", "_backbone."]}
    load_into(net, tensors, path="w.safetensors", **options)
    assert net.layer.bias.asnumpy().tolist() == [10, 20]
    tensors["layer.dead.weight.too"] = np.ones(1)
    tensors["the.layer.dead.weight"] = np.ones(1)  # a pattern is for the whole name
    assert "1 unexpected: the.layer.dead.weight;" in message_of(load_into, net, tensors, path="w", **options)


def test_two_tensors_of_one_name_are_refused():
    tensors = {**tensors_for_net(), "wrap.scale": np.array(9.0)}
    said = message_of(load_into, Net(), tensors, path="w.ckpt", strip=["wrap."])
    assert said == "w.ckpt: two tensors are called scale without their prefixes; remove wrap.scale from it"


def test_all_that_does_not_fit_is_one_message_and_nothing_is_set():
    net, tensors = Net(), tensors_for_net()
    before = {name: param.asnumpy().copy() for name, param in net.parameters_and_names()}
    tensors["layer.weight"] = tensors["layer.weight"].T
    tensors["scale"] = tensors["scale"].reshape(1)
    del tensors["half"]
    tensors.update({f"extra{number:02d}": np.ones(1) for number in range(23)})
    said = message_of(load_into, net, tensors, path="w.safetensors")
    assert said.startswith("w.safetensors: does not fit this network; 1 missing: half; 23 unexpected: extra00, extra01")
    assert "extra19 and 3 more; 2 of another shape: " in said and "extra20" not in said
    assert "layer.weight (3, 2) instead of (2, 3)" in said and "scale (1,) instead of ()" in said
    for name, param in net.parameters_and_names():
        np.testing.assert_array_equal(param.asnumpy(), before[name])

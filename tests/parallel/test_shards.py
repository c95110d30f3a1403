"""What each device holds, without any process to talk to."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, ParameterTuple, Tensor, nn

from mg.config.trainer import OptimizerConfig
from mg.errors import UserError
from mg.models.llama.config import LlamaConfig
from mg.models.llama.network import LlamaModel
from mg.parallel.dims import ParallelDims
from mg.parallel.groups import Groups
from mg.parallel.held import Held, Part
from mg.parallel.pieces import part_length, piece_of, tensor_axis
from mg.parallel.plans_llama import check_plain, parallelise_llama
from mg.parallel.shards import Shards, buckets, flat_part
from mg.trainers.step import ApplyStep, Stepper

CONFIG = LlamaConfig(
    hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, max_length=(2, 4, 4),
    text_widths=(("ul2", 16),), in_channels=4, attention_bias=True,
)  # fmt: skip


def alone(rank=0, **degrees) -> Groups:
    return Groups(ParallelDims(**degrees), rank, create=lambda handle, ranks: None)


@pytest.mark.parametrize(("size", "parts"), [(12, 4), (10, 4), (3, 4), (1, 2)])
def test_flat_parts_are_equal_and_give_the_array_back(size, parts):
    array = np.arange(1, size + 1, dtype=np.float32)
    found = [flat_part(array, parts, i) for i in range(parts)]
    assert {len(part) for part in found} == {part_length(size, parts)}
    whole = np.concatenate(found)
    np.testing.assert_array_equal(whole[:size], array)
    assert not whole[size:].any()


def test_buckets_hold_neighbours_of_one_key_up_to_the_limit():
    assert buckets("aabab", [3, 3, 9, 3, 1], 6) == [[0, 1], [2], [3], [4]]
    assert buckets("aaa", [1, 1, 1], 100) == [[0, 1, 2]]
    assert buckets("ab", [200, 1], 100) == [[0], [1]]


@pytest.mark.parametrize("part", [Part((4, 6)), Part((4, 6), 0), Part((4, 6), 1), Part((5, 3)), Part((4, 6), 1, True),
                                  Part((5, 3), None, True)])  # fmt: skip
def test_the_parts_of_all_devices_are_the_whole(part):
    array = np.arange(np.prod(part.shape), dtype=np.float32).reshape(part.shape)
    found, own = [], []
    for rank in range(4):
        groups = alone(rank, zero=2, tensor=2, zero_stage=3)
        local = part.local(2)
        shape = (part_length(int(np.prod(local)), 2),) if part.flat else local
        held = Held(Parameter(Tensor(np.full(shape, -1, np.float32))), part, part.flat)
        held.fill(lambda piece: piece.of(array), groups.dims, rank)
        found.append(held.param.asnumpy())
        own.append(held.own(groups.dims, rank))
        wanted = piece_of(part.shape, part.axis, groups.dims, rank).of(array)
        np.testing.assert_array_equal(own[-1], wanted)  # its flat part, also where it has more than that
    if part.flat:
        whole = [np.concatenate([found[i], found[2 + i]]) for i in range(2)]
        size = int(np.prod(part.local(2)))
        assert not any(flat[size:].any() for flat in whole)  # filled up with zeros
        columns = [flat[:size].reshape(part.local(2)) for flat in whole]
        np.testing.assert_array_equal(columns[0] if part.axis is None else np.concatenate(columns, 1), array)
    elif part.axis is None:
        assert all((value == array).all() for value in found)
    else:
        np.testing.assert_array_equal(np.concatenate(found[:2], part.axis), array)
        np.testing.assert_array_equal(found[0], found[2])
    one = Held(Tensor(array), Part(part.shape), False)
    np.testing.assert_array_equal(one.whole(alone()), array)


def test_what_tensor_parallelism_divides_is_known_by_name():
    network = LlamaModel(LlamaConfig(**{**CONFIG.to_dict(), "qk_norm": True}))
    parts = parallelise_llama(network, alone(tensor=2))
    axes = {name: parts.of(param).axis for name, param in network.parameters_and_names()}
    assert {name: tensor_axis(f"exp_avg/{name}") for name in axes} == axes == {name: tensor_axis(name) for name in axes}
    assert sorted(axes.values(), key=str).count(0) > 10 and list(axes.values()).count(1) == 6


def numbers(params) -> int:
    return sum(int(np.prod(param.shape)) for param in params)


@pytest.mark.parametrize(
    "degrees",
    [{"zero": 4, "zero_stage": 3}, {"sequence": 2, "context": 2, "zero_stage": 3}],
)
def test_stage_3_on_four_devices_takes_less_than_30_percent_of_parameters_and_optimizer_state(degrees):
    network = LlamaModel(CONFIG)
    names = list(dict(network.parameters_and_names()))
    serial = numbers(network.get_parameters()) * 3  # weights and two moments
    groups = alone(**degrees)
    parts = parallelise_llama(network, groups)
    params = ParameterTuple(list(network.get_parameters()))
    assert list(dict(network.parameters_and_names())) == names
    shards = Shards(params, [parts.of(param) for param in params], groups)
    update = ApplyStep(shards.owned, OptimizerConfig(), 0.0, names, [part.shape for part in shards.parts])
    held = {id(param): param for param in (*params, *shards.owned, *update.state(names).values())}
    assert numbers(held.values()) <= 0.3 * serial


def test_decay_on_matrices_knows_the_whole_shapes_of_parts():
    params = ParameterTuple([Parameter(Tensor(np.ones(shape, np.float32)), name=f"p{len(shape)}")
                             for shape in ((4, 6), (5,))])  # fmt: skip
    shards = Shards(params, [Part((4, 6)), Part((5,))], alone(zero=2, zero_stage=1))
    assert [own.shape for own in shards.owned] == [(12,), (3,)]
    config = OptimizerConfig(weight_decay=0.1, decay_on="matrices")
    update = ApplyStep(shards.owned, config, 0.0, ["a", "b"], [part.shape for part in shards.parts])
    assert [(group.group.weight_decay, group.group.places) for group in update.groups] == [(0.1, (0,)), (0.0, (1,))]


@pytest.mark.parametrize(
    ("degrees", "message"),
    [
        ({"tensor": 8}, r"num_attention_heads=4 cannot be divided by parallel tensor x sequence = 8"),
        ({"sequence": 3}, r"num_attention_heads=4 cannot be divided by parallel tensor x sequence = 3"),
    ],
)
def test_heads_that_cannot_be_divided_are_refused(degrees, message):
    with pytest.raises(UserError, match=message):
        parallelise_llama(LlamaModel(CONFIG), alone(**degrees))


def test_widths_that_cannot_be_divided_are_refused():
    network = LlamaModel(LlamaConfig(**{**CONFIG.to_dict(), "intermediate_size": 97, "text_widths": (("ul2", 16),)}))
    with pytest.raises(UserError, match=r"parallel.tensor=2 cannot divide .*gate_proj.weight, 97 along axis 0"):
        parallelise_llama(network, alone(tensor=2))


def test_other_networks_take_data_parallelism_and_the_first_two_stages():
    network = nn.Dense(2, 2)
    assert not check_plain(network, alone(data=2, zero=2, zero_stage=2))
    with pytest.raises(UserError, match="transformers only, not a Dense"):
        check_plain(network, alone(tensor=2))
    with pytest.raises(UserError, match="zero_stage=3 is for transformers"):
        check_plain(network, alone(zero=2, zero_stage=3))


def test_soap_is_refused_where_weights_are_divided():
    class Loss(nn.Cell):
        inputs, terms = ("x",), ()

        def __init__(self):
            super().__init__()
            self.layer = nn.Dense(2, 2)

    loss = Loss()
    params = ParameterTuple(loss.trainable_params())
    shards = Shards(params, [Part(tuple(param.shape)) for param in params], alone(zero=2, zero_stage=1))
    with pytest.raises(UserError, match="optimizer.name=soap needs whole weights"):
        Stepper(loss, params, OptimizerConfig(name="soap"), 0.0, shards=shards)


def test_recomputation_is_kept():
    network = LlamaModel(CONFIG, recompute_every_nth_block=2)
    parallelise_llama(network, alone(context=2))
    assert [block._recompute_cell is not None for block in network.layers] == [True, False]
    assert ms.get_context("mode") == ms.GRAPH_MODE

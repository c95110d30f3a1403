"""Optimizers, parameter groups, frozen parts, and accumulation against the joint batch."""

import json

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Parameter, ParameterTuple, Tensor
from test_player import two_players
from trainer_toy import RootLoss, ToyNet, ToySource, give, toy_config, toy_trainer

from mg.config import cli
from mg.config.trainer import OptimizerConfig, ScheduleConfig, TrainerConfig
from mg.errors import UserError
from mg.trainers import Trainer
from mg.trainers.optim import grouped
from mg.trainers.select import frozen
from mg.trainers.step import ApplyStep
from mg.weights import read_weights

NAMES = ("enc.conv.weight", "enc.conv.bias", "enc.norm.weight", "dec.conv.weight", "dec.token")
SHAPES = ((3, 4, 2, 2), (3,), (7,), (5, 6), ())


def run(config, updates=5, size=1.0):
    """Return the weights before and after, the gradients, and the ApplyStep, which clips nothing."""
    rng = np.random.default_rng(3)
    before = [rng.standard_normal(shape).astype(np.float32) for shape in SHAPES]
    params = ParameterTuple([Parameter(Tensor(value), name=name) for value, name in zip(before, NAMES, strict=True)])
    update = ApplyStep(params, config, 0.0, NAMES)
    steps = [[np.float32(rng.standard_normal(shape) * size) for shape in SHAPES] for _ in range(updates)]
    for number, grads in enumerate(steps, start=1):
        give(update, grads)
        update.apply(1.0, config.lr, number)
    return before, [param.asnumpy() for param in params], steps, update


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE])
def test_descent_is_its_formula(mode, momentum):
    ms.set_context(mode=mode)
    before, after, steps, update = run(OptimizerConfig(name="sgd", lr=0.1, momentum=momentum, weight_decay=0.2))
    for place, weight in enumerate(before):
        weight, velocity = weight.astype(np.float64), 0.0
        for grads in steps:
            velocity = momentum * velocity + grads[place]
            weight = weight - 0.1 * (velocity + 0.2 * weight)
        np.testing.assert_allclose(after[place], weight, atol=1e-6)
    assert sorted(update.state(NAMES)) == sorted(f"momentum/{name}" for name in NAMES if momentum)


@pytest.mark.parametrize("name", ["adamw", "soap", "sgd"])
def test_groups_have_their_own_rate_and_decay_and_one_graph(name):
    common = dict(name=name, lr=1e-2, weight_decay=0.1)
    config = OptimizerConfig(
        **common, decay_on="matrices", lr_factors={"dec.token": 2.0, "dec.*": 0.5}, weight_decays={"*.norm.*": 0.3}
    )
    _, after, _, update = run(config)
    assert len(update.compile_cache) == 1
    rates = (1.0, 1.0, 1.0, 0.5, 2.0)
    decays = (0.1, 0.0, 0.3, 0.1, 0.0)
    for place, (rate, decay) in enumerate(zip(rates, decays, strict=True)):
        alone = OptimizerConfig(name=name, lr=1e-2 * rate, weight_decay=decay)
        np.testing.assert_allclose(after[place], run(alone)[1][place], atol=1e-6, err_msg=NAMES[place])
    assert not np.allclose(after[3], run(OptimizerConfig(**common))[1][3], atol=1e-4)


def test_groups_equal_those_of_torch_adamw():
    config = OptimizerConfig(lr=1e-2, weight_decay=0.1, decay_on="matrices", lr_factors={"dec.*": 0.5})
    before, after, steps, _ = run(config)
    peers = [torch.nn.Parameter(torch.tensor(value)) for value in before]
    groups = [
        {"params": [peers[0]], "lr": 1e-2, "weight_decay": 0.1},
        {"params": peers[1:3], "lr": 1e-2, "weight_decay": 0.0},
        {"params": [peers[3]], "lr": 5e-3, "weight_decay": 0.1},
        {"params": [peers[4]], "lr": 5e-3, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups)
    for grads in steps:
        for peer, grad in zip(peers, grads, strict=True):
            peer.grad = torch.tensor(grad)
        optimizer.step()
    for found, peer in zip(after, peers, strict=True):
        np.testing.assert_allclose(found, peer.detach().numpy(), atol=1e-6)


def test_without_patterns_there_is_one_group():
    assert [group.places for group in grouped(NAMES, SHAPES, OptimizerConfig(weight_decay=0.1))] == [(0, 1, 2, 3, 4)]
    by_size = grouped(NAMES, SHAPES, OptimizerConfig(weight_decay=0.1, decay_on="matrices"))
    assert [(group.weight_decay, group.places) for group in by_size] == [(0.1, (0, 3)), (0.0, (1, 2, 4))]


def test_a_pattern_without_a_parameter_names_those_near_it(tmp_path):
    with pytest.raises(UserError, match=r"optimizer.lr_factors: no parameter is called 'dec.cnv.\*'.*dec.conv.weight"):
        run(OptimizerConfig(lr_factors={"dec.cnv.*": 0.1}))
    with pytest.raises(UserError, match=r"optimizer.weight_decays: no parameter is called 'x'"):
        run(OptimizerConfig(weight_decays={"x": 0.1}))
    with pytest.raises(UserError, match=r"freeze: no parameter is called 'frist.\*'.*first.weight"):
        toy_trainer(tmp_path, 1, freeze=("frist.*",))
    with pytest.raises(UserError, match="freeze: no parameter is left to train"):
        network = ToyNet()
        config = toy_config(1, freeze=("*",))
        Trainer(network=network, loss=RootLoss(network), batches=ToySource(), config=config, output_path=tmp_path)


def test_patterns_choose_and_take_out_again():
    assert frozen(("enc.*", "!*.bias"), NAMES) == {"enc.conv.weight", "enc.norm.weight"}
    assert frozen(("*", "!dec.*", "dec.token"), NAMES) == {*NAMES[:3], "dec.token"}
    assert frozen((), NAMES) == set()


@pytest.mark.parametrize("optimizer", ["adamw", "soap"])
def test_frozen_tensors_keep_their_bits_and_have_no_state(tmp_path, optimizer):
    trainer = toy_trainer(tmp_path, 10, freeze=("first.*",), optimizer=OptimizerConfig(name=optimizer, lr=1e-2))
    before = {name: param.asnumpy().copy() for name, param in trainer._main.weights.items()}
    trainer.fit()
    folder = tmp_path / "step-00000010"
    after = read_weights(folder / "model.safetensors")
    for name, value in after.items():
        assert np.array_equal(value, before[name]) == (name in ("first.weight", "first.bias", "frozen")), name
    kept = {**read_weights(folder / "optimizer.safetensors"), **read_weights(folder / "ema.safetensors")}
    assert kept and not any("first" in name for name in kept)
    assert {"exp_avg/last.weight", "exp_avg_sq/last.bias", "last.weight"} <= set(kept)
    with pytest.raises(UserError, match=r"trainer.freeze was \['first.\*'\] is None"):
        toy_trainer(tmp_path, 11, optimizer=OptimizerConfig(name=optimizer)).fit()


def joint(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def rows(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_accumulated_steps_equal_steps_of_the_big_batch(tmp_path, momentum):
    """Four micro-batches of 6 rows with 1 to 6 valid ones, against one batch of 24, three steps of both players."""
    source = ToySource()
    sgd = OptimizerConfig(name="sgd", lr=1e-2, momentum=momentum, clip_grad_norm=0.0)
    settings = dict(start_step=1, schedule=ScheduleConfig(), optimizer=sgd)
    big = lambda start: (  # noqa: E731
        joint([source.batch(4 * step + part) for part in range(4)]) for step in range(start, 100)
    )
    two_players(tmp_path / "parts", 3, source, accumulation=4, judge_optimizer=sgd, **settings)[0].fit()
    two_players(tmp_path / "whole", 3, big, accumulation=1, judge_optimizer=sgd, **settings)[0].fit()
    valid = [source.batch(index)["mask"].sum() for index in range(12)]
    assert len(set(valid)) > 3
    for file in ("model", "judge.model"):
        parts, whole = (read_weights(tmp_path / name / "step-00000003" / f"{file}.safetensors")
                        for name in ("parts", "whole"))
        for name in parts:
            np.testing.assert_allclose(parts[name], whole[name], atol=1e-6, err_msg=name)
    for part, whole in zip(rows(tmp_path / "parts"), rows(tmp_path / "whole"), strict=True):
        for name in ("loss", "error", "fooled", "judge.loss", "judge.real", "grad_norm", "judge.grad_norm"):
            assert part[name] == pytest.approx(whole[name], rel=2e-6, abs=1e-6), name


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: OptimizerConfig(name="adam"), "optimizer.name='adam' must be 'adamw', 'soap' or 'sgd'"),
        (lambda: OptimizerConfig(momentum=0.9), "optimizer.momentum=0.9 must be 0 unless"),
        (lambda: OptimizerConfig(name="sgd", momentum=1.0), "optimizer.momentum=1.0"),
        (lambda: OptimizerConfig(decay_on="some"), "optimizer.decay_on='some'"),
        (lambda: OptimizerConfig(lr_factors={"a.*": -1.0}), "optimizer.lr_factors[a.*]=-1.0"),
    ],
)
def test_values_out_of_range_are_named(make, words):
    with pytest.raises(UserError) as caught:
        make()
    assert words in str(caught.value)


def test_patterns_come_from_yaml_and_the_command_line(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("steps: 3\nfreeze: ['enc.*', '!enc.last.*']\n"
                    "optimizer:\n  lr_factors: {'dec.*': 0.5, '*.bias': 2}\n")
    config = cli.parse(TrainerConfig, ["--config", str(file), "--optimizer.weight_decays", '{"*.norm.*": 0}'])
    assert config.freeze == ("enc.*", "!enc.last.*")
    assert config.optimizer.lr_factors == {"dec.*": 0.5, "*.bias": 2.0}
    assert config.optimizer.weight_decays == {"*.norm.*": 0.0}
    file.write_text(cli.dump(config))
    assert cli.load(TrainerConfig, file) == config

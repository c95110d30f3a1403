"""Two players in one loop: a generator and a judge, compared with the same training in PyTorch."""

import json
import os
import signal

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import nn, ops
from trainer_toy import TARGETS, ToyLoss, ToyNet, ToySource, toy_config

from mg.config.trainer import OptimizerConfig, ScheduleConfig
from mg.errors import UserError
from mg.trainers import Player, Trainer
from mg.weights import read_weights

RATE = 2e-2
BETAS = (0.5, 0.9)


class Judge(nn.Cell):
    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(11)
        self.score = nn.Dense(TARGETS, 1)
        for param in self.trainable_params():
            param.set_data(ms.Tensor(rng.standard_normal(param.shape).astype(np.float32)))

    def construct(self, y):
        return self.score(ops.tanh(y))[:, 0]


class GeneratorLoss(nn.Cell):
    inputs = ("x", "y", "mask", "adversarial")
    terms = ("error", "fooled")

    def __init__(self, network, judge):
        super().__init__(auto_prefix=False)
        self.network, self.judge = network, judge

    def construct(self, x, y, mask, adversarial):
        made = self.network(x)
        valid = mask.sum()
        error = ((made - y) * (made - y) * mask).sum() / valid
        fooled = -(self.judge(made) * mask[:, 0]).sum() / valid
        return error + adversarial * fooled, valid, error, fooled


class JudgeLoss(nn.Cell):
    inputs = ("x", "y", "mask", "centre")
    terms = ("real",)

    def __init__(self, network, judge):
        super().__init__(auto_prefix=False)
        self.network, self.judge = network, judge

    def construct(self, x, y, mask, centre):
        made = ops.stop_gradient(self.network(x))
        rows, valid = mask[:, 0], mask.sum()
        real = (self.judge(y) * rows).sum() / valid
        hinge = (ops.relu(1 - self.judge(y)) * rows + ops.relu(1 + self.judge(made)) * rows).sum() / valid
        return hinge + 0.1 * (self.judge(y) * rows).sum() / valid * centre, valid, real


class Switch:
    """Turns the generator's second term on at step 3."""

    def inputs(self, step):
        return {"adversarial": np.float32(step >= 3)}

    def observe(self, step, terms):
        pass

    def state(self):
        return {}

    def restore(self, state):
        pass


class Centre:
    """Follows the judge's mean score of real rows."""

    def __init__(self):
        self.value, self.seen = 0.25, []

    def inputs(self, step):
        return {"centre": np.float32(self.value)}

    def observe(self, step, terms):
        self.seen.append(step)
        self.value = 0.5 * self.value + 0.5 * terms["real"]

    def state(self):
        return {"value": self.value, "seen": self.seen}

    def restore(self, state):
        self.value, self.seen = state["value"], list(state["seen"])


def two_players(output, steps, source=None, start_step=3, judge_optimizer=None, **changes):
    network, judge, memory = ToyNet(), Judge(), Centre()
    config = dict(
        accumulation=1, ema_decay=0.0, schedule=ScheduleConfig(),
        optimizer=OptimizerConfig(lr=RATE, betas=BETAS, clip_grad_norm=0.5),
    )
    player = Player(
        "judge", judge, JudgeLoss(network, judge),
        judge_optimizer or OptimizerConfig(lr=RATE / 2, betas=BETAS, clip_grad_norm=0.2, weight_decay=0.1),
        start_step, memory,
    )
    trainer = Trainer(
        network=network, loss=GeneratorLoss(network, judge), memory=Switch(), opponents=[player],
        batches=source or ToySource(), config=toy_config(steps, **{**config, **changes}), output_path=output,
    )
    return trainer, memory


def rows(output, name="metrics"):
    return [json.loads(line) for line in (output / f"{name}.jsonl").read_text().splitlines()]


def bits(output, step):
    folder = output / f"step-{step:08d}"
    return {
        f"{path.name}:{name}": value.tobytes()
        for path in folder.glob("*.safetensors") for name, value in read_weights(path).items()
    }


def values(params):
    return {name: param.asnumpy().copy() for name, param in params.items()}


class Peer:
    """The same two players in PyTorch."""

    def __init__(self):
        network, judge = ToyNet(), Judge()
        made = {**dict(network.parameters_and_names()), **dict(judge.parameters_and_names())}
        self.p = {name: torch.tensor(param.asnumpy().copy(), requires_grad=True) for name, param in made.items()}
        own = [name for name in self.p if name.startswith(("first", "last"))]
        self.generator = torch.optim.AdamW([self.p[name] for name in own], RATE, BETAS, weight_decay=0.0)
        judging = [self.p["score.weight"], self.p["score.bias"]]
        self.judging = torch.optim.AdamW(judging, RATE / 2, BETAS, weight_decay=0.1)
        self.centre = 0.25

    def make(self, x):
        p = self.p
        return torch.tanh(x @ p["first.weight"].T + p["first.bias"]) @ p["last.weight"].T + p["last.bias"]

    def judge(self, y):
        return (torch.tanh(y) @ self.p["score.weight"].T + self.p["score.bias"])[:, 0]

    def step(self, number, batch):
        x, y, mask = (torch.tensor(batch[name]) for name in ("x", "y", "mask"))
        rows_, valid = mask[:, 0], mask.sum()
        made = self.make(x)
        loss = ((made - y) ** 2 * mask).sum() / valid
        if number >= 3:
            loss = loss - (self.judge(made) * rows_).sum() / valid
        real, fake = self.judge(y), self.judge(made.detach())
        hinge = (torch.relu(1 - real) * rows_ + torch.relu(1 + fake) * rows_).sum() / valid
        judged = hinge + 0.1 * (real * rows_).sum() / valid * self.centre
        sides = [(loss, self.generator, 0.5)]
        if number >= 3:
            sides.append((judged, self.judging, 0.2))
            self.centre = 0.5 * self.centre + 0.5 * ((real * rows_).sum() / valid).item()
        grads = [torch.autograd.grad(value, side.param_groups[0]["params"]) for value, side, _ in sides]
        for (_, side, limit), found in zip(sides, grads, strict=True):
            for param, grad in zip(side.param_groups[0]["params"], found, strict=True):
                param.grad = grad
            torch.nn.utils.clip_grad_norm_(side.param_groups[0]["params"], limit)
            side.step()
        return loss.item(), judged.item()


def test_six_steps_equal_the_same_training_in_pytorch(tmp_path):
    trainer, memory = two_players(tmp_path, 6)
    trainer.fit()
    peer, source = Peer(), ToySource()
    losses = [peer.step(number, source.batch(number - 1)) for number in range(1, 7)]
    logged = rows(tmp_path)
    np.testing.assert_allclose([row["loss"] for row in logged], [loss for loss, _ in losses], rtol=1e-5)
    np.testing.assert_allclose([row["judge.loss"] for row in logged[2:]], [loss for _, loss in losses[2:]], rtol=1e-5)
    folder = tmp_path / "step-00000006"
    found = {**read_weights(folder / "model.safetensors"), **read_weights(folder / "judge.model.safetensors")}
    for name, value in found.items():
        if name != "frozen":
            np.testing.assert_allclose(value, peer.p[name].detach().numpy(), atol=2e-6, err_msg=name)
    assert memory.value == pytest.approx(peer.centre, rel=1e-5)


def test_before_its_start_a_player_is_not_computed_changed_or_logged(tmp_path):
    trainer, memory = two_players(tmp_path / "later", 2, start_step=3)
    judge = trainer._learners[1]
    before = values(judge.weights)
    trainer.fit()
    assert judge.compilations == 0 and judge.updates == 0 and memory.seen == []
    assert all(np.array_equal(before[name], now) for name, now in values(judge.weights).items())
    assert not any(key.startswith("judge.") for row in rows(tmp_path / "later") for key in row)
    trainer, memory = two_players(tmp_path / "later", 4, start_step=3)
    trainer.fit()
    assert memory.seen == [3, 4]
    assert [row.get("judge.lr") for row in rows(tmp_path / "later")] == [None, None, RATE / 2, RATE / 2]


def test_a_step_of_one_player_changes_nothing_of_the_other(tmp_path):
    trainer, _ = two_players(tmp_path, 1, start_step=1)
    generator, judge = trainer._learners
    batch = ToySource().batch(0)
    for acting, resting in ((generator, judge), (judge, generator)):
        still = {**values(resting.weights), **values(resting._moments())}
        moving = values(acting.weights)
        acting.begin(1)
        acting.add(batch)
        acting.measure()
        acting.apply(1e-2)
        now = {**values(resting.weights), **values(resting._moments())}
        assert all(np.array_equal(still[name], now[name]) for name in still)
        changed = {name for name, value in values(acting.weights).items() if not np.array_equal(value, moving[name])}
        assert changed == set(moving) - {"frozen"}
    assert not set(map(id, generator.params)) & set(map(id, judge.params))


@pytest.mark.parametrize("stops", [(2,), (1, 3, 4)])
def test_resumed_equals_uninterrupted_bit_for_bit_with_memory_and_averages(tmp_path, stops):
    settings = dict(accumulation=2, ema_decay=0.9, schedule=ScheduleConfig(name="cosine", warmup_steps=2))
    source = ToySource(bad=(8,))  # step 5 is skipped: both players count updates of their own
    straight, kept = two_players(tmp_path / "straight", 6, source, start_step=2, **settings)
    straight.fit()
    for steps in (*stops, 6):
        # A cosine knows the number of steps, so every part is told the same one and stopped early.
        trainer, memory = two_players(tmp_path / "parts", 6, source, start_step=2, **settings)
        stop_after(trainer, steps)
        trainer.fit()
    assert bits(tmp_path / "parts", 6) == bits(tmp_path / "straight", 6)
    files = {path.name for path in (tmp_path / "parts" / "step-00000006").glob("*.safetensors")}
    assert files == {f"{name}.safetensors" for name in ("model", "optimizer", "ema", "judge.model", "judge.optimizer")}
    assert memory.state() == kept.state() == {"value": kept.value, "seen": [2, 3, 4, 6]}
    assert [learner.updates for learner in trainer._learners] == [5, 4]
    losses = [[(row["step"], row["loss"], row.get("judge.loss")) for row in rows(tmp_path / name)]
              for name in ("parts", "straight")]
    assert losses[0] == losses[1]


def stop_after(trainer, steps):
    """Make `fit` end after `steps`, with a checkpoint, as a signal would."""
    one_step = trainer._one_step

    def counted(log, batches, *rest):
        one_step(log, batches, *rest)
        if trainer.step == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer._one_step = counted


@pytest.mark.parametrize("side", ["generator", "judge"])
def test_a_bad_number_of_either_player_skips_both(tmp_path, side):
    trainer, memory = two_players(tmp_path, 2, start_step=1)
    generator, judge = trainer._learners
    memory.value = float("nan") if side == "judge" else 0.25
    if side == "generator":
        trainer._main._memory.inputs = lambda step: {"adversarial": np.float32("inf")}
    before = {**values(generator.weights), **values(judge.weights)}
    trainer.fit()
    assert {**values(generator.weights), **values(judge.weights)}.keys() == before.keys()
    for name, value in {**values(generator.weights), **values(judge.weights)}.items():
        assert np.array_equal(value, before[name]), name
    assert (generator.updates, judge.updates, memory.seen) == (0, 0, [])
    reports = rows(tmp_path, "bad_steps")
    wrong = {"generator": "loss", "judge": "judge.loss"}[side]
    assert [report["step"] for report in reports] == [1, 2]
    assert not np.isfinite(float(reports[0][wrong]))
    other = {"generator": "judge.loss", "judge": "loss"}[side]
    assert np.isfinite(float(reports[0][other]))


def test_compilations_are_one_set_per_player(tmp_path):
    trainer, _ = two_players(tmp_path, 5, accumulation=2, start_step=2)
    trainer.fit()
    assert trainer.compilations == 4 + 4  # gradient, accumulation, norm, update of either


def test_another_set_of_players_is_refused_on_resume(tmp_path):
    two_players(tmp_path, 2)[0].fit()
    network = ToyNet()
    alone = Trainer(network=network, loss=ToyLoss(network), batches=ToySource(), output_path=tmp_path,
                    config=toy_config(4, accumulation=1, ema_decay=0.0))
    with pytest.raises(UserError, match=r"trainer.opponents was \['judge'\] is None"):
        alone.fit()


def test_players_must_not_share_names_or_parameters(tmp_path):
    network, judge = ToyNet(), Judge()

    def trainer(*players):
        return Trainer(network=network, loss=GeneratorLoss(network, judge), batches=ToySource(), opponents=players,
                       config=toy_config(1), output_path=tmp_path)

    one = Player("judge", judge, JudgeLoss(network, judge), OptimizerConfig())
    with pytest.raises(ValueError, match="same name"):
        trainer(one, one)
    with pytest.raises(ValueError, match="two players train the same parameter: judge.score.weight is other.score.w"):
        trainer(one, Player("other", judge, JudgeLoss(network, judge), OptimizerConfig()))
    with pytest.raises(ValueError, match="start_step=0"):
        Player("judge", judge, JudgeLoss(network, judge), OptimizerConfig(), start_step=0)
    with pytest.raises(ValueError, match="letters, digits"):
        Player("../judge", judge, JudgeLoss(network, judge), OptimizerConfig())

"""What the guard lets through, skips and ends: spikes, shares of bad steps, overflow of FP16 under a loss scale."""

import json
import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn, ops
from test_player import two_players
from trainer_toy import TARGETS, ToyNet, ToySource, toy_config, toy_trainer

from mg.config.guard import GuardConfig, LossScaleConfig, SpikeConfig
from mg.config.tae_train import TaeModelConfig, TaeTrainConfig
from mg.config.trainer import OptimizerConfig, ScheduleConfig, TrainerConfig
from mg.errors import NumericalAbort, UserError
from mg.trainers import Trainer
from mg.trainers.feed import Clock
from mg.trainers.guard import Guard, LossScale, Spikes
from mg.weights import read_weights

NORMS = [float(norm) for norm in np.exp(np.random.default_rng(5).standard_normal(150) * 0.3)]


def figures(norm, loss=1.0):
    return {"": {"loss": loss, "grad_norm": norm}}


def rows(output, name="metrics"):
    return [json.loads(line) for line in (output / f"{name}.jsonl").read_text().splitlines()]


def guard(norms=(), **changes):
    made = Guard(GuardConfig(spike=SpikeConfig(**changes)))
    for norm in norms:
        made.judge(figures(norm))
    return made


def test_a_spike_lies_beyond_median_and_deviation_of_the_window():
    logs = np.log(NORMS[-60:])
    median = np.median(logs)
    limit = median + 4.0 * 1.4826 * np.median(np.abs(logs - median))
    made = guard(NORMS, threshold=4.0, window=60, warmup=60)
    assert not made._judge(figures(math.exp(limit - 1e-6))).reason
    verdict = made._judge(figures(math.exp(limit + 1e-6)))
    assert (verdict.reason, verdict.skip, verdict.where) == ("spike", False, "grad_norm")


def test_even_gradients_and_the_first_steps_raise_no_alarm():
    made = guard([1.0] * 99)
    assert made._judge(figures(1e9)).reason == ""
    made = guard([1.0] * 100)
    assert made._judge(figures(math.exp(0.59))).reason == ""  # 6 deviations of at least 0.1
    assert made._judge(figures(math.exp(0.61))).reason == "spike"
    assert guard([1.0] * 100, action="off")._judge(figures(1e9)).reason == ""


def test_spikes_warn_skip_or_end_the_run():
    warned, skipped, ended = (guard(NORMS, action=action) for action in ("warn", "skip", "abort"))
    assert not warned.judge(figures(1e4)).skip and warned.bad == 0
    verdict = skipped.judge(figures(1e4))
    assert verdict.skip and (skipped.bad, skipped.bad_in_a_row) == (1, 1)
    assert skipped.why_abort(verdict) is None
    assert 1e4 not in np.exp(skipped.state()["spikes"][""]).round()  # a skipped step does not shift the window
    assert math.log(1e4) in warned.state()["spikes"][""]
    assert "spike" in ended.why_abort(ended.judge(figures(1e4)))


def test_the_share_of_bad_steps_counts_from_step_100_on():
    made = Guard(GuardConfig(max_bad_fraction=0.1))
    bad_steps = set(range(5, 55, 5)) | {99, 103, 104}  # 10 up to step 50, then the 11th, 12th and 13th
    ended = {}
    for step in range(1, 105):
        verdict = made.judge(figures(1.0, math.nan if step in bad_steps else 1.0))
        ended[step] = made.why_abort(verdict)
    assert [step for step, why in ended.items() if why] == [103, 104]
    assert ended[103] == "12 of 103 steps are bad (max_bad_fraction=0.1)"
    assert made.judge(figures(1.0)).reason == "" and made.why_abort(made.judge(figures(1.0))) is None


def test_an_overflow_ends_no_run_even_where_too_many_steps_were_bad_before():
    made = Guard(GuardConfig(max_bad_fraction=0.1, max_bad_steps=11, loss_scale=LossScaleConfig(init=64)))
    for step in range(1, 100):
        verdict = made.judge(figures(1.0, math.nan if step < 12 else 1.0))
        assert made.why_abort(verdict) is None
    verdict = made.judge(figures(math.inf))
    assert (verdict.reason, made.steps, made.bad) == ("overflow", 100, 11) and made.why_abort(verdict) is None
    assert made.why_abort(made.judge(figures(1.0, math.nan))) == "12 of 101 steps are bad (max_bad_fraction=0.1)"


def test_the_guards_state_is_json_and_goes_on_to_the_same_judgements():
    one = Guard(GuardConfig(loss_scale=LossScaleConfig(init=64, window=7), spike=SpikeConfig(window=50, warmup=40)))
    other = Guard(one.config)
    draws = np.random.default_rng(2)
    stream = [figures(norm if draws.random() > 0.1 else math.inf) for norm in NORMS]
    for found in stream[:70]:
        one.judge(found)
    other.restore(json.loads(json.dumps(one.state())))
    for found in stream[70:]:
        assert one.judge(found) == other.judge(found)
        assert one.loss_scale == other.loss_scale
    assert one.state() == other.state() and one.overflows > 3


def test_a_guard_without_loss_scale_goes_on_to_the_same_state():
    one, other = Guard(GuardConfig()), Guard(GuardConfig())
    one.judge(figures(1.0))
    other.restore(one.state())
    for made in (one, other):
        made.judge(figures(2.0))
    assert one.state() == other.state() and one.state()["steps"] == 2


def test_the_loss_scale_falls_on_overflow_and_rises_after_a_window():
    scale = LossScale(LossScaleConfig(init=8, factor=2, window=3))
    seen = []
    for overflow in (1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1):
        scale.overflowed() if overflow else scale.passed()
        seen.append(scale.value)
    assert seen == [4, 4, 4, 2, 2, 2, 4, 4, 4, 8, 4, 2, 1, 1, 1]


def test_only_a_gradient_under_a_scale_above_1_is_an_overflow():
    made = Guard(GuardConfig(loss_scale=LossScaleConfig(init=2)))
    assert made.judge(figures(math.inf)).reason == "overflow" and made.loss_scale == 1
    assert made.judge(figures(math.inf)).reason == "nonfinite"
    made = Guard(GuardConfig(loss_scale=LossScaleConfig(init=2)))
    assert made.judge(figures(math.nan, math.nan)).reason == "nonfinite" and made.loss_scale == 2
    assert (made.bad, made.overflows) == (1, 0)
    assert Guard(GuardConfig()).judge(figures(math.inf)).reason == "nonfinite"


def test_the_window_is_the_last_applied_steps():
    spikes = Spikes(SpikeConfig(window=3, warmup=2))
    for norm in (1.0, 2.0, 3.0, 4.0):
        spikes.take(norm)
    assert spikes.state() == [math.log(norm) for norm in (2.0, 3.0, 4.0)]


class HalfNet(ToyNet):
    """The toy with activations in FP16; records their types."""

    def construct(self, x):
        half = ms.float16
        hidden = ops.matmul(x.astype(half), self.first.weight.astype(half).T) + self.first.bias.astype(half)
        return ops.matmul(ops.tanh(hidden), self.last.weight.astype(half).T) + self.last.bias.astype(half)


class SmallLoss(nn.Cell):
    """Squared error times a factor, in FP32 behind the network."""

    inputs = ("x", "y", "mask")
    terms = ()

    def __init__(self, network, factor=1.0):
        super().__init__()
        self.network, self.factor = network, factor

    def construct(self, x, y, mask):
        difference = (self.network(x).astype(ms.float32) - y) * mask
        valid = mask.sum() * TARGETS
        return (difference * difference).sum() / valid * self.factor, valid


def half_trainer(output, steps, network=HalfNet, factor=1.0, source=None, **changes):
    net = network()
    settings = dict(accumulation=2, optimizer=OptimizerConfig(lr=1e-2, clip_grad_norm=0.0), schedule=ScheduleConfig())
    return Trainer(network=net, loss=SmallLoss(net, factor), batches=source or ToySource(), output_path=output,
                   config=toy_config(steps, **{**settings, **changes}))


def test_fp16_under_a_loss_scale_follows_fp32(tmp_path):
    half_trainer(tmp_path / "half", 20, loss_scale=LossScaleConfig(init=1024)).fit()
    half_trainer(tmp_path / "full", 20, ToyNet).fit()
    half, full = ([row["loss"] for row in rows(tmp_path / name)] for name in ("half", "full"))
    np.testing.assert_allclose(half, full, rtol=0.02)
    assert half != full


def test_small_gradients_survive_only_under_a_scale(tmp_path):
    """A loss of 1e-7: its gradients in FP16 are zero, or all but; times 2^14 they are right to 1 %."""
    batches = [ToySource().batch(5)]
    norms = {}
    for name, network, scale in (("full", ToyNet, None), ("bare", HalfNet, None), ("scaled", HalfNet, 2.0**14)):
        scaled = {} if scale is None else {"loss_scale": LossScaleConfig(init=scale)}
        trainer = half_trainer(tmp_path / name, 1, network, 1e-7, **scaled)
        trainer._main.begin(1, scale)
        trainer._main.add(batches[0])
        norms[name] = trainer._main.measure()["grad_norm"]
    assert norms["scaled"] == pytest.approx(norms["full"], rel=0.01)
    assert norms["bare"] < 0.9 * norms["full"]


def test_an_overflow_is_skipped_counted_and_halves_the_scale_also_over_a_resume(tmp_path):
    settings = dict(loss_scale=LossScaleConfig(init=2.0**22, window=4), max_bad_steps=0)
    half_trainer(tmp_path / "straight", 16, **settings).fit()
    for steps in (3, 9, 16):
        trainer = half_trainer(tmp_path / "parts", steps, **settings)
        trainer.fit()
    logged = rows(tmp_path / "straight")
    skipped = [row["step"] for row in logged if row["skipped"]]
    assert skipped[:3] == [1, 2, 3] and len(skipped) < 12
    scale, passed = 2.0**22, 0
    for row in logged:
        assert row["loss_scale"] == scale, row["step"]
        passed = 0 if row["skipped"] else passed + 1
        scale = scale / 2 if row["skipped"] else scale * 2 if passed == 4 else scale
        passed %= 4
    assert [row["step"] for row in rows(tmp_path / "straight", "bad_steps")] == skipped
    assert {row["reason"] for row in rows(tmp_path / "straight", "bad_steps")} == {"overflow"}
    states = [json.loads((tmp_path / name / "step-00000016" / "state.json").read_text())["guard"]
              for name in ("straight", "parts")]
    assert states[0] == states[1] and states[0]["overflows"] == len(skipped) and states[0]["bad"] == 0
    for file in ("model", "optimizer", "ema"):
        one, other = (read_weights(tmp_path / name / "step-00000016" / f"{file}.safetensors")
                      for name in ("straight", "parts"))
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert trainer.updates == 16 - len(skipped)


def test_weights_moments_and_averages_are_fp32_before_and_after_a_resume(tmp_path):
    def dtypes(trainer):
        main = trainer._main
        averages = {f"ema.{name}": value for name, value in main._averages().items()}
        named = {**main.weights, **main._moments(), **averages}
        return {name: param.dtype for name, param in named.items()}

    first = half_trainer(tmp_path, 1, loss_scale=LossScaleConfig(init=8))
    first.fit()
    second = half_trainer(tmp_path, 2, loss_scale=LossScaleConfig(init=8))
    second.fit()
    assert dtypes(first) == dtypes(second) and set(dtypes(first).values()) == {ms.float32}
    assert len(dtypes(first)) == 5 + 2 * 4 + 4
    for file in ("model", "optimizer", "ema"):
        saved = read_weights(tmp_path / "step-00000002" / f"{file}.safetensors")
        assert {value.dtype for value in saved.values()} == {np.dtype(np.float32)}


def test_both_players_are_judged_and_share_the_scale(tmp_path):
    trainer, _ = two_players(tmp_path, 3, start_step=1, loss_scale=LossScaleConfig(init=16),
                             spike=SpikeConfig(window=2, warmup=2, threshold=1e-3))
    plain, _ = two_players(tmp_path / "plain", 3, start_step=1)
    trainer.fit()
    plain.fit()
    assert set(trainer._guard.state()["spikes"]) == {"", "judge."}
    for ours, theirs in zip(trainer._learners, plain._learners, strict=True):  # a power of two leaves FP32 alone
        for name, param in ours.weights.items():
            np.testing.assert_allclose(param.asnumpy(), theirs.weights[name].asnumpy(), atol=1e-6)


def test_skipped_steps_name_their_samples(tmp_path):
    class Named(ToySource):
        def batch(self, index):
            return {**super().batch(index), "ids": [f"clip{index}-{row}.mp4" for row in range(2)]}

    toy_trainer(tmp_path, 3, Named(bad=(3,))).fit()
    (report,) = rows(tmp_path, "bad_steps")
    assert (report["step"], report["reason"], report["where"]) == (2, "nonfinite", "loss")
    assert report["ids"] == ["clip2-0.mp4", "clip2-1.mp4", "clip3-0.mp4", "clip3-1.mp4"]


def test_a_spike_is_logged_skipped_and_survives_a_resume(tmp_path):
    class Wild(ToySource):
        def batch(self, index):
            batch = super().batch(index)
            return {**batch, "y": batch["y"] * 1e4} if index == 12 else batch

    settings = dict(accumulation=1, spike=SpikeConfig(action="skip", window=8, warmup=4))
    toy_trainer(tmp_path / "straight", 16, Wild(), **settings).fit()
    for steps in (10, 16):
        toy_trainer(tmp_path / "parts", steps, Wild(), **settings).fit()
    for name in ("straight", "parts"):
        assert [(row["step"], row["reason"]) for row in rows(tmp_path / name, "bad_steps")] == [(13, "spike")]
    one, other = (
        read_weights(tmp_path / name / "step-00000016" / "model.safetensors") for name in ("straight", "parts")
    )
    assert all(np.array_equal(one[name], other[name]) for name in one)
    with pytest.raises(NumericalAbort, match="spike.action=abort.* up to step 13") as caught:
        toy_trainer(tmp_path / "abort", 16, Wild(), **{**settings, "spike": SpikeConfig(
            action="abort", window=8, warmup=4)}).fit()
    assert caught.value.exit_code == 3
    toy_trainer(tmp_path / "warn", 14, Wild(), **{**settings, "spike": SpikeConfig(window=8, warmup=4)}).fit()
    assert [row["step"] for row in rows(tmp_path / "warn", "events") if row["event"] == "spike"] == [13]
    assert rows(tmp_path / "warn", "bad_steps") == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SpikeConfig(action="cry"), "spike.action='cry'"),
        (lambda: SpikeConfig(threshold=0.0), "spike.threshold=0.0"),
        (lambda: SpikeConfig(warmup=300), "spike.warmup=300 must be from 2 to spike.window=200"),
        (lambda: LossScaleConfig(init=0.5), "loss_scale.init=0.5"),
        (lambda: LossScaleConfig(factor=1.0), "loss_scale.factor=1.0"),
        (lambda: LossScaleConfig(window=0), "loss_scale.window=0"),
        (lambda: TrainerConfig(steps=1, max_bad_fraction=0.0), "max_bad_fraction=0.0"),
        (lambda: TrainerConfig(steps=1, max_bad_steps=-1), "max_bad_steps=-1"),
        (
            lambda: TaeTrainConfig(
                model=TaeModelConfig(dtype="bf16"), train=TrainerConfig(steps=1, loss_scale=LossScaleConfig(init=8))
            ),
            "train.loss_scale.init=8 is for fp16; leave it 0 with model.dtype=bf16",
        ),
    ],
)
def test_values_out_of_range_are_named(make, words):
    with pytest.raises(UserError) as caught:
        make()
    assert words in str(caught.value)


def test_the_clock_counts_samples_and_the_frames_of_videos():
    videos = iter([{"video": np.zeros((2, 3, 5, 4, 4)), "names": ["a", "b"]}, {"video": np.zeros((3, 3, 1, 4, 4))}] * 2)
    clock = Clock(videos, 2, "video")
    assert len(list(clock)) == 2
    assert (clock.samples, clock.counts["frames"], clock.ids) == (5, 2 * 5 + 3 * 1, ["a", "b"])

import pytest

from mg.config.trainer import OptimizerConfig, ScheduleConfig, TrainerConfig
from mg.trainers.schedule import learning_rate


def test_warmup_is_a_line_that_reaches_the_peak_at_its_last_step():
    config = ScheduleConfig(warmup_steps=4)
    assert [learning_rate(step, 0.8, config, 10) for step in (1, 2, 3, 4, 5, 10)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 0.8, 0.8], abs=1e-15
    )


def test_a_run_shorter_than_its_warmup_only_rises():
    assert learning_rate(5, 1.0, ScheduleConfig(name="cosine", warmup_steps=50), 5) == 0.1


def test_cosine_passes_through_peak_middle_and_end():
    config = ScheduleConfig(name="cosine", warmup_steps=10, end_lr=0.2)
    rates = [learning_rate(step, 1.0, config, 110) for step in (10, 35, 60, 110)]
    assert rates == pytest.approx([1.0, 0.2 + 0.8 * (0.5 + 0.5**1.5), 0.6, 0.2], abs=1e-12)


def test_cosine_falls_at_every_step():
    config = ScheduleConfig(name="cosine", warmup_steps=0)
    rates = [learning_rate(step, 1.0, config, 20) for step in range(1, 21)]
    assert all(later < earlier for earlier, later in zip(rates, rates[1:], strict=False))


def test_a_tenth_of_1000_steps_is_a_warmup_of_100():
    config = ScheduleConfig(name="cosine", warmup_ratio=0.1)
    same = ScheduleConfig(name="cosine", warmup_steps=100)
    assert learning_rate(100, 0.8, config, 1000) == 0.8
    assert learning_rate(50, 0.8, config, 1000) == pytest.approx(0.4, abs=1e-15)
    for step in (1, 99, 100, 101, 500, 1000):
        assert learning_rate(step, 0.8, config, 1000) == learning_rate(step, 0.8, same, 1000)


def test_a_line_falls_by_the_same_every_step():
    config = ScheduleConfig(name="linear", warmup_steps=2, end_lr=0.1)
    rates = [learning_rate(step, 1.0, config, 11) for step in range(2, 12)]
    assert rates == pytest.approx([1.0 - 0.1 * step for step in range(10)], abs=1e-12)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: OptimizerConfig(lr=0.0), "optimizer.lr=0.0"),
        (lambda: OptimizerConfig(lr=float("nan")), "optimizer.lr=nan"),
        (lambda: OptimizerConfig(betas=(0.9, 1.0)), "optimizer.betas="),
        (lambda: OptimizerConfig(eps=0.0), "optimizer.eps=0.0"),
        (lambda: OptimizerConfig(clip_grad_norm=-1.0), "optimizer.clip_grad_norm=-1.0"),
        (lambda: ScheduleConfig(name="step"), "schedule.name='step'"),
        (lambda: ScheduleConfig(warmup_steps=-1), "schedule.warmup_steps=-1"),
        (lambda: ScheduleConfig(warmup_ratio=1.0), "schedule.warmup_ratio=1.0"),
        (lambda: ScheduleConfig(warmup_ratio=0.1, warmup_steps=5), "0 where schedule.warmup_steps=5 is set"),
        (lambda: TrainerConfig(steps=0), "steps=0"),
        (lambda: TrainerConfig(steps=1, epochs=-1.0), "epochs=-1.0"),
        (lambda: TrainerConfig(steps=1, epochs=1.0, samples=5), "samples=5 must be 0 where epochs=1 is set"),
        (lambda: TrainerConfig(steps=1, accumulation=2, global_batch=8), "accumulation=2 must be left out where"),
        (lambda: TrainerConfig(steps=1, accumulation=0), "accumulation=0"),
        (lambda: TrainerConfig(steps=1, ema_decay=1.0), "ema_decay=1.0"),
        (lambda: TrainerConfig(steps=5, keep_last=-1), "keep_last=-1"),
        (lambda: TrainerConfig(steps=5, validate_every=-1), "validate_every=-1"),
    ],
)
def test_values_out_of_range_are_named(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    assert words in str(caught.value)

"""The length of a run in passes and samples, and the size of a step in samples."""

import pytest
from trainer_toy import ToySource, toy_trainer

from mg.config.trainer import TrainerConfig
from mg.errors import UserError
from mg.trainers.budget import with_budget

BATCH, ITEMS = 4, 10


class Rows(ToySource):
    """Ten rows, four per batch, pass after pass without a gap; notes which were taken."""

    def __init__(self):
        super().__init__()
        self.taken = []

    def batch(self, index):
        numbers = [(index * BATCH + row) % ITEMS for row in range(BATCH)]
        self.taken += numbers
        batch = super().batch(index)
        return {name: value[:BATCH] for name, value in batch.items()}


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        (dict(samples=7), 2),  # less than the data: stops within one batch of 7
        (dict(samples=40), 10),  # more: goes on into further passes
        (dict(samples=41), 11),
        (dict(samples=17, accumulation=2), 3),
        (dict(epochs=1.0), 3),  # 2.5 batches
        (dict(epochs=4.0), 10),
        (dict(epochs=0.4), 1),
        (dict(epochs=2.0, global_batch=8), 3),
        (dict(samples=40, global_batch=20), 2),
        (dict(), 99),
    ],
)
def test_the_budget_is_hit_within_one_step(settings, steps):
    config = with_budget(TrainerConfig(steps=99, **settings), BATCH, ITEMS / BATCH)
    assert config.steps == steps
    per_step = BATCH * config.accumulation
    wanted = config.steps * per_step if not settings else settings.get("samples", ITEMS * settings.get("epochs", 0))
    assert 0 <= steps * per_step - wanted < per_step
    assert (config.epochs, config.samples, config.global_batch) == (0, 0, 0)


def test_thirds_of_a_batch_do_not_add_a_step():
    assert [with_budget(TrainerConfig(steps=1, epochs=3 * k), 3, 7 / 3).steps for k in (1, 10, 1000)] == [7, 70, 7000]


def test_a_run_takes_as_many_samples_as_asked_and_every_row_once_per_pass(tmp_path):
    source = Rows()
    config = with_budget(TrainerConfig(steps=1, epochs=4), BATCH, ITEMS / BATCH)
    trainer = toy_trainer(tmp_path, config.steps, source, accumulation=1, save_every=100)
    trainer.fit()
    assert trainer.step == 10 and len(source.taken) == 40
    assert [sorted(source.taken[at : at + ITEMS]) for at in range(0, 40, ITEMS)] == [list(range(ITEMS))] * 4


def test_a_global_batch_that_does_not_divide_is_refused_with_the_nearest():
    assert with_budget(TrainerConfig(steps=5, global_batch=12), 4, None).accumulation == 3
    with pytest.raises(UserError, match="=10 is not a multiple of data.batch_size=4; the nearest are 8 and 12"):
        with_budget(TrainerConfig(steps=5, global_batch=10), 4, None)
    with pytest.raises(UserError, match="the nearest are 4$"):
        with_budget(TrainerConfig(steps=5, global_batch=3), 4, None)


def test_what_a_training_cannot_follow_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"train.epochs=1.5: this training is told its length by train.steps"):
        with_budget(TrainerConfig(steps=5, epochs=1.5), None, None)
    with pytest.raises(ValueError, match="with_budget"):
        toy_trainer(tmp_path, 1, epochs=2.0)

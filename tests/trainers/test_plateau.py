"""The learning rate falls when validation stops getting better, and a resumed run remembers where it was."""

import json

import numpy as np
import pytest
from trainer_toy import toy_trainer

from mg.config.trainer import PlateauConfig, TrainerConfig
from mg.errors import UserError
from mg.trainers.plateau import Plateau
from mg.weights import read_weights

FIGURES = [1.0, 0.9, 0.9, 0.95, 0.9, 0.5, 0.499, 0.6, 0.7, 0.8]


def rows(output, name="metrics"):
    return [json.loads(line) for line in (output / f"{name}.jsonl").read_text().splitlines()]


def test_cuts_come_after_so_many_validations_without_progress():
    plateau = Plateau(PlateauConfig(factor=0.5, patience=2, min_delta=0.01))
    assert [plateau.observe(figure) for figure in FIGURES] == [
        False, False,  # better twice
        False, True,  # two in a row that are not
        False, False,  # counted anew; then better
        False, True, False, True,  # 0.499 is better by less than min_delta
    ]  # fmt: skip
    assert (plateau.scale, plateau.best) == (0.125, 0.5)


def test_a_larger_figure_may_be_the_better_one():
    plateau = Plateau(PlateauConfig(factor=0.1, patience=1, mode="max"))
    assert [plateau.observe(-figure) for figure in (3.0, 2.0, 2.5, 1.0)] == [False, False, True, False]


def test_a_figure_that_is_not_a_number_is_no_progress():
    plateau = Plateau(PlateauConfig(factor=0.1, patience=2))
    assert [plateau.observe(figure) for figure in (float("nan"), float("-inf"), 2.0)] == [False, True, False]
    assert plateau.best == 2.0


def test_no_cut_goes_below_the_floor_and_none_lifts_the_warm_up():
    plateau = Plateau(PlateauConfig(factor=0.1, patience=1, min_lr=1e-5))
    assert plateau.rate(1e-3) == 1e-3
    for figure in (1.0, 1.0):
        plateau.observe(figure)
    assert plateau.rate(1e-3) == pytest.approx(1e-4)
    for _ in range(5):
        plateau.observe(1.0)
    assert (plateau.rate(1e-3), plateau.rate(1e-6)) == (1e-5, 1e-6)


def test_off_by_default():
    plateau = Plateau(PlateauConfig())
    assert not any(plateau.observe(1.0) for _ in range(100))
    assert plateau.rate(0.125) == 0.125


def validate(step):
    return {"val_loss": FIGURES[(step - 1) % len(FIGURES)]}


SETTINGS = dict(
    validate=validate, validate_every=1, accumulation=1,
    lr_reduce_on_plateau=PlateauConfig(factor=0.5, patience=2, min_delta=0.01),
)  # fmt: skip


def test_the_trainer_uses_the_reduced_rate_and_resumes_to_the_same_bits(tmp_path):
    toy_trainer(tmp_path / "straight", 10, **SETTINGS).fit()
    rates = np.array([row["lr"] for row in rows(tmp_path / "straight")]) / 3e-2
    # Step 1 is warm-up; the cut after validation s holds from step s + 1 on.
    np.testing.assert_allclose(rates, [0.5, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25])
    cuts = [(row["step"], row["scale"]) for row in rows(tmp_path / "straight", "events") if row["event"] == "plateau"]
    assert cuts == [(4, 0.5), (8, 0.25), (10, 0.125)]
    for steps in (3, 7, 10):  # once in the middle of a count, once after a cut
        toy_trainer(tmp_path / "parts", steps, **SETTINGS).fit()
    for name in ("model", "optimizer", "ema"):
        whole, parts = (
            read_weights(tmp_path / run / "step-00000010" / f"{name}.safetensors") for run in ("straight", "parts")
        )
        assert all(np.array_equal(whole[key], parts[key]) for key in whole)
    state = json.loads((tmp_path / "parts/step-00000010/state.json").read_text())["plateau"]
    assert state == {"best": 0.5, "waited": 0, "scale": 0.125}


def test_the_extra_validation_at_the_end_does_not_count(tmp_path):
    changes = {**SETTINGS, "validate_every": 2}
    toy_trainer(tmp_path / "straight", 9, **changes).fit()
    for steps in (3, 5, 9):  # these end between two validations of the longer run
        toy_trainer(tmp_path / "parts", steps, **changes).fit()
    straight, parts = ([row["lr"] for row in rows(tmp_path / run)] for run in ("straight", "parts"))
    assert straight == parts


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"validate_every=0 must be 1 or above where lr_reduce_on_plateau"):
        TrainerConfig(steps=1, lr_reduce_on_plateau=PlateauConfig(factor=0.5))
    with pytest.raises(UserError, match="lr_reduce_on_plateau needs a validation"):
        toy_trainer(tmp_path, 2, **{**SETTINGS, "validate": None})
    with pytest.raises(UserError, match="monitor=val_loss: the validation has quality; name one"):
        toy_trainer(tmp_path, 2, **{**SETTINGS, "validate": lambda step: {"quality": 1.0}}).fit()


@pytest.mark.parametrize(
    "values, words",
    [
        ({"factor": 0.0}, "factor=0.0"), ({"factor": 1.5}, "factor=1.5"), ({"patience": 0}, "patience=0"),
        ({"min_delta": -1.0}, "min_delta=-1.0"), ({"min_lr": float("nan")}, "min_lr=nan"),
        ({"mode": "up"}, "mode='up'"),
    ],
)  # fmt: skip
def test_ranges(values, words):
    with pytest.raises(UserError, match=f"lr_reduce_on_plateau.{words}"):
        PlateauConfig(**values)

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import trainer_toy
from trainer_toy import ToySource, toy_config, toy_trainer

from mg.config.trainer import OptimizerConfig, ScheduleConfig
from mg.errors import NumericalAbort, UserError
from mg.trainers import Trainer
from mg.weights import read_weights

TIMES = ("step_time", "samples_per_s", "data_wait")


def rows(output, name="metrics"):
    return [json.loads(line) for line in (output / f"{name}.jsonl").read_text().splitlines()]


def timeless(output):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows(output)]


def tensors(output, step):
    folder = output / f"step-{step:08d}"
    return {
        f"{path.name}:{name}": value.tobytes()
        for path in folder.glob("*.safetensors") for name, value in read_weights(path).items()
    }


def test_the_loss_falls_and_everything_is_saved_under_the_networks_own_names(tmp_path):
    trainer = toy_trainer(tmp_path, 30, log_every=10)
    figures = trainer.fit()
    assert [row["step"] for row in rows(tmp_path)] == [1, 10, 20, 30]
    assert figures["loss"] < 0.5 * rows(tmp_path)[0]["loss"]
    assert figures["step"] == 30 and figures["stopped"] is False
    names = {"first.weight", "first.bias", "last.weight", "last.bias", "frozen"}
    assert set(read_weights(tmp_path / "step-00000030" / "model.safetensors")) == names
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000028", "step-00000030"]
    assert [row["event"] for row in rows(tmp_path, "events")][-2:] == ["save", "stop"]


def test_the_export_holds_the_averages_and_the_untrained_parameters(tmp_path):
    trainer = toy_trainer(tmp_path, 3)
    trainer.fit()
    trainer.export(tmp_path / "out.safetensors")
    exported = read_weights(tmp_path / "out.safetensors")
    averages = read_weights(tmp_path / "step-00000003" / "ema.safetensors")
    raw = read_weights(tmp_path / "step-00000003" / "model.safetensors")
    assert set(exported) == set(raw)
    for name in set(raw) - {"frozen"}:
        np.testing.assert_array_equal(exported[name], averages[name])
        assert not np.array_equal(exported[name], raw[name])
    np.testing.assert_array_equal(exported["frozen"], [1.0, 2.0])


@pytest.mark.parametrize("stops", [(4,), (2, 3, 6)])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, stops):
    bad = ToySource(bad=(5,))  # step 3 is skipped: the count of updates has to survive as well
    toy_trainer(tmp_path / "straight", 8, bad).fit()
    for steps in (*stops, 8):
        toy_trainer(tmp_path / "parts", steps, bad).fit()
    assert tensors(tmp_path / "parts", 8) == tensors(tmp_path / "straight", 8)
    assert len(tensors(tmp_path / "parts", 8)) == 5 + 3 * 5 + 1  # weights; moments, averages; the loss's own gain
    assert timeless(tmp_path / "parts") == timeless(tmp_path / "straight")
    assert [row["step"] for row in rows(tmp_path / "parts")] == list(range(1, 9))


def test_resumed_soap_equals_uninterrupted_bit_for_bit(tmp_path):
    optimizer = OptimizerConfig(name="soap", lr=3e-2, clip_grad_norm=0.5)
    toy_trainer(tmp_path / "straight", 13, optimizer=optimizer).fit()
    for steps in (1, 9, 11, 13):  # before and after the bases are begun (update 1) and refreshed (update 10)
        toy_trainer(tmp_path / "parts", steps, optimizer=optimizer).fit()
    assert tensors(tmp_path / "parts", 13) == tensors(tmp_path / "straight", 13)
    assert any("out_basis" in str(name) for name in tensors(tmp_path / "parts", 13))
    assert timeless(tmp_path / "parts") == timeless(tmp_path / "straight")


def test_a_figure_that_is_not_a_number_survives_a_resume(tmp_path):
    def validate(step):
        return {"quality": float("nan")} if step <= 2 else {}

    for steps in (2, 4):  # the second run saves again, with the figure of the first
        toy_trainer(tmp_path, steps, validate=validate, validate_every=2).fit()
    assert (tmp_path / "step-00000004").is_dir()


def test_a_crash_while_saving_costs_only_the_steps_since_the_last_checkpoint(tmp_path):
    class Crash(BaseException):
        pass

    def hook(point):
        if point == "optimizer" and (tmp_path / "parts" / "step-00000004").exists():
            raise Crash

    toy_trainer(tmp_path / "straight", 8).fit()
    with pytest.raises(Crash):
        toy_trainer(tmp_path / "parts", 8, hook=hook).fit()
    assert [row["step"] for row in rows(tmp_path / "parts")][-1] == 6
    toy_trainer(tmp_path / "parts", 8).fit()
    assert [row["step"] for row in rows(tmp_path / "parts", "events") if row["event"] == "resume"] == [4]
    assert tensors(tmp_path / "parts", 8) == tensors(tmp_path / "straight", 8)
    assert timeless(tmp_path / "parts") == timeless(tmp_path / "straight")


def test_sigterm_saves_and_another_process_goes_on_to_the_same_bits(tmp_path):
    run = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, trainer_toy.__file__, str(run), "200", "0.05"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) >= 3:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "'stopped': True" in out
    assert rows(run, "events")[-1]["reason"] == "SIGTERM"
    done = rows(run)[-1]["step"]
    assert 3 <= done < 200
    toy_trainer(run, done + 2).fit()
    toy_trainer(tmp_path / "straight", done + 2).fit()
    assert tensors(run, done + 2) == tensors(tmp_path / "straight", done + 2)
    assert timeless(run) == timeless(tmp_path / "straight")


def test_a_not_finite_step_changes_nothing_but_the_counters(tmp_path):
    toy_trainer(tmp_path / "good", 2).fit()
    trainer = toy_trainer(tmp_path / "bad", 4, ToySource(bad=(4, 7)))  # micro-batch 0 of step 3, 1 of step 4
    trainer.fit()
    assert trainer.updates == 2
    assert tensors(tmp_path / "bad", 4) == tensors(tmp_path / "good", 2)
    reports = rows(tmp_path / "bad", "bad_steps")
    found = [(row["step"], row["micro_batches"], row["loss"]) for row in reports]
    assert found == [(3, [4, 5], "nan"), (4, [6, 7], "nan")]
    assert [row["skipped"] for row in rows(tmp_path / "bad")] == [False, False, True, True]
    assert rows(tmp_path / "bad")[2]["loss"] is None


def test_a_skipped_step_leaves_no_trace_in_the_later_updates(tmp_path):
    """Moments and their bias correction count updates, not steps."""
    plain = dict(accumulation=1, schedule=ScheduleConfig())
    source = ToySource()
    without = lambda start: (source.batch(index) for index in (0, 2, 3)[start:])  # noqa: E731
    toy_trainer(tmp_path / "skipped", 4, ToySource(bad=(1,)), **plain).fit()
    toy_trainer(tmp_path / "never", 3, without, **plain).fit()
    assert tensors(tmp_path / "skipped", 4) == tensors(tmp_path / "never", 3)


def test_too_many_bad_steps_in_a_row_end_the_run_with_its_last_good_checkpoint(tmp_path):
    source = ToySource(bad=(2, 6, 8, 10))  # steps 2, 4, 5, 6: never three in a row before step 6
    trainer = toy_trainer(tmp_path, 20, source, max_bad_steps=2)
    with pytest.raises(NumericalAbort, match=r"3 bad steps in a row \(max_bad_steps=2\) up to step 6"):
        trainer.fit()
    assert [row["step"] for row in rows(tmp_path, "bad_steps")] == [2, 4, 5, 6]
    with pytest.raises(NumericalAbort, match="up to step 6"):  # resumed at step 4, the count goes on from 1
        toy_trainer(tmp_path, 20, source, max_bad_steps=2).fit()


def test_another_fingerprint_or_seed_is_refused_by_name(tmp_path):
    toy_trainer(tmp_path, 2, fingerprint={"model": {"ch": 32}}).fit()
    with pytest.raises(UserError, match="model.ch was 32 is 64"):
        toy_trainer(tmp_path, 4, fingerprint={"model": {"ch": 64}}).fit()
    with pytest.raises(UserError, match="trainer.accumulation was 2 is 1"):
        toy_trainer(tmp_path, 4, fingerprint={"model": {"ch": 32}}, accumulation=1).fit()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_a_finished_run_does_nothing_but_report(tmp_path):
    first = toy_trainer(tmp_path, 2).fit()
    again = toy_trainer(tmp_path, 2).fit()
    assert again == first


def test_validation_sees_the_averages_and_training_goes_on_as_if_it_had_not_been(tmp_path):
    seen = {}

    def validate(step):
        seen[step] = {name: param.asnumpy().copy() for name, param in trainer._main.weights.items()}
        return {"psnr": np.float32(20.0 + step)}

    trainer = toy_trainer(tmp_path / "with", 5, validate=validate, validate_every=2)
    figures = trainer.fit()
    toy_trainer(tmp_path / "without", 5).fit()
    assert sorted(seen) == [2, 4, 5] and figures["psnr"] == 25.0
    assert tensors(tmp_path / "with", 5) == tensors(tmp_path / "without", 5)
    averages = read_weights(tmp_path / "with" / "step-00000005" / "ema.safetensors")
    for name in ("first.weight", "last.bias"):
        np.testing.assert_array_equal(seen[5][name], averages[name])
    assert rows(tmp_path / "with", "validation") == [{"step": step, "psnr": 20.0 + step} for step in (2, 4, 5)]


def test_without_averaging_or_accumulation_validation_sees_the_weights(tmp_path):
    seen = []
    trainer = toy_trainer(
        tmp_path, 2, accumulation=1, ema_decay=0.0, validate_every=2,
        validate=lambda step: seen.append(trainer._main.weights["last.bias"].asnumpy().copy()) or {},
    )
    trainer.fit()
    np.testing.assert_array_equal(seen[0], read_weights(tmp_path / "step-00000002" / "model.safetensors")["last.bias"])
    assert not Path(tmp_path / "step-00000002" / "ema.safetensors").exists()


def test_batches_come_by_index_from_the_resume_point_also_from_a_factory(tmp_path):
    starts = []

    def factory(start):
        starts.append(start)
        source = ToySource()
        return (source.batch(index) for index in range(start, 1000))

    toy_trainer(tmp_path / "factory", 2, factory).fit()
    toy_trainer(tmp_path / "factory", 4, factory).fit()
    toy_trainer(tmp_path / "source", 4).fit()
    assert starts == [0, 4]
    assert tensors(tmp_path / "factory", 4) == tensors(tmp_path / "source", 4)


def test_batches_that_end_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="must be endless"):
        toy_trainer(tmp_path, 4, lambda start: iter([ToySource().batch(0)])).fit()


def test_the_callers_cells_keep_their_names_and_trainable_parameters(tmp_path):
    network = trainer_toy.ToyNet()
    loss = trainer_toy.ToyLoss(network)
    before = [(param.name, param.requires_grad) for param in loss.get_parameters()]
    Trainer(network=network, loss=loss, batches=ToySource(), config=toy_config(1), output_path=tmp_path).fit()
    assert [(param.name, param.requires_grad) for param in loss.get_parameters()] == before


def test_no_graph_is_compiled_after_the_first_step(tmp_path):
    counts = []

    def validate(step):
        trainer._main.network.set_train(False)  # as a validation does
        trainer._main.network(ms.Tensor(np.ones((1, trainer_toy.FEATURES), np.float32)))
        counts.append(trainer.compilations)
        return {}

    trainer = toy_trainer(tmp_path, 6, validate=validate, validate_every=1)
    trainer.fit()
    assert counts == [4] * 6  # gradient, accumulation, norm, update
    assert trainer._main.network.training


def test_a_loss_may_say_what_is_logged_per_second(tmp_path, monkeypatch):
    """Tokens per second are samples per second times the mean number of tokens of a sample."""
    units = lambda self, batch: {"tokens": 7 * len(batch["x"])}  # noqa: E731
    monkeypatch.setattr(trainer_toy.ToyLoss, "units", units, raising=False)
    toy_trainer(tmp_path, 4).fit()
    for row in rows(tmp_path):
        assert row["tokens_per_s"] == pytest.approx(7 * row["samples_per_s"])
    assert list(rows(tmp_path)[0]).index("tokens_per_s") == list(rows(tmp_path)[0]).index("samples_per_s") + 1
    pace = rows(tmp_path, "events")[-1]["pace"]
    assert pace["steps"] == 3 and pace["tokens_per_s"] == pytest.approx(7 * pace["samples_per_s"])


def test_a_skipped_step_does_not_move_the_schedule(tmp_path):
    options = dict(schedule=ScheduleConfig(name="linear", warmup_steps=3))
    toy_trainer(tmp_path / "clean", 8, **options).fit()
    bad = ToySource(bad=(2, 9))  # steps 2 and 5
    toy_trainer(tmp_path / "bad", 8, bad, **options).fit()
    clean = [row["lr"] for row in rows(tmp_path / "clean")]
    applied = [row["lr"] for row in rows(tmp_path / "bad") if not row["skipped"]]
    assert [row["step"] for row in rows(tmp_path / "bad") if row["skipped"]] == [2, 5]
    assert applied == clean[:6] and len(set(clean)) == 8

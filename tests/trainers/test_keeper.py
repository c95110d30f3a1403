"""What the training loop does with its checkpoints: the best, the refused, what is left after a restart."""

import json
import shutil

import numpy as np
import pytest
from trainer_toy import toy_trainer

import mg.device
from mg.errors import UserError
from mg.files import write_text
from mg.trainers import checkpoint, runlog
from mg.weights import read_weights


@pytest.fixture(autouse=True)
def pynative(graph_mode):
    mg.device.setup("CPU", "pynative")  # spares a compilation per run; what is tested knows nothing of the mode


FIGURES = {2: 0.5, 4: 0.3, 6: 0.9, 8: 0.4, 10: 0.8}


def events(output, name):
    rows = [json.loads(line) for line in (output / "events.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == name]


def names(output):
    return sorted(path.name for path in output.glob("step-*"))


def validated(output, steps, **changes):
    settings = dict(validate_every=2, save_every=100, keep_last=1, keep_best=1, monitor="figure")
    validate = lambda step: {"figure": FIGURES[step]}  # noqa: E731
    return toy_trainer(output, steps, validate=validate, **{**settings, **changes})


def test_a_worse_figure_after_a_restart_does_not_replace_the_best(tmp_path):
    validated(tmp_path, 4).fit()
    assert names(tmp_path) == ["step-00000004"]
    best = (tmp_path / "step-00000004" / "model.safetensors").read_bytes()
    validated(tmp_path, 10).fit()
    assert names(tmp_path) == ["step-00000004", "step-00000010"]
    assert (tmp_path / "BEST").read_text() == "step-00000004\n"
    assert (tmp_path / "step-00000004" / "model.safetensors").read_bytes() == best
    assert [row["step"] for row in events(tmp_path, "save")] == [2, 4, 10]  # 6 and 8 were not worth one
    assert checkpoint.newest(tmp_path).state["best"] == [[4, 0.3]]


def test_the_larger_figures_can_be_the_better_ones(tmp_path):
    validated(tmp_path, 10, keep_best=2, monitor_mode="max").fit()
    assert names(tmp_path) == ["step-00000006", "step-00000010"]
    assert (tmp_path / "BEST").read_text() == "step-00000006\n"


def test_a_figure_that_the_validation_has_not_is_named(tmp_path):
    with pytest.raises(UserError, match="^monitor=val_loss: the validation has figure; name one$"):
        validated(tmp_path, 4, monitor="val_loss").fit()
    with pytest.raises(UserError, match="^keep_best needs a validation; name a validation list, or set it to 0$"):
        toy_trainer(tmp_path / "other", 4, keep_best=1, validate_every=2)


class FullDisk:
    """Takes the place of os.rename in a save: refuses the numbers in `refused` (1 for the first save)."""

    def __init__(self, monkeypatch, refused):
        self.count, self.refused, self.rename = 0, refused, checkpoint.os.rename
        monkeypatch.setattr(checkpoint.os, "rename", self)

    def __call__(self, source, target):
        if str(source).endswith(".tmp"):
            self.count += 1
            if self.count in self.refused:
                raise OSError(28, "No space left on device")
        self.rename(source, target)


def test_training_goes_on_after_a_refused_save(tmp_path, monkeypatch, capfd):
    toy_trainer(tmp_path / "good", 8).fit()
    with monkeypatch.context() as patch:
        FullDisk(patch, refused=(2, 3))
        toy_trainer(tmp_path / "full", 8, max_failed_saves=3).fit()
    assert [(row["step"], row["in_a_row"]) for row in events(tmp_path / "full", "save_failed")] == [(4, 1), (6, 2)]
    assert "step 6 is NOT SAVED (2 of 3 failures that end the run): " in capfd.readouterr().err
    assert names(tmp_path / "full") == ["step-00000002", "step-00000008"]
    for name in ("model", "optimizer", "ema"):
        file = f"step-00000008/{name}.safetensors"
        assert (tmp_path / "full" / file).read_bytes() == (tmp_path / "good" / file).read_bytes()


def test_too_many_refused_saves_in_a_row_end_the_run(tmp_path, monkeypatch):
    FullDisk(monkeypatch, refused=(1, 3, 4))
    with pytest.raises(UserError, match=r"step 8, 2 failed saves in a row \(max_failed_saves=2\): .*No space left"):
        toy_trainer(tmp_path, 20, max_failed_saves=2).fit()
    assert names(tmp_path) == ["step-00000004"]


def test_a_refused_last_save_ends_the_run_at_once(tmp_path, monkeypatch):
    FullDisk(monkeypatch, refused=(2,))
    with pytest.raises(UserError, match="^step 4, at the end: .*No space left on device"):
        toy_trainer(tmp_path, 4).fit()


def test_logs_on_a_full_disk_do_not_end_the_training(tmp_path, monkeypatch, capfd):
    """/dev/full takes nothing; the lines wait for room as long as there is memory for them."""
    opened = []

    def begin(self, *args):
        opened.append(self._files["metrics"])
        self._files["metrics"] = open("/dev/full", "a")

    monkeypatch.setattr(runlog.RunLog, "begin", begin)
    with pytest.raises(UserError, match=r"step 6, 3 failed saves in a row \(max_failed_saves=3\): .*No space left"):
        toy_trainer(tmp_path, 8).fit()
    opened[0].close()
    said = capfd.readouterr().err
    assert "/dev/full: cannot be written (No space left on device); free some space, the training goes on" in said
    assert [row["step"] for row in events(tmp_path, "save_failed")] == [2, 4, 6]  # they say how far the logs go


def test_a_pointer_that_cannot_be_written_is_a_warning(tmp_path, capfd):
    (tmp_path / "BEST").mkdir()
    validated(tmp_path, 4).fit()
    assert names(tmp_path) == ["step-00000004"]
    assert f"cannot write {tmp_path}/BEST: there is a folder of that name" in capfd.readouterr().err


def test_a_refused_save_is_not_among_the_best(tmp_path, monkeypatch):
    FullDisk(monkeypatch, refused=(2,))  # step 4, the best of all
    validated(tmp_path, 8).fit()
    assert (tmp_path / "BEST").read_text() == "step-00000008\n"
    assert checkpoint.newest(tmp_path).state["best"] == [[8, 0.4]]


def test_a_restart_finishes_what_was_left_undone(tmp_path):
    toy_trainer(tmp_path, 6).fit()
    assert names(tmp_path) == ["step-00000004", "step-00000006"]
    shutil.copytree(tmp_path / "step-00000004", tmp_path / "step-00000002")  # as if not deleted yet
    shutil.copytree(tmp_path / "step-00000006", tmp_path / "step-00000008")  # a newer one, damaged
    with open(tmp_path / "step-00000008" / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    write_text(tmp_path / "LATEST", "step-00000002\n")
    toy_trainer(tmp_path, 6).fit()
    assert names(tmp_path) == ["step-00000004", "step-00000006", "step-00000008.damaged"]
    assert (tmp_path / "LATEST").read_text() == "step-00000006\n"


def test_the_arrays_of_a_kept_checkpoint_are_those_of_its_step(tmp_path):
    validated(tmp_path / "best", 10).fit()
    toy_trainer(tmp_path / "short", 4).fit()
    kept = read_weights(tmp_path / "best" / "step-00000004" / "model.safetensors")
    for name, array in read_weights(tmp_path / "short" / "step-00000004" / "model.safetensors").items():
        np.testing.assert_array_equal(kept[name], array)



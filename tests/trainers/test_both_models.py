"""What the loop promises holds for the autoencoder with its discriminator and for the transformer, not for a toy alone.

One run without a break against one that is killed twice, stopped, and goes on from its remote copies: see
kill_models.py, which has the settings.
"""

import json
import os
import signal
import subprocess
import sys

import curve_runs
import kill_models
import numpy as np
import pytest
from kill_models import BAD, BEST, FROZEN, PLACES, SETTINGS, STEPS, TIMES

from mg.trainers.remote import RemoteFolder
from mg.trainers.select import frozen
from mg.weights import read_weights

pytestmark = pytest.mark.slow

FILES = {
    "transformer": ["ema", "model", "optimizer"],
    "tae": ["disc.model", "disc.optimizer", "ema", "model", "optimizer"],
}
OF_BAD_STEPS = ("step", "loss", "lr", "skipped", "reason", "where", "in_a_row", "micro_batches", "ids", "updates")


@pytest.fixture(scope="module", params=curve_runs.MODELS)
def runs(request, tmp_path_factory):
    """The model, the folder with its runs, and what was found after each break."""
    root = tmp_path_factory.mktemp(request.param)
    path = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, kill_models.__file__, request.param, str(root)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return request.param, root, json.loads(result.stdout.splitlines()[-1])


def rows(folder, name="metrics"):
    """Return a log without times; of bad steps what is not a figure of the players.

    The figures that NaN leaves finite are not the same to the last bit in every process. They train nothing.
    """
    lines = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key in OF_BAD_STEPS or not is_bad(line) and key not in TIMES}
        for line in lines
    ]


def is_bad(line):
    return "micro_batches" in line or line.get("skipped", False)


def step_folder(root, step, run="straight"):
    return root / run / f"step-{step:08d}"


def test_the_breaks_are_where_they_were_meant_to_be(runs):
    _, _, found = runs
    assert [found[place]["signal"] for place in PLACES] == [signal.SIGKILL, signal.SIGKILL, 0]
    assert [found[place]["step"] for place in PLACES] == [1, 3, 4] and found["TERM"]["code"] == 0
    assert "step-00000002.tmp" in found["model"]["left"]
    assert not any(name.endswith(".tmp") for place in ("renamed", "TERM") for name in found[place]["left"])


@pytest.mark.parametrize("place", [*PLACES, "remote"])
def test_each_of_them_leaves_the_bits_of_the_run_without_a_break(runs, place):
    model, root, found = runs
    if place == "remote":
        folder, step = step_folder(root, STEPS, "broken"), STEPS
    else:
        folder, step = root / f"after-{place}", found[place]["step"]
    straight = step_folder(root, step)
    assert sorted(path.stem for path in folder.glob("*.safetensors")) == FILES[model]
    for name in FILES[model]:
        file = f"{name}.safetensors"
        assert (folder / file).read_bytes() == (straight / file).read_bytes(), file
    assert kill_models.state_of(folder) == kill_models.state_of(straight)


def test_the_last_process_had_nothing_but_the_copies(runs):
    _, root, _ = runs
    lines = [row["lines"][0] for row in rows(root / "broken", "events") if row["event"] == "source"]
    assert lines[-1] == f"everything from remote: file://{root}/remote, step 4"


def test_the_logs_have_every_step_once(runs):
    _, root, _ = runs
    for name in ("metrics", "validation", "bad_steps"):
        straight = rows(root / "straight", name)
        assert rows(root / "broken", name) == straight and straight
    assert [row["step"] for row in rows(root / "broken")] == list(range(1, STEPS + 1))
    assert np.std([row["val_loss"] for row in rows(root / "broken", "validation")]) > 0


def test_the_best_and_the_last_stay_here_and_there(runs):
    _, root, _ = runs
    assert sorted(path.name for path in (root / "broken").glob("step-*")) == ["step-00000004", "step-00000005"]
    assert (root / "broken" / "BEST").read_text() == (root / "straight" / "BEST").read_text() == "step-00000004\n"
    assert RemoteFolder(f"file://{root}/remote", "train.remote").steps() == [BEST, STEPS]


def test_frozen_parameters_keep_their_bits_and_the_others_move(runs):
    model, root, _ = runs
    network, _, _ = curve_runs.parts(model)
    before = {name: param.asnumpy() for name, param in network.parameters_and_names()}
    after = read_weights(step_folder(root, STEPS, "broken") / "model.safetensors")
    trainable = {name for name, param in network.parameters_and_names() if param.requires_grad}
    still = frozen((FROZEN[model],), list(before))
    assert after.keys() == before.keys() and still and still < trainable
    for name, value in after.items():
        assert np.array_equal(value, before[name]) == (name in still or name not in trainable), name
    averages = read_weights(step_folder(root, STEPS, "broken") / "ema.safetensors")
    assert averages.keys() == trainable - still


def test_the_rate_falls_on_the_plateau_over_all_breaks(runs):
    """Validations 3 and 5 bring no progress; a cut holds from the next step on."""
    _, root, _ = runs
    cuts = [row["scale"] for row in rows(root / "straight", "events") if row["event"] == "plateau"]
    assert cuts == [0.5, 0.25]
    rates = [row["lr"] / SETTINGS["optimizer"].lr for row in rows(root / "broken")]
    np.testing.assert_allclose(rates, [1, 1, 1, 0.5, 0.5])


def test_the_bad_step_is_skipped_and_counted_once(runs):
    _, root, _ = runs
    (report,) = rows(root / "broken", "bad_steps")
    assert (report["step"], report["reason"], report["updates"]) == (BAD, "nonfinite", BAD - 1)
    state = kill_models.state_of(step_folder(root, STEPS, "broken"))
    assert (state["updates"], state["guard"]["bad"], state["guard"]["steps"]) == (STEPS - 1, 1, STEPS)

"""The comparison of objectives: its measure, its data, and a short run that learns."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest

from mg.errors import UserError


@pytest.fixture(scope="module")
def objectives(root):
    """The benchmark as a module (benchmarks/ is a folder of scripts, not a package)."""
    spec = importlib.util.spec_from_file_location("objectives", root / "benchmarks" / "objectives.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["objectives"] = module  # the option parser reads the source of the settings' class
    spec.loader.exec_module(module)
    return module


def test_energy_distance_is_its_definition(objectives):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((7, 2)), rng.standard_normal((9, 2)) + 1

    def mean(p, q, pairs):
        return sum(np.linalg.norm(u - v) for u in p for v in q) / pairs

    expected = 2 * mean(a, b, 63) - mean(a, a, 42) - mean(b, b, 72)
    assert objectives.energy_distance(a, b) == pytest.approx(expected)
    # Two points at distance 3 from themselves and each other: 2 * 3 - 0 - 0.
    assert objectives.energy_distance(np.zeros((2, 2)), np.full((2, 2), 3 / 2**0.5)) == pytest.approx(6)


def test_data_have_unit_variance_and_eight_modes(objectives):
    points = objectives.draw_data(np.random.default_rng(1), 100_000)
    np.testing.assert_allclose(points.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(np.cov(points.T), np.eye(2), atol=0.02)
    sector = np.rint(np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi / 8)).astype(int) % 8
    np.testing.assert_allclose(np.bincount(sector) / len(points), 1 / 8, atol=0.01)


def test_features_tell_every_level_apart(objectives):
    seen = objectives.features(np.zeros((1001, 2), np.float32), np.arange(1001.0))
    assert seen.shape == (1001, 2 + 2 * objectives.FREQUENCIES) and seen.dtype == np.float32
    assert np.linalg.norm(np.diff(seen, axis=0), axis=1).min() > 1e-3
    np.testing.assert_allclose(seen[1000, 2:4], np.cos([np.pi / 2, np.pi]), atol=1e-6)


def test_table_has_the_means(objectives):
    scale = {"noise": 0.06, "floor": 0.0005}
    text = objectives.table({"ot": {"5": [0.002, 0.004], "seconds": [1.0, 2.0]}}, (5,), scale)
    assert text.splitlines()[2:] == ["| ot | 3.00 | 1.5 |", "| noise | 60.00 |  |", "| floor | 0.50 |  |"]


def test_a_short_run_learns_and_writes_the_table(objectives, tmp_path, capsys):
    out = tmp_path / "out.json"
    flags = ["--objectives", "ot", "vp-cosine", "--samples", "500", "--sampling_steps", "10", "20"]
    objectives.main([*flags, "--steps", "120", "--lr", "0.01", "--output_path", str(out)])
    found = json.loads(out.read_text())
    assert list(found["results"]) == ["ot", "vp-cosine"] and found["settings"]["steps"] == 120
    assert 0 <= found["reference"]["floor"] < 0.01 < 0.04 < found["reference"]["noise"]
    for values in found["results"].values():
        assert values["20"][0] < 0.7 * found["reference"]["noise"]
    text = (tmp_path / "out.md").read_text()
    assert text == objectives.table(found["results"], (10, 20), found["reference"])
    assert text in capsys.readouterr().out


def test_the_same_seed_gives_the_same_figures(objectives):
    settings = objectives.Settings(steps=3, samples=50, sampling_steps=(2,))
    first, second = (objectives.measure("ot", settings)["2"] for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--objectives", "ot", "gan"], "--objectives gan: choose from ot, "),
        (["--output_path", "table.md"], "--output_path table.md: give a name that ends with .json"),
        (["--steps", "0"], "--steps 0: give 1 or more"),
        (["--lr", "0"], "--lr 0.0: give a finite number above 0"),
        (["--sampling_steps", "5", "0"], "--sampling_steps 0: give 1 or more"),
        (["--timesteps", "discrete"], "timesteps: .*discrete"),
    ],
)
def test_impossible_options_are_named(objectives, flags, message):
    with pytest.raises(UserError, match=message):
        objectives.main(flags)


def test_help_comes_before_any_framework(root):
    code = (
        "import runpy, sys\nsys.argv = ['objectives.py', '--help']\ntry:\n"
        "    runpy.run_path('benchmarks/objectives.py', run_name='__main__')\n"
        "except SystemExit as end:\n    assert end.code in (0, None), end.code\n"
        "assert not {'mindspore', 'torch'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("usage: objectives.py") and "--sampling_steps" in result.stdout

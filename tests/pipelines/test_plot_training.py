"""Curves read from logs, and the charts that are made of them, in characters and pixels."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mg.errors import UserError
from mg.pipelines import chart_picture
from mg.pipelines.chart_picture import COLOURS, picture
from mg.pipelines.charts import Axis, axis_of, steps_axis, text_chart, trace
from mg.pipelines.curves import Curve, choose_keys, read_run, smoothed, within
from mg.pipelines.plot_training import PlotOptions, plot_training

ROOT = Path(__file__).parents[2]

GOLDEN = """\
loss  run  last 1, min 0.5 at 20, max 4 at 0, 1 not finite
4 ┤⠑⢄⡀
  │  ⠈⠢⡀
  │    ⠈⠒⢄
  │       ⠑⢄⡀
2 ┤         ⠈⠢⡀                     ⢀⣀⠤⠒⠒⠤⢄⣀⣀
  │           ⠈⠢⢄              ⣀⡠⠤⠒⠉⠁        ⠉⠑⠒⠒⠤⢄⣀⣀
  │              ⠑⢄       ⣀⠤⠔⠒⠉                      ⠉⠑⠒⠒⠤
  │                ⠉⠢⣀⠤⠒⠊⠉
0 ┤
  └┬─────────────────┬─────────────────┬─────────────────┬─
   0                20                40                60
"""


def curve(values, steps=None, run="run", key="loss", **kind):
    values = np.asarray(values, np.float64)
    return Curve(run, key, np.arange(len(values)) if steps is None else np.asarray(steps), values, **kind)


def write(folder, metrics=(), validation=(), events=()):
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("metrics", metrics), ("validation", validation), ("events", events)):
        if rows:
            text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(text)
    return folder


def values_of(run, key):
    found = run.curves[key]
    return dict(zip(found.steps.tolist(), found.values.tolist(), strict=True))


def test_logs_are_read_with_gaps_and_without_torn_lines_and_texts(tmp_path):
    rows = [
        {"step": 1, "loss": 0.5, "skipped": False, "note": "text"}, '{"step": 2, "lo', "\n", "[1]\n", '{"loss": 3}\n',
        {"step": 3, "loss": None, "skipped": True}, {"step": 4, "loss": 2, "skipped": False, "disc.loss": 0.1},
    ]
    run = read_run([write(tmp_path, rows, [{"step": 4, "val_psnr": 20.0}])], "x")
    assert set(run.curves) == {"loss", "skipped", "disc.loss", "val_psnr"}
    found = values_of(run, "loss")
    assert math.isnan(found.pop(3)) and found == {1: 0.5, 4: 2.0}
    assert values_of(run, "skipped") == {1: 0.0, 3: 1.0, 4: 0.0} and values_of(run, "disc.loss") == {4: 0.1}
    assert run.curves["val_psnr"].seldom and not run.curves["loss"].seldom


def test_a_run_that_went_on_from_an_earlier_step_has_each_step_once(tmp_path):
    first = [{"step": step, "loss": 1.0} for step in (1, 10, 20, 30, 40)]
    second = [{"step": step, "loss": 2.0} for step in (30, 35)]
    events = [{"event": "start", "step": 0}, {"event": "resume", "step": 20}, {"event": "save", "step": 30}]
    run = read_run([write(tmp_path, first + second, events=events)], "x")
    assert values_of(run, "loss") == {1: 1.0, 10: 1.0, 20: 1.0, 30: 2.0, 35: 2.0}
    assert run.resumes == (20,)


def test_parts_in_several_folders_are_joined_where_the_later_one_begins(tmp_path):
    rows = [{"step": s, "loss": 1.0, "old": 1.0} for s in (1, 2, 3, 4)]
    one = write(tmp_path / "a", rows, [{"step": 4, "val_x": 1.0}])
    two = write(tmp_path / "b", [{"step": s, "loss": 2.0} for s in (3, 4, 5)])
    run = read_run([one, two], "x")
    assert values_of(run, "loss") == {1: 1.0, 2: 1.0, 3: 2.0, 4: 2.0, 5: 2.0}
    assert values_of(run, "old") == {1: 1.0, 2: 1.0} and "val_x" not in run.curves
    assert run.resumes == (2,)


def test_the_keys_drawn_unasked_are_the_loss_and_the_validation(tmp_path):
    rows = [{"step": 1, "loss": 1.0, "rec": 1.0, "lr": 0.1}]
    run = read_run([write(tmp_path, rows, [{"step": 1, "val_loss": 1.0, "val_loss_100": 1.0, "val_psnr": 2.0}])], "x")
    assert choose_keys([run], None) == ["loss", "val_loss", "val_psnr"]
    assert choose_keys([run], ["l*", "val_loss_*", "loss"]) == ["loss", "lr", "val_loss_100"]
    with pytest.raises(UserError, match=r"--keys nothing: the logs have loss, rec, lr, val_loss"):
        choose_keys([run], ["nothing"])


def test_smoothing_is_the_mean_with_exponential_weights_over_what_is_finite():
    values = np.array([4.0, 2.0, math.nan, 8.0])
    found = smoothed(curve(values), 0.5).values
    weights = [0.5 ** np.array([1, 0]), 0.5 ** np.array([2, 1, 0])]
    want = [4.0, np.average([4, 2], weights=weights[0]), np.nan, np.average([4, 2, 8], weights=weights[1])]
    np.testing.assert_allclose(found, want)
    seldom = curve(values, seldom=True)
    assert smoothed(seldom, 0.5) is seldom
    assert within(curve(range(9)), 2, 4).values.tolist() == [2, 3, 4]
    assert within(curve(range(9)), 5, None).steps.tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize(
    "values, log, want, labels",
    [
        ([0.03, 0.77], False, (0.0, 0.8), ["0.0", "0.2", "0.4", "0.6", "0.8"]),
        ([-3.2, 4.0], False, (-4.0, 4.0), ["-4", "-2", "0", "2", "4"]),
        ([1e-5, 9e-5], False, (0.0, 1e-4), ["0", "2e-05", "4e-05", "6e-05", "8e-05", "0.0001"]),
        ([0.02, 40.0], True, (0.02, 40.0), ["0.1", "1", "10"]),
        ([2.0, 3.0], True, (2.0, 3.0), ["2.0", "2.2", "2.4", "2.6", "2.8", "3.0"]),
        ([5.0, 5.0], False, (2.5, 7.5), ["3", "4", "5", "6", "7"]),
        ([math.nan, -1.0], True, (1.0, 10.0), None),
        ([], False, (0.0, 1.0), None),
    ],
)
def test_axes_have_round_ends_and_ticks(values, log, want, labels):
    axis = axis_of(np.array(values), log)
    assert (axis.low, axis.high) == pytest.approx(want)
    if labels is not None:
        assert [label for _, label in axis.ticks(5)] == labels


def test_places_of_values_along_an_axis():
    np.testing.assert_allclose(Axis(2, 6).place(np.array([2, 3, 6, math.nan, math.inf])), [0, 0.25, 1, np.nan, np.nan])
    np.testing.assert_allclose(Axis(0.1, 10, True).place(np.array([0.1, 1, 10, 0, -1])), [0, 0.5, 1, np.nan, np.nan])
    assert steps_axis(np.array([1, 500])) == Axis(0, 500) and steps_axis(np.array([400, 500])) == Axis(400, 500)
    assert steps_axis(np.array([7])) == Axis(6, 8)


def test_a_trace_joins_neighbours_leaves_gaps_open_and_shows_every_peak():
    dots = trace(np.array([0, 1]), np.array([0, 1]), 5, 5)
    np.testing.assert_array_equal(dots, np.eye(5, dtype=bool)[::-1])
    gap = trace(np.linspace(0, 1, 5), np.array([1, 1, np.nan, 0, 0]), 5, 3)
    np.testing.assert_array_equal(gap, [[1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 1, 1]])
    many = np.full(100_000, 0.5)
    many[33_333] = 1
    peak = trace(np.linspace(0, 1, len(many)), many, 10, 9)
    assert peak[4].all() and peak[0].sum() == 1 and peak[0, 3]
    outside = trace(np.linspace(0, 1, 3), np.array([0, 5, 0]), 3, 3)
    np.testing.assert_array_equal(outside, [[0, 0, 0], [0, 0, 0], [1, 0, 1]])


def test_golden_drawing(tmp_path):
    rows = [
        {"step": 0, "loss": 4.0}, {"step": 20, "loss": 0.5}, {"step": 40, "loss": 2.0}, {"step": 60, "loss": 1.0},
        {"step": 61, "loss": None},
    ]
    folder = write(tmp_path / "run", rows)
    lines = plot_training(PlotOptions(runs=[str(folder)], width=60, height=9))
    assert "\n".join(lines) == GOLDEN


@pytest.mark.parametrize("options", [{}, {"plain": True}, {"log": True}, {"y_range": (0.2, 0.4)}, {"smooth": 0.9}])
def test_no_line_is_longer_than_asked_for_whatever_the_values_are(tmp_path, options):
    hard = {
        "nan": [None] * 5, "one": [0.5], "constant": [1e-9] * 5, "negative": [-1.0, -2.0, None, -3.0],
        "huge": [1e300, -1e300, 5.0], "tiny": [1e-300, 2e-300], "long": [math.sin(i / 30) for i in range(3000)],
    }
    for name, values in hard.items():
        rows = [{"step": i + 1, "a_figure_with_a_name": value} for i, value in enumerate(values)]
        folder = write(tmp_path / f"{name}-run-with-quite-a-long-name-that-goes-on", rows)
        for width in (40, 80):
            path = tmp_path / "x.png"
            kept = PlotOptions(runs=[str(folder)] * 2, width=width, picture=str(path), **options)
            lines = plot_training(kept)[:-1]
            assert max(map(len, lines)) <= width and len(lines) == 2 + 15 + 2 + 1
            assert not options.get("plain") or "".join(lines).isascii()
            assert Image.open(path).size[0] == 720


def test_runs_in_one_chart_keep_their_marks():
    lines = text_chart([curve([0, 0]), curve([4, 4], run="b")], 40, 5, plain=True)
    assert lines[0].startswith("4 +++++++") and lines[4].startswith("0 +******")
    coloured = text_chart([curve([0, 0]), curve([4, 4], run="b")], 40, 5, colour=True)
    assert "\033[34m*" in coloured[4] and "\033[31m+" in coloured[0]


def colour(name):
    return np.array([int(name[i : i + 2], 16) for i in (1, 3, 5)])


def near(image, name, reach=40):
    return np.abs(image.astype(int) - colour(name)).max(-1) < reach


def test_the_picture_has_the_curves_where_their_values_are():
    steps = np.arange(0, 1001, 10)
    panels = {"loss": [curve(steps / 1000, steps), curve(1 - steps / 1000, steps, run="b")]}
    image = picture(panels)
    assert image.shape == (414, 720, 3) and image.dtype == np.uint8
    left, top, right, bottom = chart_picture._MARGINS
    plot = image[34 + top : 414 - bottom, left : 720 - right]
    h, w, _ = plot.shape
    for name, rises in ((COLOURS[0], True), (COLOURS[1], False)):
        for share in (0.1, 0.4, 0.9):
            (rows,) = np.nonzero(near(plot[:, round(share * (w - 1))], name))
            place = (share if rises else 1 - share) / 1.1 + 0.05 / 1.1  # five per cent of room below and above
            assert rows.mean() == pytest.approx((1 - place) * (h - 1), abs=2)
    assert near(image[:34], COLOURS[0]).any() and near(image[:34], COLOURS[1]).any()  # the legend
    assert (image[:, :10] == 255).all() and (image[-1:] == 255).all()


def test_steps_without_a_value_and_resumes_are_marked():
    values = np.ones(101)
    values[50] = np.nan
    image = picture({"loss": [curve(values)]}, resumes=[25])
    left, top, right, bottom = chart_picture._MARGINS
    plot = image[34 + top : 414 - bottom, left : 720 - right]
    red = np.argwhere(near(plot, "#c00000"))
    assert abs(red[:, 1].mean() / (plot.shape[1] - 1) - 0.5) < 0.005 and red[:, 0].min() > plot.shape[0] * 0.9
    column = round(0.25 * (plot.shape[1] - 1))
    grey = near(plot[:, column], "#707070", 60)
    assert 0.3 < grey.mean() < 0.6  # dashed
    assert not near(picture({"loss": [curve(np.ones(9))]}), "#c00000").any()


def test_smoothing_draws_the_raw_curve_pale_behind():
    noise = np.where(np.arange(400) % 2, 1.0, 0.0)
    plain, smooth = picture({"loss": [curve(noise)]}), picture({"loss": [curve(noise)]}, smooth=0.99)
    assert near(plain, COLOURS[0]).sum() > 5 * near(smooth, COLOURS[0]).sum()
    assert near(smooth, chart_picture._pale(COLOURS[0]), 25).sum() > 1000


def test_the_program_needs_neither_display_nor_mindspore(tmp_path):
    folder = write(tmp_path / "run", [{"step": s, "loss": 1 / s} for s in range(1, 30)])
    code = (
        "import sys; sys.path.insert(0, 'tools'); import plot_training\n"
        f"plot_training.main([{str(folder)!r}, '--log', '--smooth', '0.5'])\n"
        "print([m for m in ('mindspore', 'torch', 'av') if m in sys.modules])"
    )
    path = {"PYTHONPATH": ":".join(part for part in sys.path if part), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=path, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]" and lines[-2] == f"{folder}/curves.png: 720 x 414 pixels"
    assert max(map(len, lines[:-2])) <= 80 and done.stdout.isascii()  # this output speaks no Unicode


@pytest.mark.parametrize(
    "options, message",
    [
        ({"runs": ["no/where"]}, r"no/where: no metrics\.jsonl or validation\.jsonl there; name the output folder"),
        ({"smooth": 1.0}, r"--smooth 1\.0: give a number from 0"), ({"width": 10}, r"--width 10 --height 15: at least"),
        ({"steps": (5, 5)}, r"--steps 5 5: the second must be above"),
        ({"log": True, "y_range": (0, 1)}, r"--y_range 0:"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        plot_training(PlotOptions(**{"runs": ["."], **options}))


def test_a_run_that_has_logged_nothing_yet_says_so(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="nothing is logged there yet"):
        plot_training(PlotOptions(runs=[str(tmp_path)]))


def test_charts_of_one_run_have_the_same_steps_below_each_other(tmp_path):
    rows = [{"step": step, "loss": 1 / step} for step in range(1, 101)]
    folder = write(tmp_path / "run", rows, [{"step": step, "val_x": 1.0 * step} for step in (40, 50, 60)])
    lines = plot_training(PlotOptions(runs=[str(folder)], height=5))
    starts = [line.index("└") for line in lines if "└" in line]
    places = [[i - start for i, c in enumerate(line) if c == "┬"] for line, start in zip(
        (line for line in lines if "└" in line), starts, strict=True
    )]
    widths = [len(line) - start for line, start in zip((line for line in lines if "└" in line), starts, strict=True)]
    shares = [np.array(place) / width for place, width in zip(places, widths, strict=True)]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.02)

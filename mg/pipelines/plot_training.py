"""Draw the curves of trainings: in the terminal, and as a picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mg.errors import UserError
from mg.pipelines.charts import COLOURS, MARKERS, Axis, steps_axis, text_chart
from mg.pipelines.curves import Curve, Run, choose_keys, read_run, smoothed, within

PICTURE = "curves.png"


@dataclass(frozen=True, kw_only=True)
class PlotOptions:
    """What to draw and how; raises UserError for values out of range.

    Attributes:
        runs: output folders of trainings, or .jsonl files.
        join: the folders are parts of one run, in order.
        keys: names of figures, `*` stands for anything; none: the loss and the figures of the validation.
        smooth: weight of the past in the averages, in [0, 1).
        log: logarithmic values.
        steps: first and last step; None draws all.
        y_range: lowest and highest value; None draws all.
        width: characters per line.
        height: lines per chart.
        plain: ASCII only.
        colour: for a terminal.
        picture: path of the PNG, None for none.
    """

    runs: Sequence[str]
    join: bool = False
    keys: Sequence[str] | None = None
    smooth: float = 0.0
    log: bool = False
    steps: tuple[int, int] | None = None
    y_range: tuple[float, float] | None = None
    width: int = 80
    height: int = 15
    plain: bool = False
    colour: bool = False
    picture: str | None = None

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 <= self.smooth < 1:
            raise UserError(f"--smooth {self.smooth}: give a number from 0 (off) to below 1, such as 0.9")
        if self.width < 30 or self.height < 3:
            raise UserError(f"--width {self.width} --height {self.height}: at least 30 and 3 are needed")
        for name in ("steps", "y_range"):
            pair = getattr(self, name)
            if pair is not None and not pair[0] < pair[1]:
                raise UserError(f"--{name} {pair[0]} {pair[1]}: the second must be above the first")
        if self.log and self.y_range is not None and self.y_range[0] <= 0:
            raise UserError(f"--y_range {self.y_range[0]}: a logarithmic axis (--log) begins above 0")


def plot_training(options: PlotOptions) -> list[str]:
    """Write the picture where one is wanted; return the lines for the terminal.

    Raises:
        UserError: folders without logs, keys that nobody has, or a picture that cannot be written.
    """
    names = _names(options.runs)
    if options.join:
        runs = [read_run(options.runs, names[-1])]
    else:
        runs = [read_run([folder], name) for folder, name in zip(options.runs, names, strict=True)]
    keys = choose_keys(runs, options.keys)
    if not keys:
        raise UserError(f"{', '.join(map(str, options.runs))}: nothing is logged there yet")
    first, last = options.steps or (0, None)
    panels = {key: [within(run.curves[key], first, last) for run in runs if key in run.curves] for key in keys}
    across = steps_axis(np.concatenate([curve.steps for curves in panels.values() for curve in curves]))
    lines = []
    for key, curves in panels.items():
        lines += [*_caption(key, curves, options), *_chart(curves, across, options), ""]
    if options.picture is not None:
        lines.append(_write_picture(Path(options.picture), panels, runs, options))
    return lines


def _chart(curves: Sequence[Curve], across: Axis, options: PlotOptions) -> list[str]:
    drawn = [smoothed(curve, options.smooth) for curve in curves]
    return text_chart(
        drawn, options.width, options.height, log=options.log, y_range=options.y_range, across=across,
        plain=options.plain, colour=options.colour,
    )


def _write_picture(path: Path, panels: dict[str, list[Curve]], runs: Sequence[Run], options: PlotOptions) -> str:
    from mg.pipelines.chart_picture import picture  # Pillow and OpenCV only where a picture is wanted
    from mg.pipelines.pictures import write_png

    resumes = runs[0].resumes if len(runs) == 1 else ()
    drawn = picture(panels, smooth=options.smooth, log=options.log, y_range=options.y_range, resumes=resumes)
    write_png(path, drawn)
    return f"{path}: {drawn.shape[1]} x {drawn.shape[0]} pixels"


def _names(runs: Sequence[str]) -> list[str]:
    """Call each run by the end of its path, as much of it as tells it from the others."""
    paths = [Path(run).resolve() for run in runs]
    paths = [path.parent if path.is_file() else path for path in paths]
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path} ({number})" for number, path in enumerate(paths, start=1)]


def _caption(key: str, curves: Sequence[Curve], options: PlotOptions) -> list[str]:
    """Say of each curve where it ends and how far it came; no line is longer than the chart is wide."""
    lines = []
    for number, curve in enumerate(curves):
        finite = np.isfinite(curve.values)
        good = curve.values[finite]
        mark = "" if len(curves) == 1 and not options.plain else f"{MARKERS[number % len(MARKERS)]} "
        text = f"{mark}{key}  {curve.run}"
        if len(good):
            steps = curve.steps[finite]
            low, high = int(good.argmin()), int(good.argmax())
            figures = (
                f"  last {_figure(good[-1])}, min {_figure(good[low])} at {steps[low]}, "
                f"max {_figure(good[high])} at {steps[high]}"
            )
        else:
            figures = "  no finite value"
        if missing := len(curve.values) - len(good):
            figures += f", {missing} not finite"
        room = max(options.width - len(figures), len(mark) + len(key))
        text = text if len(text) <= room else text[: room - 1] + ("~" if options.plain else "…")
        line = f"{text}{figures}"[: options.width]
        lines.append(f"\033[{COLOURS[number % len(COLOURS)]}m{line}\033[0m" if options.colour else line)
    return lines


def _figure(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "nan"

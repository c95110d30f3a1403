"""Charts of curves as text: axes, ticks, and lines of Braille dots or plain characters."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mg.pipelines.curves import Curve

MARKERS = "*+ox#@%&"
COLOURS = (34, 31, 32, 35, 36, 33)  # of ANSI terminals
_BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # bits of the dots, from above, left and right


@dataclass(frozen=True)
class Axis:
    """A range of values, linear or logarithmic, and how it is mapped to 0..1."""

    low: float
    high: float
    log: bool = False

    def place(self, values: np.ndarray) -> np.ndarray:
        """Return 0 for low and 1 for high; NaN for what has no place: not finite, or not positive where log is set."""
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.log10 if self.log else np.asarray
            low, high = scale(np.float64(self.low)), scale(np.float64(self.high))
            placed = (scale(np.asarray(values, np.float64)) - low) / (high - low)
        return np.where(np.isfinite(placed), placed, np.nan)

    def ticks(self, count: int) -> list[tuple[float, str]]:
        """Return about `count` round values within the range, with their labels."""
        if self.log and (marks := _decades(self.low, self.high, count)):
            return [(mark, f"{mark:.4g}") for mark in marks]
        return _round_marks(self.low, self.high, count)


def axis_of(values: np.ndarray, log: bool = False, given: tuple[float, float] | None = None) -> Axis:
    """Return the axis that the finite values (of which there may be none) fill, or the one that is given.

    A linear axis ends at round values.
    """
    if given is not None:
        return Axis(*given, log)
    fit = values[np.isfinite(values) & ((values > 0) | (not log))]
    if not len(fit):
        return Axis(1.0, 10.0, True) if log else Axis(0.0, 1.0)
    low, high = float(fit.min()), float(fit.max())
    if high - low <= 1e-12 * max(abs(low), abs(high)):  # a constant has the middle
        span = 0.5 * abs(low) or 1.0
        return Axis(low / 2, high * 2, True) if log else Axis(low - span, high + span)
    if log:
        return Axis(low, high, True)
    step = _round_step(low, high, 5)
    return Axis(math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step)


def steps_axis(steps: np.ndarray) -> Axis:
    """Return the axis from the first to the last step, from 0 where the first one is near it."""
    if not len(steps):
        return Axis(0.0, 1.0)
    low, high = float(steps.min()), float(steps.max())
    low = 0.0 if low <= 0.05 * high else low
    return Axis(low, high) if low < high else Axis(low - 1, high + 1)


def _decades(low: float, high: float, count: int) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        marks = [f * 10.0**e for e in exponents for f in factors]
        marks = [mark for mark in marks if low * (1 - 1e-9) <= mark <= high * (1 + 1e-9)]
        if len(marks) >= 3:
            return marks[:: math.ceil(len(marks) / max(1, count))]
    return []


def _round_marks(low: float, high: float, count: int) -> list[tuple[float, str]]:
    step = _round_step(low, high, count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    marks = [number * step for number in range(first, last + 1)]
    plain = 1e-4 <= step and max(abs(low), abs(high)) < 1e6
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(mark, f"{mark:.{digits}f}" if plain else f"{mark:.4g}") for mark in marks]


def _round_step(low: float, high: float, count: int) -> float:
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def columns(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[int, list[float], bool]]:
    """Reduce points to what is seen of them: per column of dots at most four heights.

    Args:
        x: column of each point, rising.
        y: height of each point, NaN for gaps.

    Yields:
        A column that has points, their first, lowest, highest and last height, and whether a gap precedes it.
    """
    finite = np.isfinite(y)
    gaps = np.cumsum(~finite)[finite]  # number of gaps before each point
    x, y = x[finite], y[finite]
    starts = np.flatnonzero(np.diff(x, prepend=-1))
    before = -1
    for start, end in zip(starts, [*starts, len(x)][1:], strict=True):
        part = y[start:end]
        yield int(x[start]), [part[0], part.min(), part.max(), part[-1]], before != gaps[start]
        before = gaps[end - 1]


def trace(x: np.ndarray, y: np.ndarray, width: int, height: int) -> np.ndarray:
    """Draw a curve as dots: bool (height, width), the first row on top.

    Args:
        x: place of each point along the width, 0..1, rising.
        y: place of each point along the height, 0..1 from below; NaN and what lies outside are gaps.
        width: dots.
        height: dots.
    """
    dots = np.zeros((height, width), bool)
    y = np.where((y >= -1e-9) & (y <= 1 + 1e-9), y, np.nan)
    last: tuple[int, int] | None = None
    for column, heights, gap in columns(np.rint(x * (width - 1)).astype(int), y * (height - 1)):
        first, low, high, end = (round(float(value)) for value in heights)
        if last is not None and not gap:
            _connect(dots, last, (column, first))
        dots[low : high + 1, column] = True
        last = column, end
    return dots[::-1]


def _connect(dots: np.ndarray, a: tuple[int, int], b: tuple[int, int]) -> None:
    count = max(abs(b[0] - a[0]), abs(b[1] - a[1]), 1)
    along = np.linspace(0, 1, count + 1)
    xs = np.rint(a[0] + (b[0] - a[0]) * along).astype(int)
    ys = np.rint(a[1] + (b[1] - a[1]) * along).astype(int)
    dots[ys, xs] = True


def text_chart(
    curves: Sequence[Curve],
    width: int = 80,
    height: int = 15,
    *,
    log: bool = False,
    y_range: tuple[float, float] | None = None,
    across: Axis | None = None,
    plain: bool = False,
    colour: bool = False,
) -> list[str]:
    """Draw curves of one key into lines of at most `width` characters.

    One curve has Braille dots, of several each has a character of its own (and a colour if wanted).

    Args:
        curves: one per run; they may be empty or all NaN.
        width: characters, at least 30.
        height: lines of the plot itself, without the two of the axis below it.
        log: logarithmic values.
        y_range: lowest and highest value, None for those of the curves.
        across: axis of the steps, None for that of the curves.
        plain: ASCII only.
        colour: for a terminal.
    """
    steps = np.concatenate([curve.steps for curve in curves]) if curves else np.zeros(0)
    values = np.concatenate([curve.values for curve in curves]) if curves else np.zeros(0)
    axis, across = axis_of(values, log, y_range), across or steps_axis(steps)
    marks = {}
    for value, label in axis.ticks(max(2, height // 3)):
        place = float(axis.place(np.float64(value)))
        marks[height - 1 - round(place * (height - 1))] = label
    margin = max(map(len, marks.values()), default=0)
    inner = width - margin - 3
    cells = _cells(curves, axis, across, inner, height, plain, colour)
    tick, line, corner, flat, down = "+|+-+" if plain else "┤│└─┬"
    lines = []
    for row, cell_row in enumerate(cells):
        lines.append(f"{marks.get(row, ''):>{margin}} {tick if row in marks else line}{''.join(cell_row)}".rstrip())
    base, labels = [flat] * inner, [" "] * (inner + 1)
    end = 0
    for value, label in across.ticks(max(2, inner // 14)):
        column = round(float(across.place(np.float64(value))) * (inner - 1))
        start = min(max(0, column - len(label) // 2), inner + 1 - len(label))
        if start >= end and value == int(value):
            base[column] = down
            labels[start : start + len(label)] = label
            end = start + len(label) + 1
    blank = " " * (margin + 1)
    return [*lines, f"{blank}{corner}{''.join(base)}", f"{blank} {''.join(labels)}".rstrip()]


def _cells(
    curves: Sequence[Curve], axis: Axis, across: Axis, width: int, height: int, plain: bool, colour: bool
) -> list[list[str]]:
    cells = [[" "] * width for _ in range(height)]
    alone = len(curves) == 1 and not plain
    for number, curve in enumerate(curves):
        x, y = across.place(curve.steps.astype(np.float64)), axis.place(curve.values)
        if alone:
            dots = trace(x, y, width * 2, height * 4).reshape(height, 4, width, 2)
            codes = np.einsum("ycxr,cr->yx", dots.astype(int), np.array(_BRAILLE))
            drawn = {(r, c): chr(0x2800 + codes[r, c]) for r, c in zip(*np.nonzero(codes), strict=True)}
        else:
            places = np.argwhere(trace(x, y, width, height))
            drawn = {(r, c): MARKERS[number % len(MARKERS)] for r, c in places}
        for (r, c), character in drawn.items():
            paint = f"\033[{COLOURS[number % len(COLOURS)]}m{character}\033[0m"
            cells[r][c] = paint if colour else character
    return cells

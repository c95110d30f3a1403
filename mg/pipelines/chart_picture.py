"""Charts of curves as a picture: one panel per figure, all runs in each."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from mg.pipelines.charts import Axis, axis_of, columns, steps_axis
from mg.pipelines.curves import Curve, smoothed

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Told apart by the colour-blind as well (Okabe and Ito)."""
PANEL = (720, 380)
"""Width and height of a panel in pixels."""
_FINE = 2  # drawn so many times as large, then reduced, which smooths the edges
_MARGINS = (70, 36, 20, 40)  # left, top, right, bottom of a panel
_HEADER = 34
_FEW = 60  # curves of at most so many points have a dot at each
_INK, _GREY, _GRID, _ALARM = "#222222", "#707070", "#e6e6e6", "#c00000"


def picture(
    panels: Mapping[str, Sequence[Curve]],
    *,
    smooth: float = 0.0,
    log: bool = False,
    y_range: tuple[float, float] | None = None,
    resumes: Sequence[int] = (),
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw a panel per key; returns RGB.

    Smoothed curves stand in front of the pale raw ones. Red strokes at the bottom of a panel are steps without a
    finite value.

    Args:
        panels: curves by key; those of one run have one colour everywhere.
        smooth: see `curves.smoothed`.
        log: logarithmic values.
        y_range: lowest and highest value, None for those of the curves.
        resumes: steps to mark by dashed lines.
    """
    names = list(dict.fromkeys(curve.run for curves in panels.values() for curve in curves))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    across = 1 if len(panels) <= 3 else 2
    down = -(-len(panels) // across)
    width = PANEL[0] * across
    entries = [(name, colours[name]) for name in names]
    if any(not np.isfinite(curve.values).all() for curves in panels.values() for curve in curves):
        entries.append(("no finite value", _ALARM))
    if resumes:
        entries.append(("resumed (dashed)", _GREY))
    legend, header = _legend(entries, width)
    sheet = Image.new("RGB", (width * _FINE, (PANEL[1] * down + header) * _FINE), "white")
    sheet.paste(legend, (0, 0))
    x_axis = steps_axis(np.concatenate([curve.steps for curves in panels.values() for curve in curves]))
    for number, (key, curves) in enumerate(panels.items()):
        panel = _panel(key, curves, colours, x_axis, smooth, log, y_range, resumes)
        sheet.paste(panel, (number % across * panel.width, header * _FINE + number // across * panel.height))
    return np.asarray(sheet.resize((sheet.width // _FINE, sheet.height // _FINE), Image.Resampling.BOX))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * _FINE)


def _legend(entries: Sequence[tuple[str, str]], width: int) -> tuple[Image.Image, int]:
    """Draw names and colours, in as many lines as they need; returns the picture and its height in final pixels."""
    font, places, x, row = _font(14), [], 16, 0
    for name, _ in entries:
        length = int(font.getlength(name)) // _FINE + 56
        if x + length > width and x > 16:
            x, row = 16, row + 1
        places.append((x, row))
        x += length
    height = _HEADER + 22 * row
    image = Image.new("RGB", (width * _FINE, height * _FINE), "white")
    draw = ImageDraw.Draw(image)
    for (name, colour), (x, row) in zip(entries, places, strict=True):
        y = (18 + 22 * row) * _FINE
        draw.line((x * _FINE, y, (x + 26) * _FINE, y), colour, 3 * _FINE)
        draw.text(((x + 34) * _FINE, y), name, _INK, font, "lm")
    return image, height


def _panel(
    key: str,
    curves: Sequence[Curve],
    colours: Mapping[str, str],
    x_axis: Axis,
    smooth: float,
    log: bool,
    y_range: tuple[float, float] | None,
    resumes: Sequence[int],
) -> Image.Image:
    left, top, right, bottom = (margin * _FINE for margin in _MARGINS)
    panel = Image.new("RGB", (PANEL[0] * _FINE, PANEL[1] * _FINE), "white")
    size = panel.width - left - right, panel.height - top - bottom
    y_axis = y_range and Axis(*y_range, log) or _roomy(axis_of(np.concatenate([c.values for c in curves]), log))
    plot = Image.new("RGB", size, "white")
    _grid(plot, x_axis, y_axis, [step for step in resumes if x_axis.low < step < x_axis.high])
    for curve in curves:
        if smooth and not curve.seldom:
            _line(plot, curve, x_axis, y_axis, _pale(colours[curve.run]), 1)
        _line(plot, smoothed(curve, smooth), x_axis, y_axis, colours[curve.run], 2)
        _alarms(plot, curve, x_axis)
    panel.paste(plot, (left, top))
    draw = ImageDraw.Draw(panel)
    draw.rectangle((left, top, left + size[0], top + size[1]), outline=_GREY, width=_FINE)
    draw.text((left, top // 2), key, _INK, _font(16), "lm")
    draw.text((left + size[0], panel.height - 5 * _FINE), "step", _GREY, _font(12), "rs")
    for value, label in y_axis.ticks(6):
        y = top + _down(y_axis, value, size[1])
        draw.line((left - 4 * _FINE, y, left, y), _GREY, _FINE)
        draw.text((left - 7 * _FINE, y), label, _INK, _font(12), "rm")
    for value, label in x_axis.ticks(8):
        x = left + float(x_axis.place(np.float64(value))) * (size[0] - 1)
        draw.line((x, top + size[1], x, top + size[1] + 4 * _FINE), _GREY, _FINE)
        draw.text((x, top + size[1] + 7 * _FINE), label, _INK, _font(12), "mt")
    return panel


def _roomy(axis: Axis) -> Axis:
    """Leave a little room above and below the curves."""
    if axis.log:
        room = (axis.high / axis.low) ** 0.05
        return Axis(max(axis.low / room, 1e-307), min(axis.high * room, 1e307), True)
    room = 0.05 * (axis.high - axis.low)
    return Axis(axis.low - room, axis.high + room)


def _down(axis: Axis, value: float, height: int) -> float:
    return (1 - float(axis.place(np.float64(value)))) * (height - 1)


def _grid(plot: Image.Image, x_axis: Axis, y_axis: Axis, resumes: Sequence[int]) -> None:
    draw = ImageDraw.Draw(plot)
    for value, _ in y_axis.ticks(6):
        y = _down(y_axis, value, plot.height)
        draw.line((0, y, plot.width, y), _GRID, _FINE)
    for value, _ in x_axis.ticks(8):
        x = float(x_axis.place(np.float64(value))) * (plot.width - 1)
        draw.line((x, 0, x, plot.height), _GRID, _FINE)
    for step in resumes:
        x = float(x_axis.place(np.float64(step))) * (plot.width - 1)
        for y in range(0, plot.height, 12 * _FINE):
            draw.line((x, y, x, y + 5 * _FINE), _GREY, _FINE)


def _line(plot: Image.Image, curve: Curve, x_axis: Axis, y_axis: Axis, colour: str, width: int) -> None:
    draw = ImageDraw.Draw(plot)
    x = np.rint(x_axis.place(curve.steps.astype(np.float64)) * (plot.width - 1)).astype(int)
    y = (1 - y_axis.place(curve.values)) * (plot.height - 1)
    r = (width + 1) * _FINE
    pieces: list[list[tuple[float, float]]] = []
    for column, heights, gap in columns(x, y):
        if gap or not pieces:
            pieces.append([])
        pieces[-1] += [(column, float(height)) for height in dict.fromkeys(heights)]
    for piece in pieces:
        if len(piece) > 1:
            draw.line(piece, colour, width * _FINE, joint="curve")
        if len(piece) == 1 or len(curve.steps) <= _FEW:  # between gaps a point would not be seen
            for px, py in piece:
                draw.ellipse((px - r, py - r, px + r, py + r), colour)


def _alarms(plot: Image.Image, curve: Curve, x_axis: Axis) -> None:
    draw = ImageDraw.Draw(plot)
    for step in curve.steps[~np.isfinite(curve.values)]:
        x = float(x_axis.place(np.float64(step))) * (plot.width - 1)
        draw.line((x, plot.height - 10 * _FINE, x, plot.height), _ALARM, 2 * _FINE)


def _pale(colour: str) -> str:
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - 0.3 * (255 - part)):02x}" for part in parts)

"""Draw the curves of trainings from their logs: in the terminal, and as a picture (PNG)."""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from mg.config import cli
from mg.errors import UserError


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as one line, as every other user error."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="plot_training.py", description=__doc__)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="output folder of a training; several are drawn into the same charts")
    add("--keys", nargs="+", metavar="KEY", help="figures to draw, such as loss 'val_*'; none: loss and validation")
    add("--join", action="store_true", help="the folders are one run that went on from each to the next")
    add("--smooth", type=float, default=0.0, metavar="W", help="weight of the past in averages, 0 (off) to below 1")
    add("--log", action="store_true", help="logarithmic values")
    add("--steps", nargs=2, type=int, metavar=("FIRST", "LAST"), help="draw these steps only")
    add("--y_range", nargs=2, type=float, metavar=("LOW", "HIGH"), help="draw these values only")
    add("--width", type=int, default=80, help="characters per line (80)")
    add("--height", type=int, default=15, help="lines per chart (15)")
    add("--ascii", action="store_true", help="plain characters instead of Braille dots and lines")
    add("--png", metavar="FILE", help="picture to write; none: curves.png in the first folder")
    add("--no_png", action="store_true", help="write no picture")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Read, draw, print; raises UserError for folders without logs and unknown keys."""
    args = _parse(argv)
    from mg.pipelines.plot_training import PICTURE, PlotOptions, plot_training

    first = Path(args.runs[0])
    options = PlotOptions(
        runs=args.runs,
        join=args.join,
        keys=args.keys,
        smooth=args.smooth,
        log=args.log,
        steps=args.steps and tuple(args.steps),
        y_range=args.y_range and tuple(args.y_range),
        width=args.width,
        height=args.height,
        plain=args.ascii or not _speaks_unicode(),
        colour=sys.stdout.isatty(),
        picture=None if args.no_png else args.png or str((first.parent if first.is_file() else first) / PICTURE),
    )
    print("\n".join(plot_training(options)))


def _speaks_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")


if __name__ == "__main__":
    cli.run(main)

"""Show where each process of a training is, and which of them are behind: tools/where.py OUTPUT_FOLDER.

Ends with 1 if a process is behind, silent or missing, else with 0.
"""

import argparse
from typing import NoReturn

from mg.config import cli
from mg.errors import UserError


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as one line, as every other user error."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="where.py", description=__doc__)
    add = parser.add_argument
    add("run", metavar="RUN", help="output folder of a training")
    add("--ranks", type=int, help="number of processes; none: as many as have left a heartbeat there")
    add("--late", type=float, default=60.0, help="seconds without progress, or without a sign of life (60)")
    add("--most", type=int, default=20, help="processes to list (20); those behind come first")
    add("--json", action="store_true", help="print all of them as JSON instead")
    args = parser.parse_args(argv)
    if args.late <= 10:
        raise UserError(f"--late {args.late:g}: give more than 10 seconds, the time between two heartbeats")
    return args


def main(argv: list[str]) -> int:
    """Read, print, and return 1 if a process holds the others up."""
    args = _parse(argv)
    from mg.parallel.heartbeats import as_json, places, table

    found = places(args.run, args.ranks, args.late)
    print(as_json(found) if args.json else "\n".join(table(found, args.most)))
    return int(any(place.state in ("behind", "silent", "missing") for place in found))


if __name__ == "__main__":
    cli.run(main)

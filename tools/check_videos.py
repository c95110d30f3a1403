"""Read every video and picture of a list to its end and name those that cannot be used; or compare lists by content.

Exit code: 0 all files are good (with --disjoint: no file is in two lists), 1 some are not, 5 none is.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mg.config import cli
from mg.errors import UserError


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as one line, as every other user error."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="check_videos.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", nargs="+", metavar="LIST", help="CSV with a column video, or a folder")
    parser.add_argument("--video_folder", metavar="FOLDER", help="where the CSVs' paths start; else their own folder")
    parser.add_argument("--disjoint", action="store_true", help="name the files that are in two of the lists instead")
    parser.add_argument("--bad", metavar="FILE", help="write the bad files there: a line {path, name, reason} each")
    parser.add_argument("--good", metavar="FILE", help="write the good files there, as CSV")
    parser.add_argument("--max_pixels", type=int, metavar="N", help="larger frames (height x width) are bad")
    parser.add_argument("--max_seconds", type=float, metavar="S", help="longer files are bad")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="threads (default 2)")
    args = parser.parse_args(argv)
    for name in ("max_pixels", "max_seconds", "workers"):
        if getattr(args, name) is not None and not getattr(args, name) > 0:
            raise UserError(f"--{name} {getattr(args, name)} must be above 0")
    if args.disjoint and len(args.lists) < 2:
        raise UserError("--disjoint compares lists; name at least two")
    return args


def _compare(args: argparse.Namespace) -> int:
    from mg.dataset.check import shared_files
    from mg.dataset.manifest import read_manifest, scan_folder

    lists = {
        path: scan_folder(path) if Path(path).is_dir() else read_manifest(path, args.video_folder or Path(path).parent)
        for path in args.lists
    }
    shared = shared_files(lists)
    for one in shared:
        print(f"in two lists: {one.first[1]} of {one.first[0]} is {one.second[1]} of {one.second[0]}")
    sizes = ", ".join(f"{name} ({len(items)} files)" for name, items in lists.items())
    print(f"{sizes}: {f'{len(shared)} files are in two lists' if shared else 'disjoint'}")
    return 1 if shared else 0


def _check(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from mg.dataset.check import as_csv, check_items
    from mg.dataset.headers import Limits
    from mg.dataset.manifest import read_lists
    from mg.files import write_text

    items = [item for members in read_lists(args.lists, args.video_folder).values() for item in members]
    good, bad = [], []
    findings = check_items(items, Limits(args.max_pixels, args.max_seconds), args.workers)
    for finding in tqdm(findings, total=len(items), unit="file", disable=None):
        (good if finding.reason is None else bad).append(finding)
        if finding.reason is not None:
            tqdm.write(f"bad: {finding.item.path}: {finding.reason}")
    entries = [{"path": str(one.item.path), "name": one.item.name, "reason": one.reason} for one in bad]
    if args.bad:
        write_text(args.bad, "".join(json.dumps(entry) + "\n" for entry in entries))
    if args.good:
        write_text(args.good, as_csv([one.item for one in good]))
    written = [f"; the {name} ones are in {path}" for name, path in (("bad", args.bad), ("good", args.good)) if path]
    print(f"{len(bad)} of {len(items)} files are bad{''.join(written)}")
    return 0 if not bad else 1 if good else 5


def main(argv: list[str]) -> int:
    """Check or compare, print, and return the exit code."""
    args = _parse(argv)
    return _compare(args) if args.disjoint else _check(args)


if __name__ == "__main__":
    cli.run(main)

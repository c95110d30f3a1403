"""Decode and shrink the videos and pictures of a list once, into a few large files that trainings read fast.

Use it with scripts/train_tae.py --data.chunks FOLDER and the same list. Broken off, the same command goes on. Run
again, it compares what is there with its checksums and with the files, and mends it.
"""

import argparse
from collections.abc import Sequence
from typing import NoReturn

from mg.config import cli
from mg.errors import UserError


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as one line, as every other user error."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="make_chunks.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", nargs="+", metavar="LIST", help="CSV with a column video, or a folder")
    parser.add_argument("--output_path", required=True, metavar="FOLDER", help="where the chunks go")
    parser.add_argument("--video_folder", metavar="FOLDER", help="where the CSVs' paths start; else their own folder")
    parser.add_argument(
        "--short_side", type=int, metavar="N", help="shrink frames to it (pixels); the training's data.cache_short_side"
    )
    parser.add_argument("--shard_mb", type=int, default=256, metavar="N", help="size of a file in MB (default 256)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="threads that decode (default 2)")
    parser.add_argument("--verify", action="store_true", help="then read everything and compare the checksums")
    args = parser.parse_args(argv)
    for name in ("short_side", "shard_mb", "workers"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)} must be at least 1")
    return args


def main(argv: list[str]) -> int:
    """Write the chunks and print what is in them; 1 if --verify finds damage."""
    args = _parse(argv)
    from tqdm import tqdm

    from mg.dataset.chunks import ChunkedClips, ChunkWriter
    from mg.dataset.manifest import read_lists
    from mg.files import writable_folder

    writable_folder(args.output_path, "--output_path")
    items = [item for members in read_lists(args.lists, args.video_folder).values() for item in members]
    writer = ChunkWriter(args.output_path, items, args.short_side, args.shard_mb * 10**6, args.workers)
    with tqdm(unit="clip", disable=None) as bar:
        bar.total = len(items)
        entries = writer.write(lambda done: bar.update(done - bar.n))
    bad = [entry for entry in entries if entry.reason is not None]
    for entry in bad:
        print(f"bad: {entry.name}: {entry.reason}")
    frames = sum(entry.shape[0] for entry in entries if entry.shape)
    shards = len({entry.shard for entry in entries if entry.shard is not None})
    good = len(entries) - len(bad)
    print(f"{args.output_path}: {good} clips, {frames} frames in {shards} files; {len(bad)} clips bad")
    damage = list(ChunkedClips(args.output_path, args.short_side).damaged()) if args.verify else []
    for line in damage:
        print(f"damaged: {line}")
    return 1 if damage else 0


if __name__ == "__main__":
    cli.run(main)

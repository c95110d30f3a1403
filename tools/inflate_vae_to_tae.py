"""Inflate the image autoencoder of Stable Diffusion 3.5 (diffusers layout) to temporal autoencoder weights."""

import argparse
import json
import re
from pathlib import Path
from typing import Any, NoReturn

from mg.config import cli
from mg.errors import UserError


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as one line, as every other user error."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(prog="inflate_vae_to_tae.py", description=__doc__)
    parser.add_argument(
        "-s",
        "--src",
        required=True,
        metavar="PATH",
        help="image VAE in .safetensors (fp32, fp16 or bf16): one file, an index of shards, or their folder",
    )
    parser.add_argument(
        "-t", "--target", required=True, metavar="PATH", help="file to write: .safetensors or .ckpt, by its suffix"
    )
    parser.add_argument(
        "--preset",
        choices=("sd35", "reference", "tiny"),
        default="sd35",
        help="TAE config whose structure is filled; channel counts and depths follow the VAE (default: sd35)",
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="REGEX",
        help="skip the VAE tensors whose name matches (may be repeated); any other unknown tensor is an error",
    )
    return parser.parse_args(argv)


def _vae_config(src: str) -> dict[str, Any]:
    """The config.json that diffusers writes beside the weights; empty if there is none."""
    path = (Path(src) if Path(src).is_dir() else Path(src).parent) / "config.json"
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); restore it or move it away") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a JSON object; restore it or move it away")
    return config


def main(argv: list[str]) -> None:
    """Read --src, inflate, write --target and print what was done; raises UserError for anything that does not fit."""
    args = _parse(argv)
    for pattern in args.ignore:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"--ignore {pattern}: no regular expression ({error}); escape special signs") from error

    # Only now, so that --help answers at once: the models' room brings MindSpore with it.
    from mg.models.tae import PRESETS, TaeConfig
    from mg.models.tae.adapter import infer_config, inflate
    from mg.models.tae.loading import metadata_of
    from mg.weights import check_finite, read_weights, write_weights

    vae = read_weights(args.src)
    check_finite(vae, args.src)
    try:
        config = infer_config(vae, PRESETS[args.preset], _vae_config(args.src))
        tensors, report = inflate(vae, config, args.ignore)
    except ValueError as error:
        raise UserError(f"--src {args.src}: {error}") from error
    write_weights(args.target, tensors, metadata_of(TaeConfig.from_mapping(config)))

    changed = {key: value for key, value in config.items() if value != PRESETS[args.preset][key]}
    print(f"{args.src} -> {args.target}: {report}")
    print(f"config: preset {args.preset}" + (f" with {json.dumps(changed)}" if changed else ""))
    if report.skipped:
        print(f"skipped: {', '.join(report.skipped)}")


if __name__ == "__main__":
    cli.run(main)

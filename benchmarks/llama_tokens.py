"""Time and peak memory of the transformer's forward over the number of tokens, each in a process of its own.

Attention grows with the square of the tokens, everything else in a line; if the rate (operations of the matrix products
per second) stays, nothing else grows faster. 73,728 tokens are 256 frames of 768x768 pixels.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from paired import at_least_one

from mg.config import cli

# Tokens along time, height and width.
SIZES = {2048: (2, 32, 32), 4096: (4, 32, 32), 8192: (8, 32, 32), 16384: (16, 32, 32), 73728: (32, 48, 48)}
TEXT = 128


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048, 4096, 8192, 16384], choices=sorted(SIZES))
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--ffn", type=int, default=704)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3, help="counted runs after the first, which compiles")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return at_least_one(parser.parse_args(argv), "width", "ffn", "heads", "layers", "runs")


def _measure(args: argparse.Namespace) -> None:
    import mindspore as ms

    from mg import device
    from mg.models.llama import PRESETS, LlamaModel

    device.setup("CPU")
    t, h, w = SIZES[args.tokens[0]]
    config = replace(
        PRESETS["tiny"], hidden_size=args.width, intermediate_size=args.ffn, num_attention_heads=args.heads,
        num_hidden_layers=args.layers, max_length=(t, h, w), text_widths=(("ul2", 64),),
    )  # fmt: skip
    network = LlamaModel(config)
    rng = np.random.default_rng(0)
    latent = ms.Tensor(rng.standard_normal((1, 16, t, 2 * h, 2 * w), np.float32))
    text = ms.Tensor(rng.standard_normal((1, TEXT, 64), np.float32))
    inputs = (latent, ms.Tensor(np.float32([500])), ms.Tensor(np.ones((1, TEXT), np.float32)), text)
    seconds = []
    for _ in range(1 + args.runs):
        start = time.perf_counter()
        network(*inputs).asnumpy()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{np.median(seconds[1:] or seconds)} {seconds[0]} {peak}")


def main(argv: list[str]) -> None:
    """Measure every number of tokens."""
    args = _arguments(argv)
    if args.child:
        _measure(args)
        return
    names = ("width", "ffn", "heads", "layers", "runs")
    fixed = [text for name in names for text in (f"--{name}", str(vars(args)[name]))]
    for tokens in args.tokens:
        command = [sys.executable, __file__, *fixed, "--tokens", str(tokens), "--child"]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        seconds, first, peak = map(float, run.stdout.split()[-3:])
        d = args.width
        linear = tokens * (6 * d * d + 3 * d * args.ffn) + 2 * TEXT * d * d
        rate = 2.0 * args.layers * (linear + 2 * tokens * (tokens + TEXT) * d) / seconds / 1e9
        print(f"{tokens:6d} tokens: {seconds:8.3f} s, first {first:6.1f} s, {rate:5.0f} GFLOP/s, peak {peak:6.0f} MB")


if __name__ == "__main__":
    cli.run(main)

"""Peak memory of tiled encode + decode for videos of several lengths, each in a process of its own."""

import argparse
import resource
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
from paired import at_least_one

from mg.config import cli


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="tiny", choices=["sd35", "reference", "tiny"])
    parser.add_argument("--frames", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--size", type=int, default=128, help="height and width in pixels")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return at_least_one(parser.parse_args(argv), "frames", "size")


def _measure(preset: str, frames: int, size: int) -> None:
    import mindspore as ms

    from mg import device
    from mg.models.tae import PRESETS, TemporalAutoencoder

    device.setup("CPU")
    network = TemporalAutoencoder(PRESETS[preset], use_tile=True, sample_deterministic=True)
    video = np.random.default_rng(0).uniform(-1, 1, (1, 3, frames, size, size)).astype(np.float32)
    z, _, _ = network.encode(ms.Tensor(video))
    network.decode(z, num_target_frames=frames)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main(argv: list[str]) -> None:
    """Measure every length and print the ratio to the first."""
    args = _arguments(argv)
    if args.child:
        _measure(args.preset, args.frames[0], args.size)
        return
    base = None
    for frames in args.frames:
        options = ["--preset", args.preset, "--size", str(args.size), "--frames", str(frames), "--child"]
        run = subprocess.run([sys.executable, __file__, *options], stdout=subprocess.PIPE, text=True, check=True)
        peak = float(run.stdout.split()[-1])
        base = base or peak
        print(f"{frames:4d} frames: peak {peak:7.0f} MB, {peak / base:.2f} x the first")


if __name__ == "__main__":
    cli.run(main)

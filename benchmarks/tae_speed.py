"""Time encode + decode of the temporal autoencoder against its PyTorch twin, in turn, with the same weights.

Both run FP32 on the CPU, each in a process of its own that idles while the other works: MindSpore in graph mode after
compilation, PyTorch eager. Prints every pair, the medians, the ratio of each pair and the largest difference of the
two outputs.
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np
from paired import at_least_one, compare, serve

from mg.config import cli


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ch", type=int, default=64, help="base channels of the reference preset")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=128, help="height and width in pixels")
    parser.add_argument("--runs", type=int, default=5, help="counted pairs, after one warm-up pair")
    parser.add_argument("--worker", choices=["mindspore", "torch"], help=argparse.SUPPRESS)
    return at_least_one(parser.parse_args(argv), "ch", "frames", "size", "runs")


def _video(args: argparse.Namespace) -> np.ndarray:
    shape = (1, 3, args.frames, args.size, args.size)
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


def _mindspore(args: argparse.Namespace) -> Callable[[], np.ndarray]:
    import mindspore as ms

    from mg import device
    from mg.models.tae import PRESETS, TemporalAutoencoder

    device.setup("CPU")
    network = TemporalAutoencoder(dict(PRESETS["reference"], ch=args.ch), sample_deterministic=True)
    x = ms.Tensor(_video(args))
    return lambda: network.decode(network.encode(x)[0]).asnumpy()


def _torch(args: argparse.Namespace) -> Callable[[], np.ndarray]:
    import torch
    from torch_tae import TorchTAE

    from mg.models.tae.adapter import parameter_shapes
    from mg.models.tae.config import PRESETS, TaeConfig
    from mg.models.tae.init import initial_value

    config = dict(PRESETS["reference"], ch=args.ch)
    checked = TaeConfig.from_mapping(config)
    twin = TorchTAE(config).eval()
    shapes = parameter_shapes(config)
    twin.load_arrays({name: initial_value(name, shape, checked, 0) for name, shape in shapes.items()})
    x = torch.from_numpy(_video(args))

    def run() -> np.ndarray:
        with torch.no_grad():
            return twin.decode(twin.encode(x)[0]).numpy()

    return run


def main(argv: list[str]) -> None:
    """Compare, or be one of the two processes."""
    args = _arguments(argv)
    if args.worker:
        serve({"mindspore": _mindspore, "torch": _torch}[args.worker](args))
        return
    options = ["--ch", str(args.ch), "--frames", str(args.frames), "--size", str(args.size)]
    compare(__file__, options, args.runs, f"{_video(args).shape}, ch {args.ch}")


if __name__ == "__main__":
    cli.run(main)

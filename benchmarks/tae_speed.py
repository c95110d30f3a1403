"""Time encode + decode of the temporal autoencoder against its PyTorch twin, in turn, with the same weights.

Both run FP32 on the CPU: MindSpore in graph mode after compilation, PyTorch eager. Prints every pair, the medians and
the ratio of each pair, and the largest difference of the two outputs.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ch", type=int, default=64, help="base channels of the reference preset")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=128, help="height and width in pixels")
    parser.add_argument("--runs", type=int, default=5, help="counted pairs, after one warm-up pair")
    return parser.parse_args()


def _seconds(run: Callable[[], np.ndarray]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Build both networks, run them in turn, print."""
    args = _arguments()
    import mindspore as ms
    import torch
    from torch_tae import TorchTAE

    from mg import device
    from mg.models.tae import PRESETS, TemporalAutoencoder

    device.setup("CPU")
    config = dict(PRESETS["reference"], ch=args.ch)
    ours = TemporalAutoencoder(config, sample_deterministic=True)
    twin = TorchTAE(config).eval()
    twin.load_arrays({name: p.asnumpy() for name, p in ours.parameters_and_names()})
    shape = (1, 3, args.frames, args.size, args.size)
    video = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    x_ms, x_torch = ms.Tensor(video), torch.from_numpy(video)

    def run_ours() -> np.ndarray:
        return ours.decode(ours.encode(x_ms)[0]).asnumpy()

    def run_twin() -> np.ndarray:
        with torch.no_grad():
            return twin.decode(twin.encode(x_torch)[0]).numpy()

    start = time.perf_counter()
    difference = np.abs(run_ours() - run_twin()).max()
    print(f"first call (compilation included) {time.perf_counter() - start:.1f} s, difference {difference:.1e}")
    pairs = [(_seconds(run_ours), _seconds(run_twin)) for _ in range(args.runs)]
    for mine, theirs in pairs:
        print(f"mindspore {mine:6.2f} s   torch {theirs:6.2f} s   ratio {mine / theirs:.2f}")
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"median    {mine:6.2f} s         {theirs:6.2f} s   ratio {ratio:.2f}   {shape}, ch {args.ch}")


if __name__ == "__main__":
    main()

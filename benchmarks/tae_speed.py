"""Time encode + decode of the temporal autoencoder against its PyTorch twin, in turn, with the same weights.

Both run FP32 on the CPU, each in a process of its own that idles while the other works: MindSpore in graph mode after
compilation, PyTorch eager. Prints every pair, the medians, the ratio of each pair and the largest difference of the
two outputs.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ch", type=int, default=64, help="base channels of the reference preset")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=128, help="height and width in pixels")
    parser.add_argument("--runs", type=int, default=5, help="counted pairs, after one warm-up pair")
    parser.add_argument("--worker", choices=["mindspore", "torch"], help=argparse.SUPPRESS)
    return parser.parse_args()


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


def _work(args: argparse.Namespace) -> None:
    """Answer every path on standard input with the seconds of one run, and save the output there."""
    run = {"mindspore": _mindspore, "torch": _torch}[args.worker](args)
    for line in sys.stdin:
        start = time.perf_counter()
        output = run()
        print(f"seconds {time.perf_counter() - start}", flush=True)
        if line.strip():
            np.save(line.strip(), output)
            print("saved", flush=True)


class _Worker:
    def __init__(self, name: str, args: argparse.Namespace) -> None:
        options = ["--ch", str(args.ch), "--frames", str(args.frames), "--size", str(args.size), "--worker", name]
        # The twin must be free to use every instruction set of the machine.
        env = {key: value for key, value in os.environ.items() if key != "ONEDNN_MAX_CPU_ISA"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def run(self, save: str = "") -> float:
        self.process.stdin.write(f"{save}\n")
        self.process.stdin.flush()
        seconds = float(self._answer("seconds").split()[1])
        if save:
            self._answer("saved")
        return seconds

    def _answer(self, word: str) -> str:
        for line in self.process.stdout:
            if line.startswith(word):
                return line
        raise SystemExit(f"a benchmark process ended with code {self.process.wait()}")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    """Start both processes, run them in turn, print."""
    args = _arguments()
    if args.worker:
        _work(args)
        return
    ours, twin = _Worker("mindspore", args), _Worker("torch", args)
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / f"{name}.npy") for name in ("ours", "twin")]
        first = ours.run(files[0])
        twin.run(files[1])
        difference = np.abs(np.load(files[0]) - np.load(files[1])).max()
    print(f"first call of ours, compilation included: {first:.1f} s; greatest difference of outputs {difference:.1e}")
    pairs = [(ours.run(), twin.run()) for _ in range(args.runs)]
    ours.close()
    twin.close()
    for mine, theirs in pairs:
        print(f"mindspore {mine:6.2f} s   torch {theirs:6.2f} s   ratio {mine / theirs:.2f}")
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"median    {mine:6.2f} s         {theirs:6.2f} s   ratio {ratio:.2f}   {_video(args).shape}, ch {args.ch}")


if __name__ == "__main__":
    main()

"""Time the transformer, forward and a training step, against a plain PyTorch twin with the same weights and inputs.

Both run FP32 on the CPU in a process of their own, in turn: MindSpore in graph mode after compilation, PyTorch eager.
The forward ends with the velocity, the step with the gradients of all parameters. Besides, the share of the machine's
matrix product peak: operations of the forward's products (linear layers, attention) per second over those of numpy's
product of two square matrices, measured before and after.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
from paired import at_least_one, compare, serve

from mg.config import cli

WIDTHS = (("ul2", 4096), ("metaclip", 1280), ("byt5", 1472))
LENGTHS = (512, 256, 128)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--ffn", type=int, default=1408)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--latent", type=int, nargs=3, default=[8, 32, 32], help="frames, height, width of the latent")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--what", nargs="+", default=["forward", "step"], choices=["forward", "step"])
    parser.add_argument("--runs", type=int, default=5, help="counted pairs, after one warm-up pair")
    parser.add_argument("--worker", choices=["mindspore", "torch"], help=argparse.SUPPRESS)
    return at_least_one(parser.parse_args(argv), "width", "ffn", "layers", "heads", "latent", "batch_size", "runs")


def _config(args: argparse.Namespace):
    from mg.models.llama import LlamaConfig

    t, h, w = args.latent
    return LlamaConfig(
        hidden_size=args.width, intermediate_size=args.ffn, num_hidden_layers=args.layers,
        num_attention_heads=args.heads, max_length=(t, h // 2, w // 2), text_widths=WIDTHS,
    )  # fmt: skip


def _weights(args: argparse.Namespace) -> dict[str, np.ndarray]:
    from mg.models.llama import parameter_shapes
    from mg.rng import stream

    def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = stream(0, f"benchmark.{name}").standard_normal(shape, np.float32)
        return 1.0 + 0.1 * noise if name.endswith("norm.weight") else noise / np.float32(shape[-1] ** 0.5)

    return {name: value(name, shape) for name, shape in parameter_shapes(_config(args)).items()}


def _inputs(args: argparse.Namespace) -> list[np.ndarray]:
    rng, b = np.random.default_rng(0), args.batch_size
    latent = rng.standard_normal((b, 16, *args.latent), np.float32)
    timestep = np.linspace(100, 900, b, dtype=np.float32)
    mask = np.ones((b, sum(LENGTHS)), np.float32)
    mask[:, LENGTHS[0] // 2 : LENGTHS[0]] = 0  # half of the first encoder's tokens are padding
    text = [rng.standard_normal((b, n, d), np.float32) for n, (_, d) in zip(LENGTHS, WIDTHS, strict=True)]
    return [latent, timestep, mask, *text]


def _mindspore(args: argparse.Namespace) -> Callable[[], np.ndarray]:
    import mindspore as ms

    from mg import device
    from mg.models.llama import LlamaModel
    from mg.weights import load_into

    device.setup("CPU")
    network = LlamaModel(_config(args))
    load_into(network, _weights(args), path="benchmark")
    inputs = [ms.Tensor(array) for array in _inputs(args)]
    if args.what == ["forward"]:
        return lambda: network(*inputs).asnumpy()

    def objective(*values):
        velocity = network(*values)
        return (velocity * velocity).mean()

    step = ms.value_and_grad(objective, None, ms.ParameterTuple(network.trainable_params()))
    compiled = ms.jit(step)

    def run() -> np.ndarray:
        loss, gradients = compiled(*inputs)
        for gradient in gradients:
            gradient.asnumpy()
        return loss.asnumpy()

    return run


def _torch(args: argparse.Namespace) -> Callable[[], np.ndarray]:
    import torch
    from torch_llama import TorchLlama

    config = _config(args)
    widths = [width for _, width in WIDTHS]
    twin = TorchLlama(args.width, args.ffn, args.layers, args.heads, max_length=config.max_length, text=widths)
    twin.load_state_dict({name: torch.from_numpy(value) for name, value in _weights(args).items()})
    latent, timestep, mask, *text = (torch.from_numpy(array) for array in _inputs(args))
    latent = latent.transpose(1, 2)

    def run() -> np.ndarray:
        if args.what == ["forward"]:
            with torch.no_grad():
                return twin(latent, timestep, *text, mask).transpose(1, 2).numpy()
        twin.zero_grad(set_to_none=True)
        velocity = twin(latent, timestep, *text, mask)
        loss = (velocity * velocity).mean()
        loss.backward()
        return loss.detach().numpy()

    return run


def operations(args: argparse.Namespace) -> float:
    """Floating point operations of the products in one forward."""
    d, n, m = args.width, args.latent[0] * args.latent[1] * args.latent[2] // 4, sum(LENGTHS)
    linear = n * (6 * d * d + 3 * d * args.ffn) + m * 2 * d * d  # q, k, v, o, cross q, o; feed-forward; cross k, v
    scores = 2 * n * (n + m) * d
    ends = 2 * n * d * 64 + sum(length * width * d for length, (_, width) in zip(LENGTHS, WIDTHS, strict=True))
    return 2.0 * args.batch_size * (args.layers * (linear + scores) + ends)


def peak(size: int = 2048, runs: int = 5) -> float:
    """Floating point operations per second of numpy's matrix product."""
    a = np.random.default_rng(0).standard_normal((size, size), np.float32)
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - start)
    return 2.0 * size**3 / statistics.median(seconds[1:])


def main(argv: list[str]) -> None:
    """Compare, or be one of the two processes."""
    args = _arguments(argv)
    if args.worker:
        serve({"mindspore": _mindspore, "torch": _torch}[args.worker](args))
        return
    tokens = args.latent[0] * args.latent[1] * args.latent[2] // 4
    numbers = ("width", "ffn", "layers", "heads", "batch_size")
    for what in args.what:
        options = [text for name in numbers for text in (f"--{name}", str(getattr(args, name)))]
        options += ["--latent", *map(str, args.latent), "--what", what]
        before = peak()
        result = compare(__file__, options, args.runs, f"{what}, {tokens} tokens, width {args.width}")
        if what == "forward":
            best = (before + peak()) / 2
            print(f"peak {best / 1e9:.0f} GFLOP/s; forward {operations(args) / result.seconds / best:.0%} of it")


if __name__ == "__main__":
    cli.run(main)

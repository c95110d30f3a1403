"""Time a training step of the temporal autoencoder against its PyTorch twin, in turn, from the same weights.

A step is what the training loop does with a batch that is there: gradient of the objective with a sampled latent, norm,
clipping, AdamW (in place of SOAP, too, which the twin does not have) and moving average. Sizes, objective and optimizer
are those of a training configuration. Both run FP32 on the CPU, each in a process of its own that idles while the other
works: MindSpore in graph mode after compilation, PyTorch eager. Prints every pair, the medians, the ratio of each pair,
how far the weights of both are apart after the first steps, the shares of the parts of ours, and the peak memory.
"""

import argparse
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from paired import at_least_one, compare, serve

from mg.config import cli
from mg.config.tae_train import TaeLossConfig, TaeTrainConfig
from mg.dataset.clips import latent_mask
from mg.errors import UserError

PARTS = ("gradient", "norm", "update")


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/tae/train/tiny.yaml", help="of scripts/train_tae.py")
    parser.add_argument("--frames", type=int, help="the configuration's if left out")
    parser.add_argument("--size", type=int, help="pixels, a multiple of 8; the configuration's if left out")
    parser.add_argument("--batch_size", type=int, help="the configuration's if left out")
    parser.add_argument("--steps", type=int, default=3, help="steps per run")
    parser.add_argument("--runs", type=int, default=5, help="counted pairs, after one warm-up pair")
    parser.add_argument("--worker", choices=["mindspore", "torch"], help=argparse.SUPPRESS)
    return at_least_one(parser.parse_args(argv), "frames", "size", "batch_size", "steps", "runs")


def settings(args: argparse.Namespace) -> TaeTrainConfig:
    """Return the training configuration with the sizes asked for, AdamW, and of the objective l1 or l2 and KL alone."""
    config = cli.load(TaeTrainConfig, args.config)
    size = args.size and (args.size, args.size)
    wanted = {"num_frames": args.frames, "size": size, "batch_size": args.batch_size}
    data = replace(config.data, **{name: value for name, value in wanted.items() if value is not None})
    train = replace(config.train, optimizer=replace(config.train.optimizer, name="adamw"))
    if config.loss.reconstruction not in ("l1", "l2"):
        raise UserError(f"loss.reconstruction={config.loss.reconstruction}: the twin has l1 and l2; choose one of them")
    loss = TaeLossConfig(reconstruction=config.loss.reconstruction, kl_weight=config.loss.kl_weight)
    return replace(config, data=data, train=train, loss=loss)


def _architecture(config: TaeTrainConfig) -> tuple[dict, Any]:
    """Return the preset and its checked form."""
    from mg.models.tae.config import PRESETS, TaeConfig

    preset = PRESETS[config.model.preset]
    return preset, TaeConfig.from_mapping(preset)


def _weights(config: TaeTrainConfig) -> dict[str, np.ndarray]:
    """Return the initial weights, those that start as zeros drawn too: else a part of the gradients would be zero."""
    from mg.models.tae.adapter import parameter_shapes
    from mg.models.tae.init import initial_value
    from mg.rng import stream

    preset, checked = _architecture(config)
    weights = {}
    for name, shape in parameter_shapes(preset).items():
        value = initial_value(name, shape, checked, 0)
        if len(shape) > 1 and not value.any():
            value = stream(0, f"benchmark.{name}").standard_normal(shape, np.float32) / np.float32(shape[1] ** 0.5)
        weights[name] = value
    return weights


def _batch(config: TaeTrainConfig, index: int) -> dict[str, np.ndarray]:
    """Noise for clips; the second half of the last one is not valid."""
    data, (_, network), rng = config.data, _architecture(config), np.random.default_rng(index)
    b, t, (h, w) = data.batch_size, data.num_frames, data.size
    mask = np.ones((b, t), np.float32)
    mask[-1, (t + 1) // 2 :] = 0
    space = network.spatial_compression
    latent = (b, network.z_channels, -(-t // network.time_compression), h // space, w // space)
    video = rng.uniform(-1, 1, (b, 3, t, h, w)).astype(np.float32)
    valid = latent_mask(mask, network.time_compression)
    return {"video": video, "mask": mask, "latent_mask": valid, "noise": rng.standard_normal(latent, np.float32)}


def ours(config: TaeTrainConfig, steps: int) -> tuple[Callable[[], Callable], Callable[[], str]]:
    """Return a run of `steps` training steps, and a report on all but the first run.

    A run returns a function that gives the change of all weights, then of their averages, since the start.
    """
    from mg import device
    from mg.models.tae import TemporalAutoencoder
    from mg.models.tae.loss import TaeLoss
    from mg.trainers.learner import Learner
    from mg.weights import load_into

    device.setup("CPU", config.mode)
    network = TemporalAutoencoder(_architecture(config)[0], use_recompute=config.model.use_recompute)
    start = _weights(config)
    load_into(network, start, path="benchmark")
    loss = TaeLoss(network, config.loss.reconstruction, config.loss.kl_weight)
    learner = Learner(network, loss, config.train.optimizer, ema_decay=config.train.ema_decay)
    network.set_train(True)
    batches = [_batch(config, index) for index in range(steps)]
    spent: list[list[float]] = []

    def step(batch: dict[str, np.ndarray]) -> list[float]:
        marks = [time.perf_counter()]
        learner.begin(learner.updates + 1)
        learner.add(batch)
        marks.append(time.perf_counter())
        figures = learner.measure()
        marks.append(time.perf_counter())
        if not np.isfinite([figures["loss"], figures["grad_norm"]]).all():
            raise SystemExit("loss or gradient is not finite")
        learner.apply(config.train.optimizer.lr)
        marks.append(time.perf_counter())
        return [after - before for before, after in zip(marks, marks[1:], strict=False)]

    def change() -> np.ndarray:
        names = list(learner.trained)
        groups = [learner.params, learner.averages] if learner.averages else [learner.params]
        parts = [p.asnumpy() - start[name] for group in groups for name, p in zip(names, group, strict=True)]
        return np.concatenate([part.ravel() for part in parts])

    def run() -> Callable[[], np.ndarray]:
        spent.extend(step(batch) for batch in batches)
        return change

    def report() -> str:
        total = np.sum(spent[steps:], 0)
        shares = ", ".join(f"{name} {share:.1%}" for name, share in zip(PARTS, total / total.sum(), strict=True))
        return f"{shares}; {learner.compilations} graphs compiled; {peak_memory()}"

    return run, report


def twin(config: TaeTrainConfig, steps: int) -> tuple[Callable[[], Callable], Callable[[], str]]:
    """Return the same of the PyTorch twin."""
    from torch_tae import TorchTAE
    from torch_train import TorchTraining

    start = _weights(config)
    preset, checked = _architecture(config)
    network, train = TorchTAE(preset), config.train
    network.load_arrays(start)
    training = TorchTraining(network, config.loss, train.optimizer, train.ema_decay, checked.time_compression)
    batches = [_batch(config, index) for index in range(steps)]

    def change() -> np.ndarray:
        now = dict(network.named_parameters())
        names = list(now)
        groups = [now] + [dict(zip(names, training.averages, strict=True))] * (train.ema_decay > 0)
        return np.concatenate([(group[n].detach().numpy() - start[n]).ravel() for group in groups for n in start])

    def run() -> Callable[[], np.ndarray]:
        for batch in batches:
            training.step(batch)
        return change

    return run, peak_memory


def peak_memory() -> str:
    """Say the greatest memory of this process so far."""
    return f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB"


def main(argv: list[str]) -> None:
    """Compare, or be one of the two processes."""
    args = arguments(argv)
    config = settings(args)
    if args.worker:
        serve(*{"mindspore": ours, "torch": twin}[args.worker](config, args.steps))
        return
    options = ["--config", args.config, "--steps", str(args.steps)]
    for name in ("frames", "size", "batch_size"):
        if getattr(args, name) is not None:
            options += [f"--{name}", str(getattr(args, name))]
    data = config.data
    shape = (data.batch_size, 3, data.num_frames, *data.size)
    result = compare(__file__, options, args.runs, f"{args.steps} steps, {shape}, {config.model.preset}")
    print(f"one step of ours: {result.seconds / args.steps:.3f} s")


if __name__ == "__main__":
    cli.run(main)

"""Flow matching against diffusion on one toy set: the same network, steps, batches and sampler for every objective.

The data are 8 Gaussians on a ring in the plane, of variance 1 per axis. The network is a small MLP that sees the point
and the noise level. Samples are compared with fresh data by their energy distance (0 for equal distributions), for
several numbers of sampling steps; "noise" is what the sampler starts from, "floor" data against other data. All are
sampled by DDIM, which for the straight path is Euler's method. The table has means over the seeds, the JSON file every
seed's figure. The epsilon objectives suffer with few steps: where nearly all is noise, data = (x - sigma * epsilon) /
alpha magnifies the network's error by 1 / alpha, up to 150.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mg.config import cli
from mg.errors import UserError

MODES, SPREAD = 8, 0.1
RADIUS = (2.0 * (1.0 - SPREAD**2)) ** 0.5
"""Radius of the ring at which each axis has variance 1."""
FREQUENCIES = 4
HIDDEN = 128


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options of the benchmark."""

    objectives: tuple[str, ...] = ("ot", "vp-cosine", "vp-cosine-epsilon", "vp-linear-epsilon")
    """names of paths in mg.schedulers.PATHS; the vp ones predict v, or the noise where they say epsilon"""
    timesteps: Literal["uniform", "logit-normal"] = "uniform"
    """distribution of the noise levels in training"""
    steps: int = 1000
    """optimizer steps of each objective and seed"""
    batch_size: int = 256
    """points per step"""
    lr: float = 5e-3
    """peak learning rate, falling along half a cosine"""
    sampling_steps: tuple[int, ...] = (5, 10, 50)
    """numbers of sampling steps, on the linear grid"""
    samples: int = 2000
    """points drawn from each network"""
    seeds: int = 1
    """runs of each objective; one says little about differences of less than a third"""
    output_path: str | None = None
    """JSON file for the figures; the table goes beside it as .md"""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "samples", "seeds"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: give 1 or more")
        for name in ("objectives", "sampling_steps"):
            if not getattr(self, name):
                raise UserError(f"--{name}: give one or more")
        if min(self.sampling_steps) < 1:
            raise UserError(f"--sampling_steps {min(self.sampling_steps)}: give 1 or more")
        if not 0 < self.lr < float("inf"):
            raise UserError(f"--lr {self.lr}: give a finite number above 0")


def draw_data(rng: np.random.Generator, count: int) -> np.ndarray:
    """Points of the toy set, float32 (count, 2)."""
    angle = 2.0 * np.pi * rng.integers(0, MODES, count) / MODES
    centre = RADIUS * np.stack([np.cos(angle), np.sin(angle)], 1)
    return (centre + SPREAD * rng.standard_normal((count, 2))).astype(np.float32)


def features(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """What the network sees: points (n, 2) and noise levels (n,) -> float32 (n, 2 + 2 * FREQUENCIES)."""
    angle = 0.5 * np.pi * (levels[:, None] / 1000.0) * 2.0 ** np.arange(FREQUENCIES)
    return np.concatenate([x, np.cos(angle), np.sin(angle)], 1).astype(np.float32)


def energy_distance(a: np.ndarray, b: np.ndarray) -> float:
    """2 E|A - B| - E|A - A'| - E|B - B'| of two samples (n, d), unbiased (Szekely & Rizzo 2013); may dip below 0."""

    def distances(p: np.ndarray, q: np.ndarray) -> float:
        p, q = p.astype(np.float64), q.astype(np.float64)
        squares = (p**2).sum(1)[:, None] + (q**2).sum(1) - 2.0 * p @ q.T
        return float(np.sqrt(np.maximum(squares, 0.0)).sum())

    n, m = len(a), len(b)
    within = distances(a, a) / (n * max(n - 1, 1)) + distances(b, b) / (m * max(m - 1, 1))
    return 2.0 * distances(a, b) / (n * m) - within


def make_network(rng: np.random.Generator) -> object:
    """An MLP of two hidden layers, `features` to (n, 2), with weights drawn from rng."""
    from mindspore import Tensor, nn

    layers, sizes = [], [2 + 2 * FREQUENCIES, HIDDEN, HIDDEN, 2]
    for number, (inner, outer) in enumerate(zip(sizes, sizes[1:], strict=False)):
        weight = rng.standard_normal((outer, inner)) / inner**0.5
        layers.append(nn.Dense(inner, outer, Tensor(weight.astype(np.float32)), "zeros"))
        if number < len(sizes) - 2:
            layers.append(nn.SiLU())
    return nn.SequentialCell(layers)


def make_loss(network: object) -> object:
    """Mean squared error as the trainer's step wants it."""
    from mindspore import nn

    class Loss(nn.Cell):
        """construct(points, target) -> (loss, number of rows)."""

        inputs = ("points", "target")
        terms = ()

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def construct(self, points, target):
            difference = self.network(points) - target
            return (difference * difference).mean(), (target * 0.0 + 1.0).sum()

    return Loss()


def train(name: str, settings: Settings, seed: int) -> object:
    """Train one network on one objective; data, noise, levels and first weights are those of every other objective."""
    from mindspore import ParameterTuple

    from mg.config.trainer import OptimizerConfig, ScheduleConfig
    from mg.rng import stream
    from mg.schedulers import PATHS, sample_timesteps, tau_of
    from mg.trainers.schedule import learning_rate
    from mg.trainers.step import Stepper

    path, rng = PATHS[name], stream(seed, "training")
    network = make_network(stream(seed, "weights"))
    optimizer = OptimizerConfig(lr=settings.lr)
    stepper = Stepper(make_loss(network), ParameterTuple(network.trainable_params()), optimizer, 0.0)
    for step in range(1, settings.steps + 1):
        x1 = draw_data(rng, settings.batch_size)
        x0 = rng.standard_normal(x1.shape).astype(np.float32)
        levels = sample_timesteps(rng, settings.batch_size, settings.timesteps)
        tau = tau_of(levels, 2)
        batch = {
            "points": features(path.interpolate(x1, x0, tau), levels),
            "target": path.target(x1, x0, tau).astype(np.float32),
        }
        _, norm = stepper.gradient([batch])
        lr = learning_rate(step, settings.lr, ScheduleConfig(name="cosine"), settings.steps)
        stepper.apply(norm, lr, step)
    return network


def sample(name: str, network: object, noise: np.ndarray, steps: int) -> np.ndarray:
    """Sample the objective's network from noise (n, 2)."""
    from mindspore import Tensor

    from mg.schedulers import PATHS, ddim, time_grid

    def predict(x: np.ndarray, level: float) -> np.ndarray:
        return network(Tensor(features(x, np.full(len(x), level)))).asnumpy()

    return ddim(PATHS[name], predict, noise, time_grid("linear", steps))


def measure(name: str, settings: Settings) -> dict[str, list[float]]:
    """One figure per seed: energy distance by number of sampling steps, and "seconds" of training."""
    from mg.rng import stream

    found = {key: [] for key in [*map(str, settings.sampling_steps), "seconds"]}
    for seed in range(settings.seeds):
        start = time.perf_counter()
        network = train(name, settings, seed)
        found["seconds"].append(time.perf_counter() - start)
        truth = draw_data(stream(seed, "truth"), settings.samples)
        noise = stream(seed, "noise").standard_normal(truth.shape).astype(np.float32)
        for steps in settings.sampling_steps:
            found[str(steps)].append(energy_distance(sample(name, network, noise, steps), truth))
    return found


def reference(settings: Settings) -> dict[str, float]:
    """Energy distance to the data of what sampling starts from, and of other data (in absolute value): the scale."""
    from mg.rng import stream

    noise, again = [], []
    for seed in range(settings.seeds):
        truth = draw_data(stream(seed, "truth"), settings.samples)
        noise.append(energy_distance(stream(seed, "noise").standard_normal(truth.shape), truth))
        again.append(abs(energy_distance(draw_data(stream(seed, "again"), settings.samples), truth)))
    return {"noise": float(np.mean(noise)), "floor": float(np.mean(again))}


def table(results: dict[str, dict[str, list[float]]], sampling_steps: tuple[int, ...], scale: dict[str, float]) -> str:
    """Means over the seeds as a Markdown table, energy distances times 1000."""
    heads = [f"{steps} steps" for steps in sampling_steps]
    lines = ["| energy distance x 1000 | " + " | ".join([*heads, "seconds"]) + " |", "|---" * (len(heads) + 2) + "|"]
    for name, values in results.items():
        cells = [f"{1000 * np.mean(values[str(steps)]):.2f}" for steps in sampling_steps]
        lines.append(f"| {name} | " + " | ".join([*cells, f"{np.mean(values['seconds']):.1f}"]) + " |")
    for name, value in scale.items():
        lines.append(f"| {name} | " + " | ".join([f"{1000 * value:.2f}"] * len(heads) + [""]) + " |")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> None:
    """Train and measure every objective, print and optionally write the table."""
    settings = cli.parse(Settings, argv, prog="objectives.py", description=__doc__)

    from mg import device
    from mg.files import write_json, write_text
    from mg.schedulers import PATHS

    unknown = [name for name in settings.objectives if name not in PATHS]
    if unknown:
        raise UserError(f"--objectives {unknown[0]}: choose from {', '.join(PATHS)}")
    if settings.output_path and Path(settings.output_path).suffix != ".json":
        raise UserError(f"--output_path {settings.output_path}: give a name that ends with .json")
    device.setup("CPU")
    results = {}
    for name in settings.objectives:
        results[name] = measure(name, settings)
        print(f"{name}: {np.mean(results[name]['seconds']):.1f} s of training per seed", flush=True)
    scale = reference(settings)
    text = table(results, settings.sampling_steps, scale)
    print(text, end="")
    if settings.output_path:
        write_json(settings.output_path, {"results": results, "reference": scale, "settings": asdict(settings)})
        write_text(Path(settings.output_path).with_suffix(".md"), text)


if __name__ == "__main__":
    cli.run(main)

"""What data parallelism of two processes adds to a training step of the transformer, on the cores of this machine.

The processes share the cores, so that a step of two at once takes longer even if they know nothing of each other.
Three things are therefore timed in turn: one process alone; two processes that train independently at the same time;
two that train together, each with as many rows as the one. The third divided by the second is what parallelism costs.
Printed with it: the time of the collectives of a step by themselves, the processes being there at the same time, as a
share of the step; what is left of the difference is waiting for each other. A step is what the training loop does with
a batch that is there: gradient with the sums of the loss over the processes, the gradient's own sum and norm, then
clipping, AdamW and moving average. All processes are up and compiled before the first turn and idle between their
turns; FP32 in graph mode.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from paired import at_least_one

from mg.config import cli
from mg.errors import UserError
from mg.files import write_json

PROCESSES = 2
TURNS = {"one alone": ["alone-0"], "two apart": ["alone-0", "alone-1"], "two together": ["pair-0", "pair-1"]}
"""Who works in each turn of a run."""
LOOK_SECONDS = 0.002
START_SECONDS = 600
PARTS = ("gradient", "sum and norm", "update")
LAUNCHER = Path(__file__).parents[1] / "scripts" / "launch.py"


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--width", type=int, default=256, help="hidden size, a multiple of 64, the width of a head")
    parser.add_argument("--latent", type=int, nargs=3, default=[2, 16, 16], help="frames, height, width; the last two "
                        "even: 2 x 2 of them are a token")  # fmt: skip
    parser.add_argument("--rows", type=int, default=2, help="samples of each process")
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn")
    parser.add_argument("--runs", type=int, default=7, help="turns of each kind")
    parser.add_argument("--output", help="JSON file for the figures")
    parser.add_argument("--worker", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    args = at_least_one(parser.parse_args(argv), "blocks", "width", "latent", "rows", "steps", "runs")
    if args.width % 64:
        raise UserError(f"--width {args.width}: give a multiple of 64")
    if args.latent[1] % 2 or args.latent[2] % 2:
        raise UserError(f"--latent {args.latent}: give an even height and width")
    return args


def training(args: argparse.Namespace) -> tuple[Callable[[], list[float]], Callable[[], float]]:
    """Return a training step, which gives the seconds of its parts, and one that gives those of its collectives alone.

    The latter are 0 for one process.
    """
    from mindspore import Tensor

    from mg import device
    from mg.config.parallel import ParallelConfig
    from mg.config.trainer import OptimizerConfig
    from mg.models.llama import LlamaConfig, LlamaModel
    from mg.models.llama.loss import FlowLoss
    from mg.parallel.kernels import Sum
    from mg.parallel.mesh import Mesh
    from mg.trainers.learner import Learner

    device.setup("CPU")
    mesh = Mesh.joined(ParallelConfig())
    frames, height, width = args.latent
    network = LlamaModel(LlamaConfig(
        hidden_size=args.width, intermediate_size=args.width * 11 // 4, num_hidden_layers=args.blocks,
        num_attention_heads=args.width // 64, max_length=(frames, height // 2, width // 2),
        text_widths=(("ul2", 64),),
    ))  # fmt: skip
    network.set_train(True)
    learner = Learner(network, FlowLoss(network), OptimizerConfig(clip_grad_norm=1.0), ema_decay=0.99, mesh=mesh)
    draw, rows = np.random.default_rng(mesh.rank if mesh else 0).standard_normal, args.rows
    latent = (rows, 16, *args.latent)
    batch = {
        "latent": draw(latent, np.float32), "noise": draw(latent, np.float32),
        "timestep": np.full(rows, 500, np.float32), "mask": np.ones((rows, 64), np.float32),
        "ul2": draw((rows, 64, 64), np.float32),
    }  # fmt: skip

    def step() -> list[float]:
        marks = [time.perf_counter()]
        learner.begin(learner.updates + 1)
        learner.add(batch)
        marks.append(time.perf_counter())
        learner.measure()
        marks.append(time.perf_counter())
        learner.apply(1e-4)
        marks.append(time.perf_counter())
        return [after - before for before, after in zip(marks, marks[1:], strict=False)]

    if mesh is None:
        return step, lambda: 0.0
    reduce, few = mesh.shards(learner.params).reduce, Sum(mesh.groups["batch"])
    grads = [Tensor(np.zeros(param.shape, np.float32)) for param in learner.params]
    values = Tensor(np.zeros(1 + len(learner.terms), np.float32))

    def collectives() -> float:
        mesh.total(0.0)  # all are here
        start = time.perf_counter()
        few(values).asnumpy()  # number of valid elements
        few(values).asnumpy()  # loss and terms
        reduce(*grads)[-1].asnumpy()
        return time.perf_counter() - start

    return step, collectives


def work(args: argparse.Namespace, name: str, folder: Path) -> None:
    """Be one of the processes: take turns until they end."""
    if "RANK_ID" in os.environ:
        name = f"{name}-{os.environ['RANK_ID']}"
    step, collectives = training(args)
    for _ in range(2):
        step()
        collectives()
    write_json(folder / f"ready-{name}.json", {})
    number = 0
    while (turn := _wait_for(folder / f"turn-{number}.json"))["who"]:
        if name in turn["who"]:
            parts = dict(zip(PARTS, zip(*(step() for _ in range(args.steps)), strict=True), strict=True))
            seconds = [sum(one) for one in zip(*parts.values(), strict=True)]
            shared = [collectives() for _ in range(args.steps)]
            write_json(folder / f"done-{number}-{name}.json", {**parts, "step": seconds, "collectives": shared})
        number += 1


def _wait_for(path: Path, alive: Callable[[], bool] = lambda: True, limit: float = float("inf")) -> dict:
    end = time.monotonic() + limit
    while not path.exists():
        if not alive() or time.monotonic() > end:
            raise SystemExit(f"a process of the benchmark ended, or took more than {limit:g} s, before {path.name}")
        time.sleep(LOOK_SECONDS)
    return json.loads(path.read_text())


@contextmanager
def workers(options: Sequence[str], folder: Path) -> Iterator[Callable[[], bool]]:
    """Start all processes for the length of the block; gives a function that tells whether they live."""
    script, python = str(Path(__file__)), sys.executable
    plain = {key: value for key, value in os.environ.items() if not key.startswith(("MS_", "RANK_"))}
    together = [python, str(LAUNCHER), "--nproc_per_node", str(PROCESSES), "--log_dir", str(folder / "logs"), script]
    commands = [[python, script, *options, "--worker", f"alone-{i}", str(folder)] for i in range(PROCESSES)]
    commands.append([*together, *options, "--worker", "pair", str(folder)])
    started = [subprocess.Popen(command, env=plain, stdout=subprocess.DEVNULL) for command in commands]
    try:
        yield lambda: all(process.poll() is None for process in started)
        for process in started:
            process.wait(60)
    finally:
        for process in started:
            process.terminate()  # the launcher ends its own


def measure(args: argparse.Namespace, options: Sequence[str]) -> dict[str, list[dict[str, float]]]:
    """Return what each turn of a kind took: medians of the seconds of a step, its parts and its collectives."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with workers(options, folder) as alive:
            for worker in sorted({worker for turn in TURNS.values() for worker in turn}):
                _wait_for(folder / f"ready-{worker}.json", alive, START_SECONDS)
            found: dict[str, list[dict[str, float]]] = {kind: [] for kind in TURNS}
            turns = list(TURNS.items()) * args.runs
            for number, (kind, who) in enumerate(turns):
                write_json(folder / f"turn-{number}.json", {"who": who})
                done = [_wait_for(folder / f"done-{number}-{worker}.json", alive) for worker in who]
                found[kind].append({what: statistics.median(s for one in done for s in one[what]) for what in done[0]})
            write_json(folder / f"turn-{len(turns)}.json", {"who": []})
    return found


def main(argv: list[str]) -> None:
    """Measure and print, or be one of the processes."""
    args = arguments(argv)
    if args.worker:
        work(args, args.worker[0], Path(args.worker[1]))
        return
    options = [f"--{name}={getattr(args, name)}" for name in ("blocks", "width", "rows", "steps")]
    found = measure(args, [*options, "--latent", *map(str, args.latent)])
    for i in range(args.runs):
        print("   ".join(f"{kind} {1e3 * found[kind][i]['step']:7.1f} ms" for kind in TURNS))
    for kind, turns in found.items():
        median = {what: 1e3 * statistics.median(turn[what] for turn in turns) for what in ("step", *PARTS)}
        print(f"{kind}, medians: " + ", ".join(f"{what} {value:.1f} ms" for what, value in median.items()))
    pairs = zip(found["two together"], found["two apart"], strict=True)
    cost = statistics.median(together["step"] / apart["step"] for together, apart in pairs)
    shared = statistics.median(turn["collectives"] / turn["step"] for turn in found["two together"])
    print(f"together / apart {cost:.3f}; collectives by themselves {shared:.1%} of a step")
    if args.output:
        write_json(args.output, {"turns": found, "together_by_apart": cost, "collectives_share": shared})


if __name__ == "__main__":
    cli.run(main)

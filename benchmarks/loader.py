"""Time the loader of an autoencoder's training alone, and how long the training's steps wait for it.

Alone: batches per second by number of threads, from decoded clips in memory (after a first pass, which is timed too)
and decoding anew for each clip. With the step: the share of each step that went into waiting for its batch, median
over the steps in which nothing was compiled. All of it with a training's own configuration; further options are its.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from paired import at_least_one

from mg.config import cli
from mg.config.clips import ClipSettings
from mg.config.tae_train import TaeTrainConfig

CONFIG = "configs/tae/train/tiny.yaml"


def _arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Options of scripts/train_tae.py follow, such as --data.chunks FOLDER."
    )
    parser.add_argument("-c", "--config", default=CONFIG, help=f"a training's YAML (default {CONFIG})")
    parser.add_argument("--steps", type=int, default=60, help="training steps after the first ten; 0 leaves them out")
    parser.add_argument("--batches", type=int, default=60, help="batches of the loader alone")
    parser.add_argument("--threads", type=int, nargs="+", default=[0, 1, 2, 4], help="numbers of threads to try")
    parser.add_argument("--report", help="write the figures there as JSON")
    args, rest = parser.parse_known_args(argv)
    return at_least_one(args, "batches"), rest


@dataclass(frozen=True)
class Alone:
    """Figures of the loader alone.

    Attributes:
        first_pass: seconds until every clip was used once, decoding included.
        kept: threads -> milliseconds per batch from memory.
        decoding: threads -> milliseconds per batch that decodes each of its clips.
    """

    first_pass: float
    kept: dict[int, float]
    decoding: dict[int, float]


def _seconds(source: object, start: int, batches: int, workers: int) -> float:
    """Seconds per batch."""
    from mg.dataset.prefetch import Prefetcher

    with Prefetcher(source, start, depth=max(4, 2 * workers), workers=workers) as ahead:
        next(ahead)
        began = time.perf_counter()
        for _ in range(batches):
            next(ahead)
        return (time.perf_counter() - began) / batches


def _source(config: TaeTrainConfig, data: ClipSettings) -> object:
    from mg.dataset.clips import ClipSource
    from mg.dataset.manifest import read_lists

    paths = config.mix or [config.csv_path or config.video_folder]
    return ClipSource(read_lists(paths, config.video_folder), data, weights=config.mix or {paths[0]: 1.0})


def measure_loader(config: TaeTrainConfig, batches: int, threads: Sequence[int]) -> Alone:
    """Time the loader alone; every number of threads builds other batches of one source."""
    source = _source(config, config.data)
    once = int(source.batches_per_epoch) + 1
    began = time.perf_counter()
    for index in range(once):
        source.batch(index)
    first_pass = time.perf_counter() - began
    anew = _source(config, replace(config.data, cache_gb=0.0))
    few = max(2, batches // 10)
    kept, decoding = {}, {}
    for turn, number in enumerate(threads):
        kept[number] = 1000 * _seconds(source, once + turn * batches, batches, number)
        decoding[number] = 1000 * _seconds(anew, turn * few, few, number)
    return Alone(first_pass, kept, decoding)


@dataclass(frozen=True)
class WithStep:
    """Medians over training steps.

    Attributes:
        step: seconds of a step, waiting included.
        wait: seconds of waiting for its batch.
        share: of the step that was waiting, median of the steps' own shares.
        total: waiting of all steps by the time of all.
    """

    step: float
    wait: float
    share: float
    total: float


def measure_training(config: TaeTrainConfig, steps: int, warm: int = 10) -> WithStep:
    """Train from the configuration and read what the run wrote about itself."""
    from mg.pipelines.train_tae import train_tae

    with tempfile.TemporaryDirectory() as folder:
        settings = replace(config.train, steps=warm + steps, log_every=1, validate_every=0, save_every=warm + steps)
        valid = replace(config.valid, csv_path=None)
        train_tae(replace(config, output_path=folder, train=settings, valid=valid))
        rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    # The longest of those behind the warm-up may have compiled a shape that came late.
    warm_rows = sorted(rows[warm:], key=lambda row: row["step_time"])[: max(1, int(steps * 0.98))]
    times, waits = ([row[name] for row in warm_rows] for name in ("step_time", "data_wait"))
    shares = [wait / time for wait, time in zip(waits, times, strict=True)]
    return WithStep(*map(statistics.median, (times, waits, shares)), sum(waits) / sum(times))


def main(argv: list[str]) -> None:
    """Measure both and print."""
    args, rest = _arguments(argv)
    config = cli.parse(TaeTrainConfig, ["-c", args.config, *rest])
    report: dict[str, object] = {}
    alone = measure_loader(config, args.batches, args.threads)
    size = "x".join(map(str, (config.data.batch_size, config.data.num_frames, *config.data.size)))
    print(f"loader alone, batches of {size}; first pass over the clips {alone.first_pass:.2f} s in one thread")
    for number in args.threads:
        kept, anew = alone.kept[number], alone.decoding[number]
        print(f"  {number} threads: {kept:8.2f} ms per batch from memory, {anew:9.2f} ms decoding each clip anew")
    report["loader"] = vars(alone)
    if args.steps > 0:
        found = measure_training(config, args.steps)
        report["training"] = vars(found)
        print(
            f"training with {config.workers} threads, {config.prefetch} batches ahead: step {1000 * found.step:.1f} ms"
            f", of it waiting for data {1000 * found.wait:.3f} ms; share {100 * found.share:.2f} % (median of "
            f"{args.steps} steps), {100 * found.total:.2f} % of the whole time"
        )
    if args.report:
        Path(args.report).write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    cli.run(main)

"""Two implementations timed in turn, each in a process of its own that idles while the other works."""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mg.errors import UserError


def at_least_one(options: argparse.Namespace, *names: str) -> argparse.Namespace:
    """Return the options; raises UserError if one of those named is a number below 1."""
    for name in names:
        value = getattr(options, name)
        if any(number is not None and number < 1 for number in (value if isinstance(value, list) else [value])):
            raise UserError(f"--{name} {value}: give at least 1")
    return options


@dataclass(frozen=True)
class Result:
    """Medians over the pairs: seconds of a run of ours, and its ratio to the twin's."""

    seconds: float
    ratio: float


def serve(run: Callable[[], np.ndarray | Callable[[], np.ndarray]], report: Callable[[], str] | None = None) -> None:
    """Answer every path on standard input with the seconds of one run and its processor seconds; save the output there.

    Args:
        run: returns the output, or a function that gives it where that is not part of what is timed.
        report: one line to print when all is done.
    """
    for line in sys.stdin:
        start, busy = time.perf_counter(), time.process_time()
        output = run()
        print(f"seconds {time.perf_counter() - start} {time.process_time() - busy}", flush=True)
        if line.strip():
            np.save(line.strip(), output() if callable(output) else output)
            print("saved", flush=True)
    if report is not None:
        print(f"report {report()}", flush=True)


def compare(script: str, options: Sequence[str], runs: int, label: str) -> "Result":
    """Start `script --worker mindspore` and `--worker torch`, run them in turn, print; returns the medians.

    Args:
        script: path of the benchmark; with --worker it must call `serve`.
        options: passed on to both.
        runs: counted pairs, after one warm-up pair.
        label: what was measured, for the last line.
    """
    ours, twin = _Worker(script, "mindspore", options), _Worker(script, "torch", options)
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / f"{name}.npy") for name in ("ours", "twin")]
        first, _ = ours.run(files[0])
        twin.run(files[1])
        outputs = [np.load(file) for file in files]
    difference = outputs[0] - outputs[1]
    relative = np.linalg.norm(difference) / np.linalg.norm(outputs[1])
    print(f"first call of ours, compilation included: {first:.1f} s; greatest difference of outputs "
          f"{np.abs(difference).max():.1e}, their distance {relative:.1e} of their length")  # fmt: skip
    pairs = [(ours.run(), twin.run()) for _ in range(runs)]
    ours.close()
    twin.close()
    for (mine, _), (theirs, _) in pairs:
        print(f"mindspore {mine:7.3f} s   torch {theirs:7.3f} s   ratio {mine / theirs:.2f}")
    wall, processor = ([(a[i], b[i]) for a, b in pairs] for i in range(2))
    mine, theirs, ratio = _medians(wall)
    print(f"median    {mine:7.3f} s         {theirs:7.3f} s   ratio {ratio:.2f}   {label}")
    # Processor seconds of all threads: on a busy machine they say more than the time on the wall.
    busy = _medians(processor)
    print(f"processor {busy[0]:7.3f} s         {busy[1]:7.3f} s   ratio {busy[2]:.2f}", flush=True)
    return Result(mine, ratio)


def _medians(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    return mine, theirs, statistics.median(a / b for a, b in pairs)


class _Worker:
    def __init__(self, script: str, name: str, options: Sequence[str]) -> None:
        env = {key: value for key, value in os.environ.items() if key != "ONEDNN_MAX_CPU_ISA"}
        if name == "torch":
            # The twin must be free to use every instruction set of the machine, also where it imports mg.device, which
            # caps oneDNN for MindSpore's sake unless something is said.
            env["ONEDNN_MAX_CPU_ISA"] = "DEFAULT"
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, script, *options, "--worker", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
        )  # fmt: skip

    def run(self, save: str = "") -> tuple[float, float]:
        self.process.stdin.write(f"{save}\n")
        self.process.stdin.flush()
        seconds, processor = (float(number) for number in self._answer("seconds").split()[1:])
        if save:
            self._answer("saved")
        return seconds, processor

    def _answer(self, word: str) -> str:
        for line in self.process.stdout:
            if line.startswith(word):
                return line
        raise SystemExit(f"a benchmark process ended with code {self.process.wait()}")

    def close(self) -> None:
        self.process.stdin.close()
        for line in self.process.stdout:
            if line.startswith("report "):
                print(f"{self.name}: {line.removeprefix('report ').strip()}")
        self.process.wait()

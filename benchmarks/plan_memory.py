"""Memory that tools/plan_parallel.py predicts for a training step on this CPU, beside the peak that is measured.

Each size is a process of its own: three optimizer steps of the transformer, the peak of its resident memory. That of
the process itself and of the compiled graphs, which is no matter of the sizes, is measured with as many blocks of next
to no size and subtracted.
"""

import argparse
import functools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mg.config import cli
from mg.config.plan import PlanConfig
from mg.files import write_json
from mg.models.llama.config import LlamaConfig
from mg.parallel.dims import ParallelDims
from mg.parallel.plan_memory import Memory, Shares, Weights, memory

NOTHING = {"width": 64, "inner": 64, "heads": 1, "frames": 1, "side": 2, "rows": 1}
FITTED = (
    {"blocks": 8, "width": 256, "inner": 704, "heads": 4, "frames": 1, "side": 16, "rows": 4},
    {"blocks": 8, "width": 256, "inner": 704, "heads": 4, "frames": 4, "side": 16, "rows": 1},
    {"blocks": 8, "width": 256, "inner": 2048, "heads": 4, "frames": 1, "side": 16, "rows": 4},
)
"""Sizes whose measurements the constants of mg.parallel.plan_memory come from."""
CHECKED = (
    {"blocks": 4, "width": 512, "inner": 1408, "heads": 8, "frames": 4, "side": 16, "rows": 1},
    {"blocks": 4, "width": 1024, "inner": 2816, "heads": 8, "frames": 1, "side": 16, "rows": 1},
    {"blocks": 6, "width": 384, "inner": 1024, "heads": 6, "frames": 2, "side": 16, "rows": 2},
    {"blocks": 3, "width": 768, "inner": 2048, "heads": 12, "frames": 3, "side": 12, "rows": 3},
)
"""Sizes that they do not come from."""
TEXT_TOKENS = 64
LIMIT = 0.10


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fitted", action="store_true", help="measure the sizes of the fit, too")
    parser.add_argument("--output", help="JSON file for the figures")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def network_of(size: dict) -> LlamaConfig:
    """Configuration of the transformer of a size."""
    return LlamaConfig(
        hidden_size=size["width"], intermediate_size=size["inner"], num_hidden_layers=size["blocks"],
        num_attention_heads=size["heads"], max_length=(size["frames"], size["side"], size["side"]),
        text_widths=(("ul2", 64),),
    )  # fmt: skip


def predicted(size: dict) -> Memory:
    """Memory of a step by formula."""
    config = PlanConfig(
        model="tiny", devices=1, text_tokens=TEXT_TOKENS, activations="fp32", backend="cpu", recompute=False
    )
    model, dims = network_of(size), ParallelDims()
    tokens = size["frames"] * size["side"] ** 2
    return memory(config, model, Weights.of(model), dims, Shares.of(config, tokens, dims, size["rows"]))


def measured(size: dict) -> int:
    """Peak of the resident memory of a process that trains a transformer of a size, in bytes."""
    return _measured(json.dumps(size))


@functools.cache
def _measured(size: str) -> int:
    command = [sys.executable, __file__, "--child", size]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


def compare(size: dict) -> dict:
    """Measure and predict, both as the difference to as many blocks of next to no size."""
    nothing = {**NOTHING, "blocks": size["blocks"]}
    found = measured(size) - measured(nothing)
    said = predicted(size).total - predicted(nothing).total
    return {**size, "measured_mb": found / 1e6, "predicted_mb": said / 1e6, "error": said / found - 1}


def _train(size: dict) -> None:
    from mg import device
    from mg.config.trainer import OptimizerConfig
    from mg.models.llama import LlamaModel
    from mg.models.llama.loss import FlowLoss
    from mg.trainers.learner import Learner

    device.setup("CPU")
    network = LlamaModel(network_of(size))
    network.set_train(True)
    learner = Learner(network, FlowLoss(network), OptimizerConfig())
    draw = np.random.default_rng(0).standard_normal
    rows, side = size["rows"], 2 * size["side"]
    latent = (rows, 16, size["frames"], side, side)
    batch = {
        "latent": np.float32(draw(latent)), "noise": np.float32(draw(latent)),
        "timestep": np.full(rows, 500, np.float32), "mask": np.ones((rows, TEXT_TOKENS), np.float32),
        "ul2": np.float32(draw((rows, TEXT_TOKENS, 64))),
    }  # fmt: skip
    for step in range(1, 4):
        learner.begin(step)
        learner.add(batch)
        learner.measure()
        learner.apply(1e-4)
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) * 1024)


def main(argv: list[str]) -> int:
    """Measure, compare, and return 1 if a prediction is off by more than a tenth."""
    args = _arguments(argv)
    if args.child:
        _train(json.loads(args.child))
        return 0
    rows = []
    for size in (*FITTED, *CHECKED) if args.fitted else CHECKED:
        rows.append(compare(size))
        shown = " ".join(f"{name} {value}" for name, value in size.items())
        row = rows[-1]
        print(
            f"{shown}: measured {row['measured_mb']:.0f} MB, predicted {row['predicted_mb']:.0f} MB, "
            f"{row['error']:+.1%}", flush=True,
        )  # fmt: skip
    if args.output:
        write_json(args.output, rows)
    return int(any(abs(row["error"]) > LIMIT for row in rows))


if __name__ == "__main__":
    cli.run(main)

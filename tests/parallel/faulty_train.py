"""scripts/train.py with faults of one process among several: faulty_train.py FAULTS [options of train.py].

FAULTS is JSON; the process they happen to is the second one:
    slow: seconds that it sleeps before it starts.
    bad: number of the batch whose second row, which is its own, is not finite.
    kill: number of the batch at which it is killed, as by the system when memory runs out.
    calm: number of the batch from which on every process waits a little for each.
Every process prints the names of the videos that a validation has counted.
"""

import json
import os
import runpy
import signal
import time
from functools import partial
from pathlib import Path

import mindspore  # noqa: F401 - must be loaded before decord
import numpy as np

from mg.config import cli
from mg.dataset.generation import GenerationSource
from mg.pipelines.train_watch import FlowValidator

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
PAUSE = 0.2


def faulty(plain, faults):
    """Return the method `batch` of a source with the faults in it."""
    strikes = os.environ.get("RANK_ID") == "1"

    def batch(self, index, rows=None):
        found = plain(self, index, rows)
        if index == faults.get("bad"):
            own = list(range(len(found["latent"])) if rows is None else rows)
            found["latent"][[row == 1 for row in own]] = np.nan
        if strikes and index == faults.get("kill"):
            print(f"killed at {time.time()}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if index >= faults.get("calm", index + 1):
            time.sleep(PAUSE)
        return found

    return batch


def counted(plain, tell):
    """Return the method `__call__` of a validator that tells the step and the names of the videos it measured."""

    def call(self, step):
        names, batches = [], self._batches

        def watched():
            for batch in batches():
                names.extend(batch["names"])
                yield batch

        self._batches = watched
        try:
            return plain(self, step)
        finally:
            self._batches = batches
            tell(f"validated at {step}: {' '.join(sorted(names))}")

    return call


def main(argv):
    faults = json.loads(argv[0])
    if os.environ.get("RANK_ID") == "1":
        time.sleep(faults.get("slow", 0))
    print(f"began at {time.time()}", flush=True)
    GenerationSource.batch = faulty(GenerationSource.batch, faults)
    FlowValidator.__call__ = counted(FlowValidator.__call__, partial(print, flush=True))
    return runpy.run_path(str(SCRIPT))["main"](argv[1:])


if __name__ == "__main__":
    cli.run(main)

"""Training runs of the toy that end by SIGKILL or SIGTERM at named places; as a program: all of them, one per process.

python kill_toy.py OUTPUT PLACES... trains OUTPUT/straight without a break, and OUTPUT/killed in one process after the
other: each resumes and is killed at its place, the last one trains to the end. Each process is forked from this one,
which has imported everything and computed nothing. Prints one JSON list: what was found after each of the killed.

python kill_toy.py OUTPUT once PLACE trains OUTPUT in this process, up to its place.

Places: a point of a save, such as "model": killed in the second save of the process, or later if not passed there.
"batch:N": killed while asking for the N-th batch of the process. "TERM:N": SIGTERM then. "inside:NAME": half of a file
is written.
"""

import json
import os
import signal
import sys
from pathlib import Path

from trainer_toy import ToySource, toy_trainer

import mg.device
from mg.trainers import checkpoint

STEPS = int(os.environ.get("KILL_TOY_STEPS", 44))
SETTINGS = dict(keep_last=1, keep_best=1, keep_every=10, monitor="figure", validate_every=4)


class DeadlySource(ToySource):
    def __init__(self, number, what):
        super().__init__(bad=(13, 30))
        self._left, self._signal = number, what

    def batch(self, index):
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), self._signal)
        return super().batch(index)


def deadly_hook(place):
    saves = 0

    def hook(point):
        nonlocal saves
        saves += point == "folder"
        if saves >= 2 and point == place:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def kill_inside(name):
    """Let the second file of this name be cut in the middle of writing it."""
    write, seen = checkpoint.write_weights, []

    def torn(path, arrays):
        if path.name == f"{name}.safetensors":
            seen.append(path)
        if len(seen) == 2:
            write(path, arrays)
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        write(path, arrays)

    checkpoint.write_weights = torn


def validate(step):
    return {"figure": (step - 8.0) ** 2}


def train(output, place):
    """Train in this process; `place` is where it ends, None for nowhere."""
    mg.device.setup("CPU", "pynative")  # spares a compilation per process
    kind, _, rest = (place or "").partition(":")
    number = {"batch": signal.SIGKILL, "TERM": signal.SIGTERM}.get(kind)
    source = DeadlySource(int(rest) if number else 0, number)
    if kind == "inside":
        kill_inside(rest)
    toy_trainer(output, STEPS, source, validate=validate, hook=deadly_hook(place), **SETTINGS).fit()


def forked(work, *args):
    """Call `work` in a process of its own; return its wait status."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(*args)
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def main(output, *places):
    root, found = Path(output), []
    if places[:1] == ("once",):  # in this process, for a supervisor
        return train(root, *places[1:])
    assert forked(train, root / "straight", None) == 0
    for place in places:
        before = checkpoint.newest(root / "killed")
        status = forked(train, root / "killed", place)
        newest = checkpoint.newest(root / "killed")
        found.append({
            "place": place,
            "signal": os.WTERMSIG(status),
            "from": before.step if before else 0,
            "to": newest.step if newest else 0,
            "left": sorted(path.name for path in (root / "killed").glob("step-*")),
        })
    assert forked(train, root / "killed", None) == 0
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])

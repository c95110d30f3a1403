"""Several processes that save together, played by threads, and tensors of sizes that do not divide evenly."""

import threading

import numpy as np

from mg.parallel.pieces import piece_of
from mg.trainers import sharded

SECONDS = 20
"""For one of them to wait for the others."""
AXES = {"layers.0.mlp.up_proj.weight": 0, "layers.0.mlp.down_proj.weight": 1}
"""What tensor parallelism divides of the tensors below."""


class Member:
    """One of the threads, as `mg.parallel.mesh.Mesh` is one of the processes."""

    def __init__(self, dims, rank, sums, barrier):
        self.dims, self.rank, self.leads = dims, rank, rank == 0
        self._sums, self._barrier = sums, barrier

    def total(self, *values):
        self._sums[self.rank] = values
        self._barrier.wait(SECONDS)
        found = np.sum([self._sums[rank] for rank in range(self.dims.world)], 0).tolist()
        self._barrier.wait(SECONDS)
        return found


class Share:
    """A tensor of which every member has the whole, and gives its own piece."""

    def __init__(self, array, axis=None):
        self.array, self.axis, self.shape, self.dtype = array, axis, array.shape, array.dtype

    def own(self, dims, rank):
        return piece_of(self.shape, self.axis, dims, rank).of(self.array)


def arrays(step):
    """Whole tensors by kind and name."""
    rng = np.random.default_rng(step)
    shapes = {"norm.weight": (5,), "table": (3, 7), "layers.0.mlp.up_proj.weight": (6, 5),
              "layers.0.mlp.down_proj.weight": (5, 6)}  # fmt: skip
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    moments = {f"{kind}/{name}": weights[name] * factor for kind, factor in (("exp_avg", 2), ("exp_avg_sq", 3))
               for name in shapes}  # fmt: skip
    moments["param/loss.gain"] = np.float32([step])
    weights["counts"] = np.arange(3, dtype=np.int64)
    return {"model": weights, "optimizer": moments, "ema": {"table": weights["table"] + 1}}


def shares(step):
    return {
        kind: {name: Share(array, AXES.get(name.rpartition("/")[2])) for name, array in group.items()}
        for kind, group in arrays(step).items()
    }


def save(output, step, dims, hook=lambda rank, point: None, given=None, folders=None):
    """Save as all members; return what each of them returned or raised."""
    barrier, sums, found = threading.Barrier(dims.world), {}, {}

    def work(rank):
        member = Member(dims, rank, sums, barrier)
        try:
            found[rank] = sharded.save(
                (folders or {}).get(rank, output), step, given or shares(step), {"updates": step}, member,
                hook=lambda point: hook(rank, point),
            )  # fmt: skip
        except BaseException as error:  # what a thread meets is what the test looks at
            found[rank] = error
            if not isinstance(error, Exception):
                barrier.abort()  # it is gone: the others wait for nobody

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(dims.world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(dims.world)]

"""What each collective must give, as numpy formulas over the operands of all members."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mg.parallel import collectives
from mg.parallel.groups import Group

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[Group], object]
    shape: Callable[[int], tuple[int, ...]]
    forward: Callable[[Arrays], Arrays]
    backward: Callable[[Arrays], Arrays]


def total(xs):
    return [sum(xs[1:], xs[0])] * len(xs)


def joined(axis):
    return lambda xs: [np.concatenate(xs, axis)] * len(xs)


def parts(axis):
    return lambda xs: [np.split(x, len(xs), axis)[i] for i, x in enumerate(xs)]


def scattered(axis):
    return lambda xs: parts(axis)(total(xs))


def exchanged(split, join):
    return lambda xs: [
        np.concatenate([np.split(x, len(xs), split)[i] for x in xs], join) for i in range(len(xs))
    ]


def padded(axis):
    def apply(xs):
        found = []
        for i, x in enumerate(xs):
            pieces = [np.zeros_like(x)] * len(xs)
            pieces[i] = x
            found.append(np.concatenate(pieces, axis))
        return found

    return apply


def rooted(root):
    return lambda xs: [x if i == root else np.zeros_like(x) for i, x in enumerate(total(xs))]


def cases() -> list[Case]:
    same, cut = (lambda p: (2, 3, 4)), (lambda p: (2 * p, 3, 4 * p))
    found = [
        Case("all_reduce", collectives.AllReduce, same, total, total),
        Case("sum_alike", collectives.SumAlike, same, total, lambda cs: cs),
        Case("broadcast", lambda g: collectives.Broadcast(g, 1), same, lambda xs: [xs[1]] * len(xs), rooted(1)),
        Case("all_to_all", lambda g: collectives.AllToAll(g, 2, 1), lambda p: (2, 3, 2 * p), exchanged(2, 1),
             exchanged(1, 2)),
        Case("all_to_all_back", lambda g: collectives.AllToAll(g, 0, -1), lambda p: (2 * p, 3, 2), exchanged(0, 2),
             exchanged(2, 0)),
    ]  # fmt: skip
    for axis in (0, 1, -1):
        shape = cut if axis != 1 else (lambda p: (2, 3 * p, 4))
        found += [
            Case(f"all_gather_{axis}", lambda g, a=axis: collectives.AllGather(g, a), same, joined(axis),
                 scattered(axis)),
            Case(f"gather_alike_{axis}", lambda g, a=axis: collectives.GatherAlike(g, a), same, joined(axis),
                 parts(axis)),
            Case(f"reduce_scatter_{axis}", lambda g, a=axis: collectives.ReduceScatter(g, a), shape, scattered(axis),
                 joined(axis)),
            Case(f"slice_{axis}", lambda g, a=axis: collectives.Slice(g, a), shape, parts(axis), padded(axis)),
        ]  # fmt: skip
    return found


def operands(case: Case, size: int) -> tuple[Arrays, Arrays]:
    """Operands of all members, and the gradients that arrive at their results."""
    rng = np.random.default_rng(len(case.name) + 100 * size)
    xs = [rng.standard_normal(case.shape(size)).astype(np.float32) for _ in range(size)]
    return xs, [rng.standard_normal(out.shape).astype(np.float32) for out in case.forward(xs)]

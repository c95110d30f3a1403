"""Every collective against its formula, forward and gradient, in both modes, on the world and on groups within it."""

import mindspore as ms
import numpy as np
import pytest
from collective_cases import cases, operands
from mindspore import Tensor, nn

from mg import device
from mg.errors import UserError
from mg.parallel import collectives
from mg.parallel.dims import ParallelDims
from mg.parallel.groups import Group, Groups
from mg.parallel.kernels import counted


class All(nn.Cell):
    """All collectives in one graph: one compilation for all of them."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.members = nn.CellList([case.make(group) for case in cases()])
        self.count = len(self.members)

    def construct(self, *operands):
        total, results = 0.0, ()
        for i in range(self.count):
            out = self.members[i](operands[i])
            total = total + (out * operands[self.count + i]).sum()
            results += (out,)
        return total, results


def _check(group: Group, mode: str) -> None:
    device.setup("CPU", mode)
    given = [operands(case, group.size) for case in cases()]
    xs = [Tensor(x[group.index]) for x, _ in given]
    cs = [Tensor(c[group.index]) for _, c in given]
    step = ms.value_and_grad(All(group), tuple(range(len(xs))), has_aux=True)
    (_, results), gradients = step(*xs, *cs)
    for case, (x, c), result, gradient in zip(cases(), given, results, gradients, strict=True):
        for found, expected in ((result, case.forward(x)), (gradient, case.backward(c))):
            np.testing.assert_allclose(found.asnumpy(), expected[group.index], rtol=0, atol=2e-6, err_msg=case.name)


def _check_indivisible(group: Group) -> None:
    device.setup("CPU", "pynative")
    with pytest.raises(UserError, match="axis 1 of length 5 cannot be divided among the"):
        collectives.Slice(group, 1)(ms.ops.ones((2, 5)))


def _check_traffic(group: Group) -> None:
    device.setup("CPU", "pynative")
    x = Tensor(np.ones((4, 3 * group.size), np.float32))
    with counted() as traffic:
        ms.grad(collectives.AllGather(group, 1))(x)
        collectives.AllToAll(group, 1, 0)(x)
    name, size = group.name, 4 * 3 * group.size * 4
    assert traffic.calls == {("all_gather", name): 1, ("reduce_scatter", name): 1, ("all_to_all", name): 1}
    assert traffic.bytes["all_gather", name] == traffic.bytes["all_to_all", name] == size
    assert traffic.bytes["reduce_scatter", name] == size * group.size


def of(world: int):
    meshes = {"world": (ParallelDims(data=world), "data")}
    if world == 4:
        mesh = ParallelDims(data=2, tensor=2)
        meshes |= {"neighbours": (mesh, "tensor"), "strangers": (mesh, "data")}
    found = {}
    for label, (dims, name) in meshes.items():
        for mode in ("graph", "pynative") if label != "world" or world == 2 else ("pynative",):  # compiling takes 10 s
            found[f"collectives of {label} in {mode}"] = (
                lambda rank, dims=dims, name=name, mode=mode: _check(Groups(dims, rank)[name], mode)
            )
    dims = ParallelDims(data=world)
    found["collectives refuse"] = lambda rank: _check_indivisible(Groups(dims, rank)["data"])
    found["collectives count"] = lambda rank: _check_traffic(Groups(dims, rank)["data"])
    return found

"""The backend's own collectives, played by stand-ins; and the CPU's, which are sums, under msrun."""

import mindspore as ms
import numpy as np
import pytest
from checks_collectives import of
from collective_cases import cases, operands
from mindspore import Tensor

from mg import device
from mg.parallel import kernels
from mg.parallel.groups import Group


class StandIns:
    """Kernels of one member at a time: the first round notes what every member gives, the second answers."""

    def __init__(self, size):
        self.size, self.given, self.member, self.answering, self.way = size, {}, 0, False, ""
        self.AllReduce = lambda op, group: lambda x: self.answer("AllReduce", x, self.reduce)
        self.AllGather = lambda group: lambda x: self.answer("AllGather", x, self.gather)
        self.ReduceScatter = lambda op, group: lambda x: self.answer("ReduceScatter", x, self.scatter)
        self.Broadcast = lambda root, group: lambda xs: (
            self.answer("Broadcast", xs[0], lambda given: given[root - 10]),
        )
        self.AlltoAll = self.exchange_of

    def exchange_of(self, split_count, split_dim, concat_dim, group):
        assert (split_count, split_dim, concat_dim) == (self.size, 0, 0)
        return lambda x: self.answer("AlltoAll", x, self.exchange)

    def answer(self, kind, x, formula):
        key = (kind, self.way)
        if not self.answering:
            self.given.setdefault(key, {})[self.member] = x.asnumpy()
            return Tensor(np.zeros_like(formula([x.asnumpy()] * self.size)))
        return Tensor(formula([self.given[key][i] for i in range(self.size)]))

    def reduce(self, given):
        return sum(given[1:], given[0])

    def gather(self, given):
        assert all(x.shape[0] == 1 for x in given)
        return np.concatenate(given, 0)

    def scatter(self, given):
        return self.reduce(given)[self.member : self.member + 1]

    def exchange(self, given):
        return np.stack([x[self.member] for x in given])


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
@pytest.mark.parametrize("size", [2, 3])
def test_the_backends_collectives_give_what_the_formulas_say(case, size, monkeypatch):
    device.setup("CPU", "pynative")
    stand_ins = StandIns(size)
    for name in ("AllReduce", "AllGather", "ReduceScatter", "AlltoAll", "Broadcast"):
        monkeypatch.setattr(kernels.ops, name, getattr(stand_ins, name))
    xs, cs = operands(case, size)
    ranks = tuple(range(10, 10 + size))
    found = []
    for answering in (False, True):
        stand_ins.answering = answering
        for member in range(size):
            stand_ins.member = member
            cell = case.make(Group("data", ranks, member, "some", native=True))
            stand_ins.way = "forward"
            out = cell.construct(Tensor(xs[member]))
            stand_ins.way = "backward"
            (gradient,) = cell.bprop(Tensor(xs[member]), out, Tensor(cs[member]))
            if answering:
                found.append((out.asnumpy(), gradient.asnumpy()))
    for (out, gradient), forward, backward in zip(found, case.forward(xs), case.backward(cs), strict=True):
        np.testing.assert_allclose(out, forward, atol=1e-6)
        np.testing.assert_allclose(gradient, backward, atol=1e-6)
    kinds = {kind for kind, _ in stand_ins.given}
    native = {"all_reduce": "AllReduce", "sum_alike": "AllReduce", "broadcast": "Broadcast", "all_to_all": "AlltoAll",
              "all_gather": "AllGather", "gather_alike": "AllGather", "reduce_scatter": "ReduceScatter"}  # fmt: skip
    expected = next((op for name, op in native.items() if case.name.startswith(name)), None)
    assert expected is None or expected in kinds


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_a_group_of_one_changes_nothing(case):
    if case.name == "broadcast":
        pytest.skip("its root is the second member")
    x = np.float32(np.random.default_rng(0).standard_normal(case.shape(1)))
    cell = case.make(Group("data", (0,), 0, "alone"))
    device.setup("CPU", "pynative")
    value, gradient = ms.value_and_grad(lambda y: (cell(y) * Tensor(x)).sum(), 0)(Tensor(x))
    np.testing.assert_allclose(float(value.asnumpy()), (x * x).sum(), rtol=1e-5)
    np.testing.assert_array_equal(gradient.asnumpy(), x)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "name"), [(world, name) for world in (2, 4) for name in of(world)])
def test_collectives_among_processes(world, name, launched):
    for found in launched(world, "checks_collectives"):
        assert found.get(name, found[""]) == "equal"

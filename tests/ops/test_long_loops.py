import mindspore as ms
from mindspore import Tensor, nn


class Steps(nn.Cell):
    """As many turns as a network has parameters; each is a call within the graph."""

    def construct(self, x):
        for _ in range(600):
            x = x + 1
        return x


def test_a_graph_may_loop_over_the_parameters_of_a_large_network():
    assert float(Steps()(Tensor(0.0, ms.float32)).asnumpy()) == 600

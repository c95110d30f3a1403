"""The loss of a batch whose rows are on several devices."""

import mindspore as ms
from jaxtyping import Float
from mindspore import Tensor, nn, ops

from mg.parallel.collectives import SumAlike
from mg.parallel.groups import Group


class BatchLoss(nn.Cell):
    """A loss over the rows of all devices: mean over all valid elements, on every device the same.

    Each device's loss and terms count by its share of the valid elements. The gradient is that of its own share: the
    sum over the devices is the gradient of the joint batch, wherever and whenever it is taken. A loss that is not
    finite on one device is not finite on any.

    construct(*inputs) -> (loss, number of valid elements, *terms), as the loss given.

    Args:
        loss: of the rows of one device.
        batch: the devices that have different rows.
    """

    def __init__(self, loss: nn.Cell, batch: Group) -> None:
        super().__init__(auto_prefix=False)
        self.loss = loss
        self.inputs, self.terms = tuple(loss.inputs), tuple(loss.terms)
        self.count = 1 + len(self.terms)
        self.sum_values, self.sum_weights = SumAlike(batch), SumAlike(batch)

    def construct(self, *inputs: Tensor) -> tuple[Float[Tensor, ""], ...]:
        """See the class."""
        out = self.loss(*inputs)
        own = ops.stop_gradient(ops.cast(out[1], ms.float32))
        weight = self.sum_weights(own)
        share = own / ops.maximum(weight, Tensor(1e-30, ms.float32))  # 0 where nothing is valid
        values = [ops.cast(out[0], ms.float32) * share]
        for term in out[2:]:
            values.append(ops.cast(term, ms.float32) * share)
        values = self.sum_values(ops.stack(values))
        found = (values[0], weight)
        for i in range(1, self.count):
            found += (values[i],)
        return found

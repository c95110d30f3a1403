"""Linear layer whose weights stay FP32 and follow the type of the activations."""

import numpy as np
from jaxtyping import Float
from mindspore import Parameter, Tensor, mint, nn


class Linear(nn.Cell):
    """x @ weight^T + bias over the last axis, in the type of x.

    Args:
        in_features: size of the last axis of x.
        out_features: size of the last axis of the result.
        bias: False for x @ weight^T alone.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(np.zeros((out_features, in_features), np.float32)), name="weight")
        self.bias = Parameter(Tensor(np.zeros(out_features, np.float32)), name="bias") if bias else None

    def construct(self, x: Float[Tensor, "*n i"]) -> Float[Tensor, "*n o"]:
        if self.bias is None:
            return mint.nn.functional.linear(x, self.weight.astype(x.dtype))
        return mint.nn.functional.linear(x, self.weight.astype(x.dtype), self.bias.astype(x.dtype))

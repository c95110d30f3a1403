"""Moving average of the trainable weights, in float32."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, ops


def ema_update(rate: Tensor, param: Parameter, average: Parameter) -> bool:
    """Move one average towards its parameter in place: average += rate * (param - average), rate = 1 - decay."""
    ops.assign_add(average, (param - average) * rate)
    return True


def decay_at(decay: float, updates: int) -> float:
    """Return the share of the average that update number `updates` (1 for the first) keeps: min(decay, (1+n) / (10+n)).

    Without the second term the weights of the start, which say nothing yet, weigh in for 1 / (1 - decay) updates.
    """
    return min(decay, (1 + updates) / (10 + updates))


def averages_of(params: Sequence[Parameter]) -> ParameterTuple:
    """Return one float32 copy per parameter, to be averaged from the present weights on."""
    return ParameterTuple(
        [
            Parameter(Tensor(param.asnumpy().astype(np.float32)), name=f"ema.{param.name}", requires_grad=False)
            for param in params
        ]
    )


@contextmanager
def swapped(params: Sequence[Parameter], averages: Sequence[Parameter]) -> Iterator[None]:
    """Put the averages into the parameters for the length of the block, then the same bits back, also on an error."""
    # asnumpy may share memory with the parameter: without the copy the swap would overwrite what it saved.
    kept = [param.asnumpy().copy() for param in params]
    try:
        for param, average in zip(params, averages, strict=True):
            param.set_data(Tensor(average.asnumpy().copy()))
        yield
    finally:
        for param, value in zip(params, kept, strict=True):
            param.set_data(Tensor(value))

"""The compiled pieces of one training step: gradient, accumulation, norm, update.

The host looks at loss and norm between the gradient and the update, so that a non-finite step changes nothing at all.
"""

from collections.abc import Iterable, Mapping

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from mg.config.trainer import OptimizerConfig
from mg.trainers import soap
from mg.trainers.ema import averages_of, decay_at, ema_update
from mg.trainers.optim import adamw_scalars, adamw_update, zeros_like


class GradStep(nn.Cell):
    """Loss and gradient of one micro-batch.

    construct(*inputs) -> (values, weight, *gradients): values is float32 (1 + number of terms,) = loss and terms,
    weight is float32 () = number of valid elements, the gradients are those of the mean loss.
    """

    def __init__(self, loss: nn.Cell, params: ParameterTuple) -> None:
        """Differentiate `loss` with respect to `params`."""
        super().__init__(auto_prefix=False)  # else this wrapper would rename the parameters of the caller's loss
        self.loss = loss
        self.value_and_grad = ms.value_and_grad(self.forward, None, params, has_aux=True)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return (loss, values, weight); only the first one is differentiated."""
        out = self.loss(*inputs)
        values = [ops.cast(out[0], ms.float32)]
        for term in out[2:]:
            values.append(ops.cast(term, ms.float32))
        return out[0], ops.stack(values), ops.cast(out[1], ms.float32)

    def construct(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        (_, values, weight), grads = self.value_and_grad(*inputs)
        return (values, weight, *grads)


def _blend(fraction: Tensor, old: Tensor, new: Tensor) -> Tensor:
    return old + (new - old) * fraction


class Accumulate(nn.Cell):
    """Running average over micro-batches, weighted by valid elements: in the end the gradient of the joint batch.

    construct(values, weight, new_values, new_weight, *gradients, *new_gradients) -> (values, weight, *gradients).
    A running mean instead of a sum keeps the numbers at the size of a gradient whatever the weights are.
    """

    def __init__(self, count: int) -> None:
        """Expect `count` gradients on either side."""
        super().__init__()
        self.count = count
        self.map = ops.HyperMap()

    def construct(
        self, values: Tensor, weight: Tensor, new_values: Tensor, new_weight: Tensor, *grads: Tensor
    ) -> tuple[Tensor, ...]:
        """See the class."""
        total = weight + new_weight
        fraction = new_weight / ops.maximum(total, Tensor(1e-30, ms.float32))  # 0 while nothing was valid
        old, new = grads[: self.count], grads[self.count :]
        mixed = self.map(ops.partial(_blend, fraction), old, new)
        return (_blend(fraction, values, new_values), total, *mixed)


class GradNorm(nn.Cell):
    """Global L2 norm: construct(*gradients) -> float32 ()."""

    def __init__(self) -> None:
        """Take no options."""
        super().__init__()
        self.half_square = ops.L2Loss()  # one kernel per gradient, 3 times as fast as square and sum
        self.map = ops.HyperMap()

    def construct(self, *grads: Tensor) -> Tensor:
        """See the class."""
        return ops.sqrt(2.0 * ops.addn(self.map(self.half_square, grads)))


class ApplyStep(nn.Cell):
    """Clip, AdamW or SOAP, and moving average in one graph; owns the moments and the averages.

    ema_decay: 0 keeps no averages. All trainable parameters must be float32 (raises ValueError).
    """

    def __init__(self, params: ParameterTuple, config: OptimizerConfig, ema_decay: float) -> None:
        """Start with zero moments, and averages equal to the weights."""
        super().__init__()
        wrong = [param.name for param in params if param.dtype != ms.float32]
        if wrong:
            raise ValueError(f"trainable parameters must be float32 (cast inside the network): {', '.join(wrong[:5])}")
        self.params = params
        self.exp_avg = zeros_like(params, "exp_avg")
        self.exp_avg_sq = zeros_like(params, "exp_avg_sq")
        matrices = [i for i, p in enumerate(params) if config.name == "soap" and soap.is_matrix(p.shape)]
        self._order = [*matrices, *(i for i in range(len(params)) if i not in set(matrices))]
        self.count = len(matrices)
        ordered = [[group[i] for i in self._order] for group in (params, self.exp_avg, self.exp_avg_sq)]
        self.turned = [ParameterTuple(group[: self.count]) for group in ordered]
        self.plain = [ParameterTuple(group[self.count :]) for group in ordered]
        self.bases = [
            ParameterTuple(soap.square_parameters(self.turned[0], side, name, identity))
            for name, side, identity in soap.SQUARES
        ]
        self.keeps_average = ema_decay > 0
        self.averages = averages_of(params) if self.keeps_average else ()
        self.map = ops.HyperMap()
        self._config = config
        self._ema_decay = ema_decay

    def construct(
        self,
        scale: Tensor,
        ema_rate: Tensor,
        rate: Tensor,
        beta1: Tensor,
        beta2: Tensor,
        eps: Tensor,
        decay: Tensor,
        *grads: Tensor,
    ) -> Tensor:
        """Update everything in place; `scale` multiplies the gradients, the rest is for the update functions."""
        scalars = (rate, beta1, beta2, eps, decay)
        if self.count > 0:
            update = ops.partial(soap.soap_update, scalars, scale)
            self.map(update, *self.turned, *self.bases, grads[: self.count])
        if self.count < len(grads):
            update = ops.partial(adamw_update, scalars, scale)
            self.map(update, *self.plain, grads[self.count :])
        if self.keeps_average:
            self.map(ops.partial(ema_update, ema_rate), self.params, self.averages)
        return scale

    def apply(self, grads: tuple[Tensor, ...], norm: float, lr: float, updates: int) -> None:
        """Do update number `updates` (1 for the first) with learning rate `lr` and gradients of global norm `norm`."""
        scale = clip_scale(norm, self._config.clip_grad_norm)
        scalars = adamw_scalars(self._config, lr, updates)
        ordered = [grads[i] for i in self._order]
        ema_rate = 1.0 - decay_at(self._ema_decay, updates)
        self(Tensor(np.float32(scale)), Tensor(np.float32(ema_rate)), *scalars, *ordered)
        if self.count and updates == 1:
            for squares in zip(*self.turned[1:], *self.bases, strict=True):
                soap.begin(self._config.betas, *squares)
        elif self.count and updates % soap.REFRESH_EVERY == 0:
            for squares in zip(self.turned[1], *self.bases, strict=True):
                soap.refresh(*squares)

    def state(self, names: Iterable[str]) -> dict[str, Parameter]:
        """Everything but the weights and the averages that a resumed run needs, by name; `names` are the weights'."""
        names = list(names)
        found = {f"exp_avg/{name}": moment for name, moment in zip(names, self.exp_avg, strict=True)}
        found.update((f"exp_avg_sq/{name}", moment) for name, moment in zip(names, self.exp_avg_sq, strict=True))
        for (kind, _, _), group in zip(soap.SQUARES, self.bases, strict=True):
            found.update((f"{kind}/{names[i]}", square) for i, square in zip(self._order, group, strict=False))
        return found


def clip_scale(norm: float, limit: float) -> float:
    """Return the factor that brings gradients of global norm `norm` down to `limit` (0: no limit)."""
    return limit / norm if 0 < limit < norm else 1.0


class Stepper:
    """One optimizer step after another on one loss; counts compilations.

    The loss is a cell with `inputs` and `terms` (names) whose construct returns (loss, weight, *terms).
    """

    def __init__(self, loss: nn.Cell, params: ParameterTuple, config: OptimizerConfig, ema_decay: float) -> None:
        """Train `params` with the gradient of `loss`."""
        self._names = tuple(loss.inputs)
        self._grad = GradStep(loss, params)
        self._accumulate = Accumulate(len(params))
        self._norm = GradNorm()
        self._total: tuple[Tensor, ...] | None = None
        self.update = ApplyStep(params, config, ema_decay)

    @property
    def compilations(self) -> int:
        """Number of graphs compiled so far (0 in PyNative mode): steady while the shapes stay the same."""
        return sum(len(cell.compile_cache) for cell in (self._grad, self._accumulate, self._norm, self.update))

    def clear(self) -> None:
        """Forget what was added."""
        self._total = None

    def add(self, batch: Mapping[str, np.ndarray]) -> None:
        """Take loss, terms and gradient of one micro-batch into the running average of the step."""
        missing = [name for name in self._names if name not in batch]
        if missing:
            raise ValueError(f"the loss wants {missing}, the batch has only {sorted(batch)}")
        new = self._grad(*(Tensor(batch[name]) for name in self._names))
        old = self._total
        self._total = new if old is None else self._accumulate(*old[:2], *new[:2], *old[2:], *new[2:])

    def total(self) -> tuple[np.ndarray, float, tuple[Tensor, ...]]:
        """Return (loss and terms as float32 array, global norm, gradients) of what was added since the last call."""
        if self._total is None:
            raise ValueError("a step needs at least one micro-batch")
        (values, _, *grads), self._total = self._total, None
        return values.asnumpy().copy(), float(self._norm(*grads).asnumpy()), tuple(grads)

    def gradient(
        self, micro_batches: Iterable[Mapping[str, np.ndarray]]
    ) -> tuple[np.ndarray, float, tuple[Tensor, ...]]:
        """Return (loss and terms as float32 array, global norm, gradients) over all micro-batches of a step."""
        for batch in micro_batches:
            self.add(batch)
        return self.total()

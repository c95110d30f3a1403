"""The compiled pieces of one training step: gradient, accumulation, norm, update.

The host looks at loss and norm between the gradient and the update, so that a non-finite step changes nothing at all.
Gradients stay in parameters of their own, which all these graphs share: handing hundreds of tensors from one graph to
the next takes longer than the copy.
"""

from collections.abc import Iterable, Mapping, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from mg.config.trainer import OptimizerConfig
from mg.errors import UserError
from mg.parallel.shards import Shards
from mg.trainers import soap
from mg.trainers.ema import averages_of, decay_at, ema_update
from mg.trainers.optim import (
    MOMENTS,
    Group,
    adamw_update,
    group_scalars,
    grouped,
    momentum_update,
    sgd_update,
    zeros_like,
)


class GradStep(nn.Cell):
    """Loss and gradient of one micro-batch.

    construct(*inputs) -> (values, weight): values is float32 (1 + number of terms,) = loss and terms, weight is float32
    () = number of valid elements. The gradients are those of the mean loss and are left in `grads`.

    With `averages`, values and weight of the micro-batches before come first among the inputs, and values and `grads`
    become averages over all of them by weight: in the end those of the joint batch. Running means keep the numbers at
    the size of a gradient, whatever the weights are. `grads` and values are finite when the first micro-batch comes.

    With a loss scale its value, float32 (), is the next input: the loss is multiplied by it before the backward pass,
    the gradients are divided by it after.
    """

    def __init__(
        self,
        loss: nn.Cell,
        params: ParameterTuple,
        grads: ParameterTuple,
        scaled: bool = False,
        averages: bool = False,
        reduce: nn.Cell | None = None,
    ) -> None:
        """Differentiate `loss` with respect to `params`; `scaled` for a loss scale.

        grads: set to the gradients.
        averages: see the class.
        reduce: takes the gradients and gives others for them.
        """
        super().__init__(auto_prefix=False)  # else this wrapper would rename the parameters of the caller's loss
        self.loss = loss
        self.grads = grads
        self.scaled, self.averages = scaled, averages
        self.reduce = reduce
        self.map = ops.HyperMap()
        forward = self.scaled_forward if scaled else self.forward
        self.value_and_grad = ms.value_and_grad(forward, None, params, has_aux=True)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return (loss, values, weight); only the first one is differentiated."""
        out = self.loss(*inputs)
        values = [ops.cast(out[0], ms.float32)]
        for term in out[2:]:
            values.append(ops.cast(term, ms.float32))
        return out[0], ops.stack(values), ops.cast(out[1], ms.float32)

    def scaled_forward(self, scale: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return what `forward` does, the loss times `scale`."""
        loss, values, weight = self.forward(*inputs)
        return ops.cast(loss, ms.float32) * scale, values, weight

    def construct(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        before = inputs[:2]
        if self.averages:
            inputs = inputs[2:]
        (_, values, weight), grads = self.value_and_grad(*inputs)
        if self.scaled:
            grads = self.map(ops.partial(_times, 1.0 / inputs[0]), grads)
        if self.reduce is not None:
            grads = self.reduce(*grads)
        if not self.averages:
            self.map(ops.assign, self.grads, grads)
            return values, weight
        total = before[1] + weight
        fraction = weight / ops.maximum(total, Tensor(1e-30, ms.float32))  # 0 while nothing was valid
        self.map(ops.partial(_blend_into, fraction), self.grads, grads)
        return _blend(fraction, before[0], values), total


def _times(factor: Tensor, grad: Tensor) -> Tensor:
    return grad * factor


def _blend(fraction: Tensor, old: Tensor, new: Tensor) -> Tensor:
    return old + (new - old) * fraction


def _blend_into(fraction: Tensor, old: Parameter, new: Tensor) -> bool:
    ops.assign(old, _blend(fraction, old, new))
    return True


class Clear(nn.Cell):
    """Set parameters to zero: construct() -> True."""

    def __init__(self, params: ParameterTuple) -> None:
        """Clear `params`."""
        super().__init__(auto_prefix=False)
        self.params = params
        self.map = ops.HyperMap()

    def construct(self) -> bool:
        """See the class."""
        self.map(_clear, self.params)
        return True


def _clear(param: Parameter) -> bool:
    ops.assign(param, ops.zeros_like(param))
    return True


class ReduceInto(nn.Cell):
    """Set parameters to what a cell makes of others: construct() -> True."""

    def __init__(self, source: ParameterTuple, target: ParameterTuple, reduce: nn.Cell) -> None:
        """Set `target` to reduce(*source)."""
        super().__init__(auto_prefix=False)
        self.source, self.target, self.reduce = source, target, reduce
        self.map = ops.HyperMap()

    def construct(self) -> bool:
        """See the class."""
        self.map(ops.assign, self.target, self.reduce(*self.source))
        return True


class NormOf(nn.Cell):
    """The norm of gradients that stay where they are: construct() -> float32 ()."""

    def __init__(self, grads: ParameterTuple, norm: nn.Cell) -> None:
        """Let `norm` measure `grads`."""
        super().__init__(auto_prefix=False)
        self.grads, self.norm = grads, norm

    def construct(self) -> Tensor:
        """See the class."""
        return self.norm(*self.grads)


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


class GroupStep(nn.Cell):
    """The update of one group's parameters with their gradients; owns their moments.

    construct(scale, *scalars): `scale` multiplies the gradients, the scalars are for the update function.
    """

    def __init__(self, params: ParameterTuple, grads: ParameterTuple, group: Group) -> None:
        """Start with zero moments; the group's parameters and gradients are found by its places."""
        super().__init__(auto_prefix=False)
        self.group = group
        self.kind = group.kind
        self.grads = ParameterTuple([grads[place] for place in group.places])
        own = ParameterTuple([params[place] for place in group.places])
        moments = [zeros_like(own, name) for name in MOMENTS[self.kind]]
        self.squares = []
        if self.kind == "soap":
            self.squares = [
                ParameterTuple(soap.square_parameters(own, side, name, one)) for name, side, one in soap.SQUARES
            ]
        self.tensors = [own, *moments]
        self.map = ops.HyperMap()

    def construct(self, scale: Tensor, *scalars: Tensor) -> Tensor:
        """See the class."""
        if self.kind == "soap":
            self.map(ops.partial(soap.soap_update, scalars, scale), *self.tensors, *self.squares, self.grads)
        elif self.kind == "adamw":
            self.map(ops.partial(adamw_update, scalars, scale), *self.tensors, self.grads)
        elif self.kind == "momentum":
            self.map(ops.partial(momentum_update, scalars, scale), *self.tensors, self.grads)
        else:
            self.map(ops.partial(sgd_update, scalars, scale), *self.tensors, self.grads)
        return scale

    def turn_bases(self, betas: tuple[float, float], updates: int) -> None:
        """Do what SOAP does on the host after update number `updates`; nothing for the others."""
        if self.kind != "soap":
            return
        _, first, second = self.tensors
        if updates == 1:
            for each in zip(first, second, *self.squares, strict=True):
                soap.begin(betas, *each)
        elif updates % soap.REFRESH_EVERY == 0:
            for each in zip(first, *self.squares, strict=True):
                soap.refresh(*each)

    def state(self, names: Sequence[str]) -> dict[str, Parameter]:
        """Everything but the weights that a resumed run needs, by name; `names` are those of all parameters."""
        kinds = [*MOMENTS[self.kind], *(name for name, _, _ in soap.SQUARES if self.kind == "soap")]
        return {
            f"{kind}/{names[place]}": param
            for kind, kept in zip(kinds, [*self.tensors[1:], *self.squares], strict=True)
            for place, param in zip(self.group.places, kept, strict=True)
        }


class ApplyStep(nn.Cell):
    """Clip, update and moving average of all parameters in one graph; owns gradients, moments and averages.

    The gradients are in `grads`, one per parameter, zeros at first; whoever computes them sets them.

    names: of the parameters, for the patterns in `config`; Parameter.name where none are given.
    shapes: of the whole parameters, where `params` are parts of them.
    ema_decay: 0 keeps no averages. All trainable parameters must be float32 (raises ValueError).
    """

    def __init__(
        self,
        params: ParameterTuple,
        config: OptimizerConfig,
        ema_decay: float,
        names: Sequence[str] | None = None,
        shapes: Sequence[tuple[int, ...]] | None = None,
    ) -> None:
        """Start with zero moments, and averages equal to the weights."""
        super().__init__(auto_prefix=False)
        wrong = [param.name for param in params if param.dtype != ms.float32]
        if wrong:
            raise ValueError(f"trainable parameters must be float32 (cast inside the network): {', '.join(wrong[:5])}")
        self.params = params
        shapes = shapes or [param.shape for param in params]
        self._groups = grouped(names or [param.name for param in params], shapes, config)
        self.grads = zeros_like(params, "grad")
        self.groups = nn.CellList(
            [GroupStep(params, self.grads, group) for group in self._groups], auto_prefix=False
        )
        counts = [len(group_scalars(config, group, 1.0, 1)) for group in self._groups]
        self.ends = np.cumsum([0, *counts]).tolist()  # of the groups' scalars in the arguments
        self.count = len(self._groups)
        self.keeps_average = ema_decay > 0
        self.averages = averages_of(params) if self.keeps_average else ()
        self.map = ops.HyperMap()
        self._config = config
        self._ema_decay = ema_decay

    def construct(self, scale: Tensor, ema_rate: Tensor, *scalars: Tensor) -> Tensor:
        """Update everything in place; `scalars` are those of one group after the other."""
        for i in range(self.count):
            self.groups[i](scale, *scalars[self.ends[i] : self.ends[i + 1]])
        if self.keeps_average:
            self.map(ops.partial(ema_update, ema_rate), self.params, self.averages)
        return scale

    def apply(self, norm: float, lr: float, updates: int) -> None:
        """Do update number `updates` (1 for the first) with learning rate `lr`; `norm` is that of the gradients."""
        scale = clip_scale(norm, self._config.clip_grad_norm)
        scalars = [one for group in self._groups for one in group_scalars(self._config, group, lr, updates)]
        ema_rate = 1.0 - decay_at(self._ema_decay, updates)
        self(Tensor(np.float32(scale)), Tensor(np.float32(ema_rate)), *scalars)
        for cell in self.groups:
            cell.turn_bases(self._config.betas, updates)

    def state(self, names: Iterable[str]) -> dict[str, Parameter]:
        """Everything but the weights and the averages that a resumed run needs, by name; `names` are the weights'."""
        names = list(names)
        return {name: param for cell in self.groups for name, param in cell.state(names).items()}


def clip_scale(norm: float, limit: float) -> float:
    """Return the factor that brings gradients of global norm `norm` down to `limit` (0: no limit)."""
    return limit / norm if 0 < limit < norm else 1.0


class Stepper:
    """One optimizer step after another on one loss; counts compilations.

    The loss is a cell with `inputs` and `terms` (names) whose construct returns (loss, weight, *terms). With `shards`
    it is a `mg.parallel.weighted.BatchLoss`, and what is updated are the parts that this device owns.
    """

    def __init__(
        self,
        loss: nn.Cell,
        params: ParameterTuple,
        config: OptimizerConfig,
        ema_decay: float,
        names: Sequence[str] | None = None,
        scaled: bool = False,
        accumulates: bool = False,
        shards: Shards | None = None,
    ) -> None:
        """Train `params` with the gradient of `loss`; `names` as for `ApplyStep`, `scaled` as for `GradStep`.

        accumulates: a step may have several micro-batches.
        """
        self._names, self._values = tuple(loss.inputs), 1 + len(loss.terms)
        self._shards = shards
        shapes = None if shards is None else [part.shape for part in shards.parts]
        if shards is not None and config.name == "soap" and not shards.is_whole:
            raise UserError("optimizer.name=soap needs whole weights; choose adamw, or set parallel.zero_stage to 0 "
                            "and parallel.tensor to 1")  # fmt: skip
        self.update = ApplyStep(params if shards is None else shards.owned, config, ema_decay, names, shapes)
        own, reduce, self._reduce = self.update.grads, None, None
        if shards is not None and shards.stage >= 2:
            reduce = shards.reduce
        elif shards is not None:  # gradients are summed after the last micro-batch
            own = zeros_like(params, "own_grad") if shards.divides else own
            self._reduce = ReduceInto(own, self.update.grads, shards.reduce)
        self._grad = GradStep(loss, params, own, scaled, accumulates, reduce)
        self._clear = Clear(own) if accumulates else None
        self._norm = NormOf(self.update.grads, GradNorm() if shards is None else shards.norm)
        self._scale: tuple[Tensor, ...] = ()
        self._total: tuple[Tensor, Tensor] | None = None

    @property
    def grads(self) -> ParameterTuple:
        """What `total` found the gradients to be: of what this device owns."""
        return self.update.grads

    @property
    def compilations(self) -> int:
        """Number of graphs compiled so far (0 in PyNative mode): steady while the shapes stay the same."""
        cells = [self._clear, self._grad, self._reduce, self._norm, self.update]
        cells += self._shards.cells if self._shards else ()
        return sum(len(cell.compile_cache) for cell in cells if cell is not None)

    def begin(self, loss_scale: float | None = None) -> None:
        """Begin a step: forget what was added before."""
        self._total = None
        self._scale = () if loss_scale is None else (Tensor(np.float32(loss_scale)),)

    def add(self, batch: Mapping[str, np.ndarray]) -> None:
        """Take loss, terms and gradient of one micro-batch into the running average of the step."""
        missing = [name for name in self._names if name not in batch]
        if missing:
            raise ValueError(f"the loss wants {missing}, the batch has only {sorted(batch)}")
        before = ()
        if self._clear is not None:
            if self._total is None:
                self._clear()
                self._total = (Tensor(np.zeros(self._values, np.float32)), Tensor(np.float32(0)))
            before = self._total
        elif self._total is not None:
            raise ValueError("a step of several micro-batches needs a stepper made with accumulates=True")
        self._total = self._grad(*before, *self._scale, *(Tensor(batch[name]) for name in self._names))

    def total(self) -> tuple[np.ndarray, float]:
        """Return (loss and terms as float32 array, global norm) of what was added since the last call; see `grads`."""
        if self._total is None:
            raise ValueError("a step needs at least one micro-batch")
        (values, _), self._total = self._total, None
        if self._reduce is not None:
            self._reduce()
        return values.asnumpy().copy(), float(self._norm().asnumpy())

    def apply(self, norm: float, lr: float, updates: int) -> None:
        """Do update number `updates` as `ApplyStep.apply` does, on every device alike."""
        self.update.apply(norm, lr, updates)
        self.publish()

    def publish(self) -> None:
        """Bring the network up to what the devices own now."""
        if self._shards is not None:
            self._shards.publish()

    def gradient(self, micro_batches: Iterable[Mapping[str, np.ndarray]]) -> tuple[np.ndarray, float]:
        """Return (loss and terms as float32 array, global norm) over all micro-batches of a step; see `grads`."""
        for batch in micro_batches:
            self.add(batch)
        return self.total()

"""One player in training: parameters by name, the gradient of a step, the update, and what a checkpoint keeps of it."""

from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn

from mg.config.trainer import OptimizerConfig
from mg.errors import UserError
from mg.trainers.player import Memory
from mg.trainers.select import frozen
from mg.trainers.step import Stepper

Arrays = dict[str, np.ndarray]


class Learner:
    """Trains one network on its loss; a step is `begin`, `add` for every micro-batch, `measure`, then perhaps `apply`.

    prefix: stands before the names of its figures and of its files, "" for the trainer's own network.
    others: networks of other players; their parameters are never trained here.
    ema_decay: 0 keeps no averages.
    freeze: patterns of the network's parameters that stay as they are (mg.trainers.select.frozen).
    scaled: each step begins with a loss scale.
    """

    def __init__(
        self,
        network: nn.Cell,
        loss: nn.Cell,
        optimizer: OptimizerConfig,
        *,
        prefix: str = "",
        others: Sequence[nn.Cell] = (),
        start_step: int = 1,
        memory: Memory | None = None,
        ema_decay: float = 0.0,
        freeze: Sequence[str] = (),
        scaled: bool = False,
    ) -> None:
        """Name the parameters and prepare the graphs; nothing is compiled before the first `add`."""
        self.network, self.optimizer, self.prefix, self.start_step = network, optimizer, prefix, start_step
        self.inputs, self.terms = tuple(loss.inputs), tuple(loss.terms)
        # Names by structure, not Parameter.name: the latter changes with every cell put around the network.
        self.weights: dict[str, Parameter] = dict(network.parameters_and_names())
        self.trained, self._extra = _name_trained(
            loss, self.weights, others, frozen(freeze, list(self.weights))
        )
        self.params = ParameterTuple(list(self.trained.values()))
        self.updates = 0
        """Updates applied so far."""
        self._stepper = Stepper(loss, self.params, optimizer, ema_decay, list(self.trained), scaled)
        self._memory = memory
        self._given: Arrays = {}
        self._figures: dict[str, float] = {}
        self._grads: tuple[Tensor, ...] = ()

    @property
    def compilations(self) -> int:
        """Graphs compiled so far."""
        return self._stepper.compilations

    @property
    def checkpoint_bytes(self) -> int:
        """Size of what `tensors` returns."""
        groups = (self.weights, self._moments(), self._averages())
        return 4 * sum(int(np.prod(param.shape)) for group in groups for param in group.values())  # float32

    @property
    def averages(self) -> Sequence[Parameter]:
        """Moving averages in the order of `params`, empty without them."""
        return self._stepper.update.averages

    def begin(self, step: int, loss_scale: float | None = None) -> None:
        """Prepare step `step` (1 for the first)."""
        self._step = step
        self._stepper.begin(loss_scale)
        self._given = self._memory.inputs(step) if self._memory else {}

    def add(self, batch: Mapping[str, np.ndarray]) -> None:
        """Take the gradient of one micro-batch, averaged with those before by number of valid elements."""
        self._stepper.add({**batch, **self._given})

    def measure(self) -> dict[str, float]:
        """Return "loss", the terms and "grad_norm" over all micro-batches of the step."""
        values, norm, self._grads = self._stepper.total()
        named = zip(("loss", *self.terms), values, strict=True)
        self._figures = {**{name: float(value) for name, value in named}, "grad_norm": norm}
        return self._figures

    def apply(self, lr: float) -> None:
        """Update the parameters, moments and averages with the gradient measured."""
        self.updates += 1
        self._stepper.update.apply(self._grads, self._figures["grad_norm"], lr, self.updates)
        if self._memory:
            self._memory.observe(self._step, {name: self._figures[name] for name in ("loss", *self.terms)})

    def export(self) -> Arrays:
        """Return the network's weights, averaged where averages are kept, under its own names."""
        averages = {name: value for name, value in self._averages().items() if name in self.weights}
        return {**arrays_of(self.weights), **arrays_of(averages)}

    def tensors(self) -> dict[str, Arrays]:
        """Return the arrays of a checkpoint by file name without suffix."""
        groups = {"model": self.weights, "optimizer": self._moments()}
        if self.averages:
            groups["ema"] = self._averages()
        return {f"{self.prefix}{kind}": arrays_of(group) for kind, group in groups.items()}

    def state(self) -> dict:
        """Return the rest of what a resumed run needs, as JSON values."""
        return {"updates": self.updates, "memory": self._memory.state() if self._memory else None}

    def start_from(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Begin with the weights given by name instead of the network's present ones; averages begin with them."""
        restore_arrays({name: self.weights[name] for name in arrays}, arrays, Path())
        restore_arrays(self._averages(), arrays_of(self.trained) if self.averages else {}, Path())

    def restore(self, tensors: Callable[[str], Arrays], state: Mapping, source: Path) -> None:
        """Go on from a checkpoint: `tensors` reads a file of it; raises UserError if it is of another make."""
        groups = {"model": self.weights, "optimizer": self._moments()}
        if self.averages:
            groups["ema"] = self._averages()
        for kind, group in groups.items():
            restore_arrays(group, tensors(f"{self.prefix}{kind}"), source)
        self.updates = state["updates"]
        if self._memory and state.get("memory") is not None:  # checkpoints of earlier versions have none
            self._memory.restore(state["memory"])

    def _averages(self) -> dict[str, Parameter]:
        return dict(zip(self.trained, self.averages, strict=False))  # empty without EMA

    def _moments(self) -> dict[str, Parameter]:
        named = self._stepper.update.state(self.trained)
        # Parameters of the loss itself are state of the training, not weights of the network.
        named.update((f"param/{name}", param) for name, param in self._extra.items())
        return named


def _name_trained(
    loss: nn.Cell, weights: Mapping[str, Parameter], others: Sequence[nn.Cell], still: Container[str]
) -> tuple[dict, dict]:
    """Return the trainable parameters of the loss by name, and those of them that are not the network's."""
    names = {id(param): name for name, param in weights.items()}
    foreign = {id(param) for network in others for param in network.get_parameters()} - names.keys()
    outside = {id(param): f"loss.{name}" for name, param in loss.parameters_and_names() if id(param) not in names}
    own = {(names | outside)[id(param)]: param for param in loss.trainable_params() if id(param) not in foreign}
    trained = {name: param for name, param in own.items() if name not in still}
    if own and not trained:
        raise UserError("freeze: no parameter is left to train; freeze fewer")
    if not trained:
        raise ValueError("the loss has no trainable parameters")
    return trained, {name: param for name, param in trained.items() if id(param) in outside}


def arrays_of(params: Mapping[str, Parameter]) -> Arrays:
    """Return copies on the host; bfloat16 as float32."""
    wide = {name: param.float() if param.dtype == ms.bfloat16 else param for name, param in params.items()}
    return {name: param.asnumpy().copy() for name, param in wide.items()}


def restore_arrays(params: Mapping[str, Parameter], arrays: Mapping[str, np.ndarray], source: Path) -> None:
    """Set every parameter to the array of its name; raises UserError if names or shapes differ."""
    wrong = [
        name for name in sorted(params.keys() | arrays.keys())
        if name not in params or name not in arrays or tuple(arrays[name].shape) != tuple(params[name].shape)
    ]
    if wrong:
        raise UserError(f"{source}: cannot resume, {len(wrong)} tensors do not fit the model: {', '.join(wrong[:5])}; "
                        "choose another output folder")
    for name, param in params.items():
        param.set_data(Tensor(arrays[name], dtype=param.dtype))

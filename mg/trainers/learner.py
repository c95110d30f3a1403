"""One player in training: parameters by name, the gradient of a step, the update, and what a checkpoint keeps of it."""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn

from mg.config.trainer import OptimizerConfig
from mg.errors import UserError
from mg.parallel.mesh import Mesh
from mg.parallel.shards import Part
from mg.trainers.ema import swapped
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
    mesh: the processes that train together; each takes the gradient of its own rows of the batches.
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
        mesh: Mesh | None = None,
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
        self._places = {name: place for place, name in enumerate(self.trained)}
        self.updates = 0
        """Updates applied so far."""
        self._mesh = mesh
        self._shards = mesh.shards(self.params) if mesh else None
        self._stepper = Stepper(
            mesh.loss(loss) if mesh else loss, self.params, optimizer, ema_decay, list(self.trained), scaled,
            self._shards,
        )  # fmt: skip
        self._memory = memory
        self._given: Arrays = {}
        self._figures: dict[str, float] = {}
        self._grads: tuple[Tensor, ...] = ()

    @property
    def compilations(self) -> int:
        """Graphs compiled so far."""
        return self._stepper.compilations

    @property
    def wholes(self) -> dict[str, Parameter | Part]:
        """What has the shape of each of the network's weights, by name, however the processes divide them."""
        return {name: self._mesh.divided(param) for name, param in self.weights.items()} if self._mesh else self.weights

    @property
    def checkpoint_bytes(self) -> int:
        """Size of what `tensors` returns."""
        wholes = {name: whole.shape for name, whole in self.wholes.items()}
        shapes = list(wholes.values())
        for name, param in {**self._moments(), **self._averages()}.items():
            place = self._place(name)
            shapes.append(param.shape if place is None else wholes.get(list(self.trained)[place], param.shape))
        return 4 * sum(int(np.prod(shape)) for shape in shapes)  # float32

    @property
    def averages(self) -> Sequence[Parameter]:
        """Moving averages of what is owned here of `params`, in their order, empty without them."""
        return self._stepper.update.averages

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Put the averages, where there are any, into the network for the length of the block."""
        if not self.averages:
            yield
            return
        owned = self.params if self._shards is None else self._shards.owned
        try:
            with swapped(owned, self.averages):
                self._stepper.publish()
                yield
        finally:
            self._stepper.publish()

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
        self._stepper.apply(self._grads, self._figures["grad_norm"], lr, self.updates)
        if self._memory:
            self._memory.observe(self._step, {name: self._figures[name] for name in ("loss", *self.terms)})

    def export(self) -> Arrays:
        """Return the network's weights, averaged where averages are kept, under its own names."""
        averages = {name: value for name, value in self._averages().items() if name in self.weights}
        return {**self._whole("model", self.weights), **self._whole("ema", averages)}

    def tensors(self) -> dict[str, Arrays]:
        """Return the arrays of a checkpoint by file name without suffix."""
        return {f"{self.prefix}{kind}": self._whole(kind, group) for kind, group in self._groups().items()}

    def state(self) -> dict:
        """Return the rest of what a resumed run needs, as JSON values."""
        return {"updates": self.updates, "memory": self._memory.state() if self._memory else None}

    def start_from(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Begin with the weights given by name instead of the network's present ones; averages begin with them."""
        restore_arrays({name: self.weights[name] for name in arrays}, arrays, Path(), partial(self._part, "model"))
        owned = self.params
        if self._shards is not None:
            self._shards.take()
            owned = self._shards.owned
        if self.averages:
            restore_arrays(self._averages(), arrays_of(dict(zip(self.trained, owned, strict=True))), Path())

    def restore(self, tensors: Callable[[str], Arrays], state: Mapping, source: Path) -> None:
        """Go on from a checkpoint: `tensors` reads a file of it; raises UserError if it is of another make."""
        for kind, group in self._groups().items():
            restore_arrays(group, tensors(f"{self.prefix}{kind}"), source, partial(self._part, kind))
        if self._shards is not None:
            self._shards.take()
        self.updates = state["updates"]
        if self._memory and state.get("memory") is not None:  # checkpoints of earlier versions have none
            self._memory.restore(state["memory"])

    def _groups(self) -> dict[str, dict[str, Parameter]]:
        """All tensors of a checkpoint by kind."""
        groups = {"model": self.weights, "optimizer": self._moments()}
        if self.averages:
            groups["ema"] = self._averages()
        return groups

    def _place(self, name: str) -> int | None:
        """Return the number of the trained parameter that a moment or average is of, None for other tensors."""
        kind, _, rest = name.partition("/")
        return self._places.get(name, None if kind == "param" else self._places.get(rest))

    def _whole(self, kind: str, params: Mapping[str, Parameter]) -> Arrays:
        """Return copies on the host, joined from all processes."""
        if self._mesh is None:
            return arrays_of(params)
        if kind == "model":
            return {name: self._mesh.whole(param) for name, param in params.items()}
        places = {name: self._place(name) for name in params}
        alone = arrays_of({name: param for name, param in params.items() if places[name] is None})
        return {
            name: alone[name] if name in alone else self._shards.whole(places[name], param)
            for name, param in params.items()
        }

    def _part(self, kind: str, name: str, array: np.ndarray) -> np.ndarray:
        """Cut this process' part out of a tensor of a checkpoint."""
        if self._mesh is None:
            return array
        if kind == "model":
            return self._mesh.part(self.weights[name], array) if name in self.weights else array
        place = self._place(name)
        if place is None or array.shape != self._shards.parts[place].shape:
            return array
        return self._shards.part(place, array)

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


def restore_arrays(
    params: Mapping[str, Parameter],
    arrays: Mapping[str, np.ndarray],
    source: Path,
    cut: Callable[[str, np.ndarray], np.ndarray] = lambda name, array: array,
) -> None:
    """Set every parameter to the array of its name, or what `cut` makes of it.

    Raises UserError if names or shapes differ.
    """
    arrays = {name: cut(name, array) for name, array in arrays.items()}
    wrong = [
        name for name in sorted(params.keys() | arrays.keys())
        if name not in params or name not in arrays or tuple(arrays[name].shape) != tuple(params[name].shape)
    ]
    if wrong:
        raise UserError(f"{source}: cannot resume, {len(wrong)} tensors do not fit the model: {', '.join(wrong[:5])}; "
                        "choose another output folder")
    for name, param in params.items():
        param.set_data(Tensor(arrays[name], dtype=param.dtype))

"""One player in training: parameters by name, the gradient of a step, the update, and what a checkpoint keeps of it."""

from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn

from mg.config.trainer import OptimizerConfig
from mg.errors import UserError
from mg.parallel.dims import ParallelDims
from mg.parallel.held import Held, Part, on_host
from mg.parallel.mesh import Mesh
from mg.parallel.pieces import size_of
from mg.trainers.checkpoint import Checkpoint
from mg.trainers.ema import swapped
from mg.trainers.player import Memory
from mg.trainers.select import frozen
from mg.trainers.step import Stepper
from mg.trainers.stored import StoredTensors

Arrays = dict[str, np.ndarray]


class Learner:
    """Trains one network on its loss; a step is `begin`, `add` for every micro-batch, `measure`, then perhaps `apply`.

    prefix: stands before the names of its figures and of its files, "" for the trainer's own network.
    others: networks of other players; their parameters are never trained here.
    ema_decay: 0 keeps no averages.
    freeze: patterns of the network's parameters that stay as they are (mg.trainers.select.frozen).
    scaled: each step begins with a loss scale.
    accumulates: a step may have several micro-batches.
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
        accumulates: bool = False,
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
        self._dims, self._rank = (mesh.dims, mesh.rank) if mesh else (ParallelDims(), 0)
        self._shards = mesh.shards(self.params) if mesh else None
        self._stepper = Stepper(
            mesh.loss(loss) if mesh else loss, self.params, optimizer, ema_decay, list(self.trained), scaled,
            accumulates, self._shards,
        )  # fmt: skip
        self._memory = memory
        self._given: Arrays = {}
        self._figures: dict[str, float] = {}

    @property
    def compilations(self) -> int:
        """Graphs compiled so far."""
        return self._stepper.compilations

    @property
    def wholes(self) -> dict[str, Held]:
        """What has the shape of each of the network's weights, by name, however the processes divide them."""
        return self._held("model", self.weights)

    @property
    def checkpoint_bytes(self) -> int:
        """Size of what `tensors` returns."""
        return sum(size_of(one.shape) * one.dtype.itemsize for group in self.held().values() for one in group.values())

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
        values, norm = self._stepper.total()
        named = zip(("loss", *self.terms), values, strict=True)
        self._figures = {**{name: float(value) for name, value in named}, "grad_norm": norm}
        return self._figures

    def apply(self, lr: float) -> None:
        """Update the parameters, moments and averages with the gradient measured."""
        self.updates += 1
        self._stepper.apply(self._figures["grad_norm"], lr, self.updates)
        if self._memory:
            self._memory.observe(self._step, {name: self._figures[name] for name in ("loss", *self.terms)})

    def export(self) -> Arrays:
        """Return the network's weights, averaged where averages are kept, under its own names."""
        averages = {name: value for name, value in self._averages().items() if name in self.weights}
        held = {**self._held("model", self.weights), **self._held("ema", averages)}
        return {name: self._whole(one) for name, one in held.items()}

    def tensors(self) -> dict[str, Arrays]:
        """Return the arrays of a checkpoint by file name without suffix, joined from all processes."""
        return {kind: {name: self._whole(one) for name, one in group.items()} for kind, group in self.held().items()}

    def held(self) -> dict[str, dict[str, Held]]:
        """Return what is here of the tensors of a checkpoint, as `tensors` names them."""
        return {f"{self.prefix}{kind}": self._held(kind, group) for kind, group in self._groups().items()}

    def state(self) -> dict:
        """Return the rest of what a resumed run needs, as JSON values."""
        return {"updates": self.updates, "memory": self._memory.state() if self._memory else None}

    def start_from(self, tensors: StoredTensors) -> None:
        """Begin with weights by name instead of the network's present ones; averages begin with them."""
        held = self.wholes
        for name in tensors:
            held[name].fill(partial(tensors.piece, name), self._dims, self._rank)
        owned = self.params
        if self._shards is not None:
            self._shards.take()
            owned = self._shards.owned
        for param, average in zip(owned, self.averages, strict=False):  # no averages, or one for each
            average.set_data(Tensor(on_host(param).copy()))

    def restore(self, saved: Checkpoint, state: Mapping) -> None:
        """Go on from a checkpoint; raises UserError if it is of another make."""
        for kind, group in self.held().items():
            tensors = saved.tensors(kind)
            check_fit(group, tensors.shapes, saved.folder)
            for name, one in group.items():
                one.fill(partial(tensors.piece, name), self._dims, self._rank)
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

    def _held(self, kind: str, params: Mapping[str, Parameter]) -> dict[str, Held]:
        """Tell how the processes divide tensors of a kind."""
        return {name: self._one_held(kind, name, param) for name, param in params.items()}

    def _one_held(self, kind: str, name: str, param: Parameter) -> Held:
        if self._mesh is not None and kind == "model":
            return self._mesh.held(param)
        place = self._place(name)
        if self._shards is None or self._shards.is_whole or place is None:
            return Held(param, Part(tuple(param.shape)), False)
        return self._shards.held(place, param)

    def _whole(self, one: Held) -> np.ndarray:
        """Return a copy on the host, joined from all processes."""
        return on_host(one.param).copy() if self._mesh is None else one.whole(self._mesh.groups)

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


def check_fit(held: Mapping[str, Held], shapes: Mapping[str, tuple[int, ...]], source: Path) -> None:
    """Raise UserError if the tensors of a checkpoint differ in names or shapes from what is to be set."""
    wrong = [name for name in sorted(held.keys() | shapes.keys())
             if name not in held or shapes.get(name) != held[name].shape]
    if wrong:
        raise UserError(f"{source}: cannot resume, {len(wrong)} tensors do not fit the model: {', '.join(wrong[:5])}; "
                        "choose another output folder")

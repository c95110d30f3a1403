"""The one training loop: it knows steps, batches by index and a loss, never which model it trains."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Protocol

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn

from mg.config.trainer import TrainerConfig
from mg.errors import NumericalAbort, UserError
from mg.files import writable_folder
from mg.trainers import checkpoint
from mg.trainers.ema import swapped
from mg.trainers.plateau import Plateau
from mg.trainers.runlog import RunLog
from mg.trainers.schedule import learning_rate
from mg.trainers.step import Stepper
from mg.weights import write_weights

Batch = Mapping[str, np.ndarray]
BatchFactory = Callable[[int], Iterator[Batch]]


class BatchSource(Protocol):
    """Data by number: the same index always gives the same batch, so a resume needs no state of the data."""

    def batch(self, index: int) -> Batch:
        """Return micro-batch `index` (0 and up, without end)."""


class Trainer:
    """Train one network, resume it, save it.

    network: what is saved, under the names it gives its own parameters.
    loss: a cell around the network with `inputs` and `terms` (tuples of names); construct(*inputs) returns
        (loss, weight, *terms): mean over the valid elements, their number, auxiliary scalars. Its trainable
        parameters are trained, also those outside the network.
    batches: an object with batch(index), or a function from the first index wanted to an endless iterator;
        step s (1 and up) takes the indices (s - 1) * accumulation to s * accumulation - 1.
    output_path: folder of checkpoints and logs. The newest valid checkpoint in it is resumed.
    validate: called with the step, with the averaged weights in the network where ema_decay is set; returns figures.
    fingerprint: everything a resumed run must share with the one that wrote the checkpoint (JSON values).
    hook: called with the name of each point passed while saving (for tests).
    """

    def __init__(
        self,
        *,
        network: nn.Cell,
        loss: nn.Cell,
        batches: BatchSource | BatchFactory,
        config: TrainerConfig,
        output_path: str | Path,
        validate: Callable[[int], dict[str, float]] | None = None,
        fingerprint: Mapping | None = None,
        hook: Callable[[str], None] = lambda point: None,
    ) -> None:
        """Prepare a run; nothing is compiled, read or trained before `fit`."""
        self.config = config
        self.output_path = writable_folder(output_path, "--output_path")
        self._terms = tuple(loss.terms)
        self._open = batches if not hasattr(batches, "batch") else _by_index(batches)
        self._validate = validate
        self._plateau = Plateau(config.lr_reduce_on_plateau)
        if validate is None and self._plateau.config.factor != 1:
            raise UserError("lr_reduce_on_plateau needs a validation; name a validation list, or set its factor to 1")
        self._hook = hook
        own = {"seed": config.seed, "accumulation": config.accumulation, "ema_decay": config.ema_decay}
        self._fingerprint = {**(fingerprint or {}), "trainer": own}
        # Names by structure, not Parameter.name: the latter changes with every cell put around the network.
        self._weights = dict(network.parameters_and_names())
        self._trained, self._extra = _name_trained(loss, self._weights)
        self._params = ParameterTuple(list(self._trained.values()))
        self._network = network
        self._loss = loss
        self._stepper = Stepper(loss, self._params, config.optimizer, config.ema_decay)
        self.step = 0
        """Steps done, skipped ones included."""
        self.updates = 0
        """Updates applied: steps done without the skipped ones."""
        self._bad_in_a_row = 0
        self._metrics: dict[str, float | None] = {}

    @property
    def compilations(self) -> int:
        """Graphs compiled so far by the training step: one set per batch shape, none in the steady state."""
        return self._stepper.compilations

    def fit(self) -> dict[str, object]:
        """Train up to config.steps and return the last figures, with "step" and "stopped" (by a signal).

        SIGTERM or Ctrl-C: the step is finished, a checkpoint saved, and fit returns; the same command goes on from
        there. A second signal ends the process at once. Raises NumericalAbort after too many non-finite steps in a
        row, UserError where the checkpoint found belongs to another run or the disk refuses.
        """
        resumed = self._resume()
        log = RunLog(self.output_path, self.step, self.config.steps)
        stop = _StopSignals()
        batches = self._open(self.step * self.config.accumulation)
        try:
            with stop:
                log.event("resume" if resumed else "start", step=self.step, config=asdict(self.config))
                log.say(f"{'resuming' if resumed else 'starting'} at step {self.step}/{self.config.steps}")
                self._run(log, stop, batches)
                log.event("stop", step=self.step, reason=stop.reason or "done", compilations=self.compilations)
        finally:
            log.close()
            if hasattr(batches, "close"):
                batches.close()
        return {**self._metrics, "step": self.step, "stopped": stop.reason is not None}

    def export(self, path: str | Path, metadata: Mapping[str, str] | None = None, dtype: str = "fp32") -> None:
        """Write the network's weights, averaged where ema_decay is set, under its own names (.safetensors, .ckpt)."""
        write_weights(Path(path), {**_arrays(self._weights), **self._averages(inside=True)}, metadata, dtype=dtype)

    def _run(self, log: RunLog, stop: "_StopSignals", batches: Iterator[Batch]) -> None:
        self._network.set_train(True)  # not the loss: a frozen judge inside it stays in evaluation mode
        while self.step < self.config.steps and stop.reason is None:
            self._one_step(log, batches)
            last = self.step == self.config.steps
            every = self.config.validate_every
            if self._validate is not None and every and (last or self.step % every == 0):
                self._run_validation(log)
            if last or stop.reason is not None or self.step % self.config.save_every == 0:
                self._save(log)

    def _one_step(self, log: RunLog, batches: Iterator[Batch]) -> None:
        config = self.config
        start = time.perf_counter()
        clock = _Clock(batches, config.accumulation, self._loss.inputs[0])
        values, norm, grads = self._stepper.gradient(clock)
        self.step += 1
        lr = self._plateau.rate(learning_rate(self.step, config.optimizer.lr, config.schedule, config.steps))
        bad = not (math.isfinite(values[0]) and math.isfinite(norm))
        if not bad:
            self._stepper.update.apply(grads, norm, lr, self.updates + 1)
            self.updates += 1
        seconds = time.perf_counter() - start
        row = {"loss": float(values[0])}
        row.update((name, float(value)) for name, value in zip(self._terms, values[1:], strict=True))
        row.update(lr=lr, grad_norm=norm, step_time=seconds, samples_per_s=clock.samples / seconds)
        row.update(data_wait=clock.waited, skipped=bad)
        logged = bad or self.step == 1 or self.step % config.log_every == 0
        if logged:
            log.row("metrics", self.step, row)
        log.show(self.step, row, line=logged)
        self._metrics.update(row)
        self._bad_in_a_row = self._bad_in_a_row + 1 if bad else 0
        if bad:
            self._report_bad_step(log, values, norm)

    def _report_bad_step(self, log: RunLog, values: np.ndarray, norm: float) -> None:
        named = dict(zip(("loss", *self._terms), (str(float(value)) for value in values), strict=True))
        first = (self.step - 1) * self.config.accumulation
        where = {"micro_batches": list(range(first, first + self.config.accumulation)), "updates": self.updates}
        log.row("bad_steps", self.step, {**named, "grad_norm": str(norm), **where, "in_a_row": self._bad_in_a_row})
        log.say(f"step {self.step} skipped: loss {named['loss']}, grad_norm {norm}")
        if self._bad_in_a_row > self.config.max_bad_steps:
            log.event("abort", step=self.step, reason="non-finite steps in a row", count=self._bad_in_a_row)
            raise NumericalAbort(
                f"{self._bad_in_a_row} non-finite steps in a row up to step {self.step} "
                f"(max_bad_steps={self.config.max_bad_steps}); see {self.output_path / 'bad_steps.jsonl'}"
            )

    def _run_validation(self, log: RunLog) -> None:
        averaged = self.config.ema_decay > 0
        with swapped(self._params, self._stepper.update.averages) if averaged else nullcontext():
            figures = {name: float(value) for name, value in self._validate(self.step).items()}
        self._network.set_train(True)
        log.row("validation", self.step, figures)
        log.event("validate", step=self.step)
        log.say(f"step {self.step} validation " + " ".join(f"{key} {value:.4f}" for key, value in figures.items()))
        self._metrics.update(figures)
        if self.step % self.config.validate_every == 0:  # not the extra one at the end: a longer run has none there
            self._watch(log, figures)

    def _watch(self, log: RunLog, figures: Mapping[str, float]) -> None:
        watched = self._plateau.config
        if watched.factor == 1:
            return
        if watched.monitor not in figures:
            raise UserError(
                f"lr_reduce_on_plateau.monitor={watched.monitor}: the validation has {', '.join(figures)}; name one"
            )
        if self._plateau.observe(figures[watched.monitor]):
            log.event("plateau", step=self.step, scale=self._plateau.scale)
            log.say(f"step {self.step}: {watched.monitor} on a plateau, learning rate x {self._plateau.scale:.4g}")

    def _moments(self) -> dict[str, Parameter]:
        named = self._stepper.update.state(self._trained)
        # Parameters of the loss itself are state of the training, not weights of the network.
        named.update((f"param/{name}", param) for name, param in self._extra.items())
        return named

    def _averages(self, inside: bool = False) -> dict[str, np.ndarray]:
        named = dict(zip(self._trained, self._stepper.update.averages, strict=False))  # empty without EMA
        return _arrays({name: value for name, value in named.items() if not inside or name in self._weights})

    def _save(self, log: RunLog) -> None:
        start = time.perf_counter()
        tensors = {"model": _arrays(self._weights), "optimizer": _arrays(self._moments())}
        if self.config.ema_decay:
            tensors["ema"] = self._averages()
        state = {
            "updates": self.updates,
            "bad_in_a_row": self._bad_in_a_row,
            "plateau": self._plateau.state(),
            "metrics": {key: value if math.isfinite(value) else None for key, value in self._metrics.items()},
            "fingerprint": self._fingerprint,
            "config": asdict(self.config),
        }
        log.sync()
        folder = checkpoint.save(
            self.output_path, self.step, tensors, state, keep_last=self.config.keep_last, hook=self._hook
        )
        log.event("save", step=self.step, folder=folder.name, seconds=round(time.perf_counter() - start, 3))

    def _resume(self) -> bool:
        checkpoint.remove_leftovers(self.output_path)
        found = checkpoint.newest(self.output_path)
        if found is None:
            return False
        checkpoint.check_fingerprint(found.state["fingerprint"], self._fingerprint, found.folder)
        _restore(self._weights, found.tensors("model"), found.folder)
        _restore(self._moments(), found.tensors("optimizer"), found.folder)
        if self.config.ema_decay:
            averages = dict(zip(self._trained, self._stepper.update.averages, strict=True))
            _restore(averages, found.tensors("ema"), found.folder)
        self.step = found.step
        self.updates = found.state["updates"]
        self._bad_in_a_row = found.state["bad_in_a_row"]
        if "plateau" in found.state:  # checkpoints of earlier versions have none
            self._plateau.restore(found.state["plateau"])
        # A figure that was not finite stands there as null: it has no value to go on with.
        self._metrics = {key: value for key, value in found.state["metrics"].items() if value is not None}
        return True


class _StopSignals:
    """Turns the first SIGTERM or SIGINT into a wish to stop (`reason`); the second has its usual effect."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "_StopSignals":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()


class _Clock:
    """Passes on `number` batches; adds up samples (rows of `entry`) and the seconds spent waiting for them."""

    def __init__(self, batches: Iterator[Batch], number: int, entry: str) -> None:
        self._batches = batches
        self._number = number
        self._entry = entry
        self.samples = 0
        self.waited = 0.0

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self._number):
            start = time.perf_counter()
            batch = next(self._batches, None)
            self.waited += time.perf_counter() - start
            if batch is None:
                raise ValueError("the batches ended: the iterator given to the trainer must be endless")
            self.samples += len(batch.get(self._entry, ()))
            yield batch


def _by_index(source: BatchSource) -> BatchFactory:
    return lambda start: (source.batch(index) for index in count(start))


def _name_trained(loss: nn.Cell, weights: Mapping[str, Parameter]) -> tuple[dict, dict]:
    """Return the trainable parameters of the loss by name, and those of them that are not the network's."""
    names = {id(param): name for name, param in weights.items()}
    outside = {id(param): f"loss.{name}" for name, param in loss.parameters_and_names() if id(param) not in names}
    trained = {(names | outside)[id(param)]: param for param in loss.trainable_params()}
    if not trained:
        raise ValueError("the loss has no trainable parameters")
    return trained, {name: param for name, param in trained.items() if id(param) in outside}


def _arrays(params: Mapping[str, Parameter]) -> dict[str, np.ndarray]:
    """Return copies on the host; bfloat16 as float32."""
    wide = {name: param.float() if param.dtype == ms.bfloat16 else param for name, param in params.items()}
    return {name: param.asnumpy().copy() for name, param in wide.items()}


def _restore(params: Mapping[str, Parameter], arrays: Mapping[str, np.ndarray], folder: Path) -> None:
    wrong = [
        name for name in sorted(params.keys() | arrays.keys())
        if name not in params or name not in arrays or tuple(arrays[name].shape) != tuple(params[name].shape)
    ]
    if wrong:
        raise UserError(f"{folder}: cannot resume, {len(wrong)} tensors do not fit the model: {', '.join(wrong[:5])}; "
                        "choose another output folder")
    for name, param in params.items():
        param.set_data(Tensor(arrays[name], dtype=param.dtype))

"""The one training loop: it knows steps, batches by index and a loss, never which model it trains."""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from mindspore import nn

from mg.config.trainer import TrainerConfig
from mg.errors import NumericalAbort, UserError
from mg.files import writable_folder
from mg.parallel.mesh import Mesh
from mg.trainers.checkpoint import Checkpoint, check_space
from mg.trainers.feed import Batch, BatchFactory, BatchSource, Clock, by_index
from mg.trainers.guard import Guard, Verdict
from mg.trainers.keeper import Keeper
from mg.trainers.learner import Learner
from mg.trainers.pace import Pace
from mg.trainers.plateau import Plateau
from mg.trainers.player import Memory, Player
from mg.trainers.runlog import RANKS, RunLog
from mg.trainers.schedule import learning_rate
from mg.trainers.sources import (
    OPTIONS,
    Found,
    changes,
    check_changes,
    free_changes,
    other_run,
    take_weights,
    tell_change,
)
from mg.trainers.stops import Stops
from mg.trainers.watchdog import Watchdog
from mg.weights import write_weights


class Trainer:
    """Train one network, and opponents beside it; resume, save.

    In each step the gradients of all players are taken from the same weights over the same micro-batches; if a loss or
    a gradient of one of them is not finite, none is updated.

    network: what is saved, under the names it gives its own parameters.
    loss: a cell around the network with `inputs` and `terms` (tuples of names); construct(*inputs) returns
        (loss, weight, *terms): mean over the valid elements, their number, auxiliary scalars. A method `units` may
        tell what a batch has besides samples, {"tokens": 512} for instance, to be logged per second. Its trainable
        parameters are trained, also those outside the network, but never those of an opponent's network.
    batches: an object with batch(index), or a function from the first index wanted to an endless iterator;
        step s (1 and up) takes the indices (s - 1) * accumulation to s * accumulation - 1.
    memory: numbers the loss carries from step to step.
    opponents: further networks with a loss and an optimizer each; their weights keep no averages.
    output_path: folder of checkpoints and logs. The newest valid checkpoint in it is resumed.
    validate: called with the step, with the averaged weights in the network where ema_decay is set; returns figures.
    fingerprint: everything a resumed run must share with the one that wrote the checkpoint (JSON values).
    hook: called with the name of each point passed while saving (for tests).
    mesh: the processes that train together. It has been applied to the networks. One process writes for all; the
        others keep their logs in ranks/N.
    divided: whether batches have the rows of this process alone (`mg.trainers.feed.OwnRows`); else they are those of
        all processes, and each takes its own.
    """

    def __init__(
        self,
        *,
        network: nn.Cell,
        loss: nn.Cell,
        batches: BatchSource | BatchFactory,
        config: TrainerConfig,
        output_path: str | Path,
        memory: Memory | None = None,
        opponents: Sequence[Player] = (),
        validate: Callable[[int], dict[str, float]] | None = None,
        fingerprint: Mapping | None = None,
        hook: Callable[[str], None] = lambda point: None,
        mesh: Mesh | None = None,
        divided: bool = False,
    ) -> None:
        """Prepare a run; nothing is compiled, read or trained before `fit`."""
        if config.epochs or config.samples or config.global_batch:
            raise ValueError("the length of the run is not settled: pass the settings through with_budget")
        self.config = config
        self.output_path = writable_folder(output_path, "--output_path")
        self._open = batches if not hasattr(batches, "batch") else by_index(batches)
        self._validate = validate
        self._plateau = Plateau(config.lr_reduce_on_plateau)
        if validate is None and self._plateau.config.factor != 1:
            raise UserError("lr_reduce_on_plateau needs a validation; name a validation list, or set its factor to 1")
        if validate is None and config.keep_best:
            raise UserError("keep_best needs a validation; name a validation list, or set it to 0")
        self._mesh, self._divided = mesh, divided
        self._leads = mesh is None or mesh.leads
        self._keeper = Keeper(self.output_path, config, hook, self._leads)
        self._pace = Pace()
        self._units = getattr(loss, "units", None)
        self._guard = Guard(config)
        common = {"scaled": self._guard.loss_scale is not None, "accumulates": config.accumulation > 1, "mesh": mesh}
        own = {"seed": config.seed, "accumulation": config.accumulation, "ema_decay": config.ema_decay}
        if config.freeze:
            own["freeze"] = list(config.freeze)
        if opponents:
            own["opponents"] = [player.name for player in opponents]
        self._fingerprint = {**(fingerprint or {}), "trainer": own}
        self._main = Learner(
            network, loss, config.optimizer, memory=memory, ema_decay=config.ema_decay,
            others=[player.network for player in opponents], freeze=config.freeze,
            **common,
        )
        self._learners = (self._main, *_opposing(network, opponents, common))
        _check_disjoint(self._learners)
        self.step = 0
        """Steps done, skipped ones included."""
        self._restart = False
        self._metrics: dict[str, float | None] = {}

    @property
    def compilations(self) -> int:
        """Graphs compiled so far by the training step: one set per batch shape, none in the steady state."""
        return sum(learner.compilations for learner in self._learners)

    @property
    def updates(self) -> int:
        """Updates applied: steps done without the skipped ones."""
        return self._main.updates

    def fit(self) -> dict[str, object]:
        """Train up to config.steps and return the last figures, with "step", "stopped" (early) and "restart" (wanted).

        A wish to stop (see `Stops`): the step is finished, a checkpoint saved, and fit returns; the same command goes
        on from there. A second signal ends the process at once, a hang does, too (see `Watchdog`). Raises
        NumericalAbort after too many non-finite steps in a row, UserError where the checkpoint found belongs to another
        run or the disk refuses.
        """
        # MindSpore forgets graphs with the network they were made of, and others of the same signature with them: what
        # an earlier network left goes now, not in the middle of the run, where a graph would be compiled again.
        gc.collect()
        resumed, sources = self._begin()
        if self.step < self.config.steps:
            check_space(self.output_path, sum(learner.checkpoint_bytes for learner in self._learners))
        settings = {"train": asdict(self.config), **self._fingerprint}
        rank = self._mesh.rank if self._mesh else 0
        sinks = self.config.log if self._leads else None
        log = RunLog(records_folder(self.output_path, self._mesh), self.step, self.config.steps, sinks, settings)
        stop = Stops(self.output_path, self.config.max_minutes)
        limits = self.config.step_timeout, self.config.long_timeout
        watchdog = Watchdog(self.output_path, *limits, on_hang=lambda text: log.event("hang", reason=text),
                            rank=rank)  # fmt: skip
        batches = self._open(self.step * self.config.accumulation)
        try:
            with self._keeper.copying(log), stop, watchdog:
                log.begin(resumed, self.step, asdict(self.config))
                log.event("source", step=self.step, lines=sources)
                for line in sources:
                    log.say(line)
                self._run(log, stop, watchdog, batches)
                why = stop.reason or ("done" if self.step == self.config.steps else "another process")
                log.end(why, self.step, self._pace.summary(), self.compilations)
        finally:
            if hasattr(batches, "close"):  # first: what the data have to say belongs into the log
                batches.close()
            log.close()
        if self._leads:
            stop.obeyed()
        early = self.step < self.config.steps
        return {**self._metrics, "step": self.step, "stopped": early, "restart": early and self._restart}

    def export(self, path: str | Path, metadata: Mapping[str, str] | None = None, dtype: str = "fp32") -> None:
        """Write the network's weights, averaged where ema_decay is set, under its own names (.safetensors, .ckpt)."""
        arrays = self._main.export()
        if self._leads:
            write_weights(Path(path), arrays, metadata, dtype=dtype)

    def _set_train(self) -> None:
        for learner in self._learners:
            learner.network.set_train(True)  # not the loss: a frozen judge inside it stays in evaluation mode

    def _run(self, log: RunLog, stop: Stops, watchdog: Watchdog, batches: Iterator[Batch]) -> None:
        self._set_train()
        watchdog.begin(self.step)
        stopping = self._is_to_stop(stop)
        while self.step < self.config.steps and not stopping:
            self._one_step(log, batches)
            watchdog.step(self.step)
            self._keeper.report(log)
            stopping = self._is_to_stop(stop)  # asked once: what comes later is met after the next step
            last = self.step == self.config.steps
            every = self.config.validate_every
            figures = None
            if self._validate is not None and every and (last or self.step % every == 0):
                with watchdog.long("validation"):
                    figures = self._run_validation(log)
            if stopping or self._keeper.due(self.step, figures):
                with watchdog.long("save"):
                    self._save(log, figures, last or stopping)

    def _is_to_stop(self, stop: Stops) -> bool:
        """Tell whether any of the processes wants to stop: all of them do then."""
        wishes = stop.reason is not None, stop.reason is not None and stop.wants_restart
        stopping, again = self._mesh.total(*map(float, wishes)) if self._mesh else wishes
        self._restart = bool(again)
        return bool(stopping)

    def _one_step(self, log: RunLog, batches: Iterator[Batch]) -> None:
        start = time.perf_counter()
        step = self.step + 1
        active = [learner for learner in self._learners if step >= learner.start_step]
        for learner in active:
            learner.begin(step, self._guard.loss_scale)
        parts = self._mesh.dims.size("batch") if self._mesh and self._divided else 1
        clock = Clock(batches, self.config.accumulation, self._main.inputs[0], self._units, parts)
        for batch in clock:
            mine = self._mesh.rows(batch) if self._mesh and not self._divided else batch
            for learner in active:
                learner.add(mine)
        figures = {learner.prefix: learner.measure() for learner in active}
        self.step = step
        scale = {} if self._guard.loss_scale is None else {"loss_scale": self._guard.loss_scale}
        verdict = self._guard.judge(figures)
        row: dict[str, float | bool] = {}
        for learner in active:
            lr = self._rate(learner)
            row.update((learner.prefix + name, value) for name, value in figures[learner.prefix].items())
            row[f"{learner.prefix}lr"] = lr
            if not verdict.skip:
                learner.apply(lr)
        seconds = time.perf_counter() - start
        self._pace.add(seconds, clock.samples, self.compilations, clock.counts)
        row.update(step_time=seconds, samples_per_s=clock.samples / seconds)
        row.update((f"{name}_per_s", count / seconds) for name, count in clock.counts.items())
        row.update(data_wait=clock.waited, **scale)
        row["skipped"] = verdict.skip
        logged = bool(verdict.reason) or self.step == 1 or self.step % self.config.log_every == 0
        if logged:
            log.row("metrics", self.step, row)
        log.show(self.step, row, line=logged)
        self._metrics.update(row)
        if verdict.reason:
            self._report(log, verdict, {**figures, "": {**figures[""], **scale}}, clock.ids)

    def _rate(self, learner: Learner) -> float:
        """Return the learning rate of the player's next update; skipped steps do not move its schedule."""
        possible = self.config.steps - (learner.start_step - 1)
        scheduled = learning_rate(learner.updates + 1, learner.optimizer.lr, self.config.schedule, possible)
        return self._plateau.rate(scheduled)

    def _report(
        self, log: RunLog, verdict: Verdict, figures: Mapping[str, Mapping[str, float]], ids: Sequence[str]
    ) -> None:
        named = {prefix + name: str(value) for prefix, found in figures.items() for name, value in found.items()}
        about = {"reason": verdict.reason, "where": verdict.where, "in_a_row": self._guard.bad_in_a_row}
        if verdict.skip:
            first = (self.step - 1) * self.config.accumulation
            numbers = list(range(first, first + self.config.accumulation))
            log.row("bad_steps", self.step,
                    {**named, **about, "micro_batches": numbers, "ids": list(ids), "updates": self.updates})
        else:
            log.event(verdict.reason, step=self.step, **named)
        log.tell("skipped" if verdict.skip else verdict.reason, self.step, {**named, **about})
        why = self._guard.why_abort(verdict)
        if why is not None:
            log.event("abort", step=self.step, reason=why)
            raise NumericalAbort(f"{why} up to step {self.step}; see {self.output_path / 'bad_steps.jsonl'}")

    def _run_validation(self, log: RunLog) -> dict[str, float]:
        with self._main.averaged():
            figures = {name: float(value) for name, value in self._validate(self.step).items()}
        self._set_train()
        log.row("validation", self.step, figures)
        log.event("validate", step=self.step)
        log.tell("validation", self.step, figures)
        self._metrics.update(figures)
        if self.step % self.config.validate_every == 0:  # not the extra one at the end: a longer run has none there
            self._watch(log, figures)
        return figures

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

    def _save(self, log: RunLog, figures: Mapping[str, float] | None, last: bool) -> None:
        crew = self._mesh if self.config.save_shards else None
        found = (learner.held() if crew else learner.tensors() for learner in self._learners)
        tensors = {name: group for one in found for name, group in one.items()}
        state = {
            **self._main.state(),
            "opponents": {learner.prefix: learner.state() for learner in self._learners[1:]},
            "guard": self._guard.state(),
            "plateau": self._plateau.state(),
            "metrics": {key: value if math.isfinite(value) else None for key, value in self._metrics.items()},
            "fingerprint": self._fingerprint,
            "config": asdict(self.config),
        }
        saved = self._keeper.save(log, self.step, tensors, state, figures, last, crew)
        if self._mesh is not None:  # nobody goes on before the checkpoint is there
            done = any(self._mesh.total(float(saved)))
            if done and not self._leads:
                self._keeper.follow(self.step, figures)

    def _find(self) -> Found | None:
        """Return the checkpoint to go on with: the process that leads looks for it, the others find the same."""
        if self._mesh is None:
            return self._keeper.find(self._admitted)
        found = self._keeper.find(self._admitted) if self._leads else None
        own = [-1.0, 0.0] if found is None else [float(found.checkpoint.step), float(OPTIONS.index(found.option))]
        step, option = self._mesh.total(*(own if self._leads else (0.0, 0.0)))  # the others wait here
        if not self._leads and step >= 0:
            found = self._keeper.find_same(int(step), OPTIONS[int(option)])
        differs = step >= 0 and (found is None or found.checkpoint.step != step)
        if any(self._mesh.total(float(differs))):
            raise UserError(
                f"{self.output_path}: the processes of this run do not find the same checkpoint (process 0 found step "
                f"{step:.0f}); the folder, and train.resume_from, must be on a disk that all of them share"
            )
        return found

    def _begin(self) -> tuple[bool, list[str]]:
        """Take the state or the weights to begin with; return whether the run is resumed, and lines that say whence."""
        found = self._find()
        if found is not None:
            return True, self._resume(found)
        if self.config.init_from is None:
            return False, ["weights as the network was made with"]
        with other_run(self.config.init_from, "train.init_from") as saved:
            weights, wrong = take_weights(
                self._main.wholes, saved, strict=self.config.init_strict, place=self.config.init_from
            )
            named = [tell_change(*change) for change in changes(saved, self._fingerprint, self.config)]
            self._main.start_from(weights)
        lines = [f"weights, and nothing else, from train.init_from={self.config.init_from}, step {saved.step}"]
        lines += [f"left out: {text}" for text in wrong]
        return False, lines + [f"unlike there: {text}" for text in named]

    def _admitted(self, saved: Checkpoint, place: str) -> list[str]:
        return check_changes(saved, place, self._fingerprint, self.config)

    def _resume(self, found: Found) -> list[str]:
        saved = found.checkpoint
        admitted = self._admitted(saved, str(saved.folder))
        for learner in self._learners:
            state = saved.state["opponents"][learner.prefix] if learner.prefix else saved.state
            learner.restore(saved, state)
        self._keeper.resumed(found)
        self.step = saved.step
        if "guard" in saved.state:  # checkpoints of earlier versions have none, nor the next
            self._guard.restore(saved.state["guard"])
        if "plateau" in saved.state:
            self._plateau.restore(saved.state["plateau"])
        # A figure that was not finite stands there as null: it has no value to go on with.
        self._metrics = {key: value for key, value in saved.state["metrics"].items() if value is not None}
        lines = [f"everything from {found.option}: {found.place}, step {saved.step}"]
        lines += [f"unlike there, as train.allow_changes admits: {text}" for text in admitted]
        return lines + [f"unlike there: {text}" for text in free_changes(saved, self.config)]


def records_folder(output_path: str | Path, mesh: Mesh | None) -> Path:
    """Return where a process keeps its records: the run's own folder, or ranks/N in it, if N does not lead."""
    if mesh is None or mesh.leads:
        return Path(output_path)
    return writable_folder(Path(output_path) / RANKS / str(mesh.rank), "--output_path")


def _opposing(network: nn.Cell, opponents: Sequence[Player], common: Mapping[str, bool | Mesh | None]) -> list[Learner]:
    names = [player.name for player in opponents]
    if len(set(names)) < len(names):
        raise ValueError(f"two players have the same name: {names}")
    return [
        Learner(
            player.network, player.loss, player.optimizer, prefix=f"{player.name}.", start_step=player.start_step,
            memory=player.memory, others=[network, *(other.network for other in opponents if other is not player)],
            **common,
        )
        for player in opponents
    ]


def _check_disjoint(learners: Sequence[Learner]) -> None:
    owners: dict[int, str] = {}
    for learner in learners:
        for name, param in learner.trained.items():
            before = owners.setdefault(id(param), learner.prefix + name)
            if before != learner.prefix + name:
                raise ValueError(f"two players train the same parameter: {before} is {learner.prefix + name}")

"""The checkpoints of one run: when one is due, what happens if the disk refuses it, which ones stay."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np

from mg.config.trainer import TrainerConfig
from mg.errors import UserError
from mg.files import write_text
from mg.log import get_logger
from mg.parallel.groups import is_launched
from mg.trainers import checkpoint, sharded
from mg.trainers.lock import lock_folder
from mg.trainers.mirror import Mirror
from mg.trainers.remote import RemoteFolder
from mg.trainers.retention import Retention, as_json
from mg.trainers.runlog import RunLog
from mg.trainers.sources import Check, Found, find, find_here

BEST = "BEST"


class Keeper:
    """Saves and prunes the checkpoints in `output`.

    Args:
        output: folder of the run.
        config: which checkpoints stay.
        hook: called with the name of each point passed (for tests).
        leads: False in all but one of the processes that train together: they read, but write nothing.
    """

    def __init__(
        self,
        output: Path,
        config: TrainerConfig,
        hook: Callable[[str], None] = lambda point: None,
        leads: bool = True,
    ) -> None:
        self._output, self._config, self._hook, self._leads = output, config, hook, leads
        self.retention = Retention(config, config.steps)
        self._failed = 0
        self._remote = RemoteFolder(config.remote, "train.remote") if config.remote and leads else None
        self._mirror: Mirror | None = None
        self._lock: TextIO | None = None

    def find(self, check: Check) -> Found | None:
        """Return the checkpoint to go on with, None for a new run; see `mg.trainers.sources.find`.

        From here to the end of `copying` no other process can train in the folder; those of one launch are not told
        apart and are not held off.
        """
        if not is_launched():
            self._lock = lock_folder(self._output)
        checkpoint.remove_leftovers(self._output)
        try:
            return find(self._output, self._config, self._remote, check)
        finally:
            checkpoint.remove_leftovers(self._output)  # what was fetched and then refused

    def find_same(self, step: int, option: str) -> Found | None:
        """Return what `find` found in the process that leads, None if it is not to be seen from here."""
        return find_here(self._output, self._config, step, option)

    def resumed(self, found: Found) -> None:
        """Take over what `found` knows, and finish what an earlier process left undone between a commit and its end."""
        saved = found.checkpoint
        # Checkpoints of earlier versions have no best ones; those of another run stay with that run.
        self.retention.restore(() if found.option == "resume_from" else saved.state.get("best", ()))
        if self._leads and saved.folder.parent == self._output:
            checkpoint.set_aside(self._output, beyond=saved.step)
            self._point(checkpoint.LATEST, saved.step)
            self._prune()

    @contextmanager
    def copying(self, log: RunLog) -> Iterator[None]:
        """Copy to the remote folder during the block, and wait for the rest at its end, but not after Ctrl-C."""
        if self._remote is None:
            try:
                yield
            finally:
                self._release()
            return
        timeout = self._config.long_timeout or None
        self._mirror = Mirror(self._remote, self._output, self.retention.kept)
        for step in checkpoint.committed(self._output):  # an earlier process may have had no time for them
            self._mirror.submit(step)
        try:
            yield
        except KeyboardInterrupt:
            timeout = 0.0
            raise
        finally:
            self._mirror.close(timeout)
            self.report(log)
            self._release()

    def report(self, log: RunLog) -> None:
        """Log what has been copied, or has not, since the last call."""
        for values in self._mirror.reports() if self._mirror else ():
            log.event(values.pop("event"), **values)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def due(self, step: int, figures: Mapping[str, float] | None) -> bool:
        """Tell whether a checkpoint belongs at this step; figures: of its validation, None where there was none."""
        return self.retention.due(step) or self.retention.is_best(step, self._figure(figures))

    def save(
        self,
        log: RunLog,
        step: int,
        tensors: Mapping[str, Mapping[str, np.ndarray]] | sharded.Shares,
        state: Mapping,
        figures: Mapping[str, float] | None,
        last: bool,
        crew: sharded.Crew | None = None,
    ) -> bool:
        """Commit a checkpoint, then delete those that need not stay; return whether this process has committed it.

        Args:
            log: told of the save, or of its failure.
            step: steps done.
            tensors: file name without suffix -> arrays by name.
            state: JSON values; the list of the best checkpoints is added.
            figures: of the validation of this step, None where there was none.
            last: no further save will come in this process.
            crew: processes that write together; tensors are what each has of them, and all have to call this.

        Raises:
            UserError: the disk refused this save, which is the last one or one too many in a row.
        """
        start = time.perf_counter()
        best = self.retention.with_figure(step, self._figure(figures))
        if not self._leads and crew is None:
            return False
        state = {**state, "best": as_json(best)}
        try:
            if crew is None:
                log.sync()
                folder = checkpoint.save(self._output, step, tensors, state, hook=self._hook)
            else:
                folder = sharded.save(self._output, step, tensors, state, crew, before=log.sync, hook=self._hook)
        except (OSError, UserError) as error:
            if self._leads:
                self._refused(log, step, error, last)
            else:
                get_logger().warning(f"step {step} is not saved: {error}")
            return False
        if not self._leads:
            return False
        self._failed = 0
        log.event("save", step=step, folder=folder.name, seconds=round(time.perf_counter() - start, 3))
        self.retention.best = best
        if self._mirror is not None:
            self._mirror.submit(step)
        self._prune()
        return True

    def follow(self, step: int, figures: Mapping[str, float] | None) -> None:
        """Take note of a checkpoint that the leading process has written, so that later ones are due for all alike."""
        self.retention.best = self.retention.with_figure(step, self._figure(figures))

    def _prune(self) -> None:
        if self.retention.best:
            self._point(BEST, self.retention.best[0][0])
        waiting = self._mirror.needed() if self._mirror else set()
        checkpoint.prune(self._output, lambda steps: self.retention.kept(steps) | waiting, hook=self._hook)

    def _point(self, name: str, step: int) -> None:
        try:
            write_text(self._output / name, checkpoint.step_folder(self._output, step).name + "\n")
        except UserError as error:  # people alone read it: not worth the run
            get_logger().warning(str(error))

    def _figure(self, figures: Mapping[str, float] | None) -> float | None:
        config = self._config
        if not config.keep_best or figures is None:
            return None
        if config.monitor not in figures:
            raise UserError(f"monitor={config.monitor}: the validation has {', '.join(figures) or 'nothing'}; name one")
        return figures[config.monitor]

    def _refused(self, log: RunLog, step: int, error: Exception, last: bool) -> None:
        self._failed += 1
        allowed = self._config.max_failed_saves
        log.event("save_failed", step=step, reason=str(error), in_a_row=self._failed)
        if last or self._failed >= allowed:
            why = "at the end" if last else f"{self._failed} failed saves in a row (max_failed_saves={allowed})"
            raise UserError(f"step {step}, {why}: {error}") from error
        get_logger().warning(
            f"step {step} is NOT SAVED ({self._failed} of {allowed} failures that end the run): {error}"
        )

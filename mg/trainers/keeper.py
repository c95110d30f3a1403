"""The checkpoints of one run: when one is due, what happens if the disk refuses it, which ones stay."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mg.config.trainer import TrainerConfig
from mg.errors import UserError
from mg.files import write_text
from mg.log import get_logger
from mg.trainers import checkpoint
from mg.trainers.checkpoint import Checkpoint
from mg.trainers.retention import Retention, as_json
from mg.trainers.runlog import RunLog

BEST = "BEST"


class Keeper:
    """Saves and prunes the checkpoints in `output`; hook: called with the name of each point passed (for tests)."""

    def __init__(self, output: Path, config: TrainerConfig, hook: Callable[[str], None] = lambda point: None) -> None:
        self._output, self._config, self._hook = output, config, hook
        self.retention = Retention(config, config.steps)
        self._failed = 0

    def find(self) -> Checkpoint | None:
        """Return the checkpoint to go on with, None for a new run."""
        checkpoint.remove_leftovers(self._output)
        return checkpoint.newest(self._output)

    def resumed(self, found: Checkpoint) -> None:
        """Take over what `found` knows, and finish what an earlier process left undone between a commit and its end."""
        self.retention.restore(found.state.get("best", ()))  # checkpoints of earlier versions have none
        checkpoint.set_aside(self._output, beyond=found.step)
        self._point(checkpoint.LATEST, found.step)
        self._prune()

    def due(self, step: int, figures: Mapping[str, float] | None) -> bool:
        """Tell whether a checkpoint belongs at this step; figures: of its validation, None where there was none."""
        return self.retention.due(step) or self.retention.is_best(step, self._figure(figures))

    def save(
        self,
        log: RunLog,
        step: int,
        tensors: Mapping[str, Mapping[str, np.ndarray]],
        state: Mapping,
        figures: Mapping[str, float] | None,
        last: bool,
    ) -> None:
        """Commit a checkpoint, then delete those that need not stay.

        Args:
            log: told of the save, or of its failure.
            step: steps done.
            tensors: file name without suffix -> arrays by name.
            state: JSON values; the list of the best checkpoints is added.
            figures: of the validation of this step, None where there was none.
            last: no further save will come in this process.

        Raises:
            UserError: the disk refused this save, which is the last one or one too many in a row.
        """
        start = time.perf_counter()
        best = self.retention.with_figure(step, self._figure(figures))
        log.sync()
        try:
            folder = checkpoint.save(self._output, step, tensors, {**state, "best": as_json(best)}, hook=self._hook)
        except UserError as error:
            self._refused(log, step, error, last)
            return
        self._failed = 0
        log.event("save", step=step, folder=folder.name, seconds=round(time.perf_counter() - start, 3))
        self.retention.best = best
        self._prune()

    def _prune(self) -> None:
        if self.retention.best:
            self._point(BEST, self.retention.best[0][0])
        checkpoint.prune(self._output, self.retention.kept, hook=self._hook)

    def _point(self, name: str, step: int) -> None:
        write_text(self._output / name, checkpoint.step_folder(self._output, step).name + "\n")

    def _figure(self, figures: Mapping[str, float] | None) -> float | None:
        config = self._config
        if not config.keep_best or figures is None:
            return None
        if config.monitor not in figures:
            raise UserError(f"monitor={config.monitor}: the validation has {', '.join(figures) or 'nothing'}; name one")
        return figures[config.monitor]

    def _refused(self, log: RunLog, step: int, error: UserError, last: bool) -> None:
        self._failed += 1
        allowed = self._config.max_failed_saves
        log.event("save_failed", step=step, reason=str(error), in_a_row=self._failed)
        if last or self._failed >= allowed:
            why = "at the end" if last else f"{self._failed} failed saves in a row (max_failed_saves={allowed})"
            raise UserError(f"step {step}, {why}: {error}") from error
        get_logger().warning(
            f"step {step} is NOT SAVED ({self._failed} of {allowed} failures that end the run): {error}"
        )

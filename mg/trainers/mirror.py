"""A second home for the checkpoints of a run, filled in the background while training goes on."""

import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from mg.log import get_logger
from mg.trainers.checkpoint import step_folder
from mg.trainers.remote import Outcome, RemoteFolder

ATTEMPTS = 5
"""Tries to copy one checkpoint before it is given up; the next one is tried anew."""


class Mirror:
    """Copies committed checkpoints of the folder `output` to `remote` in a thread of its own, the newest first.

    Failures are tried again with pauses of 1, 2, 4, ... times `pause` seconds, then reported; they never reach the
    training. A checkpoint that `kept` would not keep anyway is not copied.
    """

    def __init__(
        self,
        remote: RemoteFolder,
        output: Path,
        kept: Callable[[list[int]], Collection[int]],
        *,
        attempts: int = ATTEMPTS,
        pause: float = 1.0,
    ) -> None:
        self._remote, self._output, self._kept = remote, output, kept
        self._attempts, self._pause = attempts, pause
        self._condition = threading.Condition()
        self._waiting: set[int] = set()
        self._active: int | None = None
        self._closing = False
        self._hurry = threading.Event()  # set: no more pauses
        self._reports: list[dict] = []
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
        self._thread.start()

    def submit(self, step: int) -> None:
        """Let the checkpoint of a step be copied."""
        with self._condition:
            self._waiting.add(step)
            self._condition.notify()

    def needed(self) -> set[int]:
        """Return the steps whose local folders are still to be copied: they must not be deleted."""
        with self._condition:
            return self._waiting | ({self._active} - {None})

    def reports(self) -> list[dict]:
        """Return what has happened since the last call: fields of events, each with "event" and "step"."""
        with self._condition:
            done, self._reports = self._reports, []
        return done

    def close(self, timeout: float | None) -> bool:
        """Copy what is waiting, for `timeout` seconds at most if given; return whether the thread came to its end."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._hurry.set()
            left = ", ".join(map(str, sorted(self.needed())))
            get_logger().warning(f"{self._remote.url}: the checkpoints of steps {left} not copied in {timeout:g} s")
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (step := self._next()) is not None:
            start = time.monotonic()
            error = None
            for attempt in range(1, self._attempts + 1):
                with Outcome() as outcome:
                    copied = self._copy(step)
                error = outcome.error
                if error is None:
                    if copied:
                        self._report("remote_save", step, seconds=round(time.monotonic() - start, 3), attempts=attempt)
                    break
                get_logger().warning(f"{self._remote.url}: step {step} not copied, attempt {attempt}: {_say(error)}")
                if attempt < self._attempts:
                    self._hurry.wait(self._pause * 2 ** (attempt - 1))
            if error is not None:
                self._report("remote_failed", step, reason=_say(error), attempts=self._attempts)
            with self._condition:
                self._active = None

    def _next(self) -> int | None:
        """Wait for a step to copy and return it; None when all is done."""
        with self._condition:
            while not self._waiting and not self._closing:
                self._condition.wait()
            if not self._waiting:
                return None
            self._active = max(self._waiting)
            self._waiting.remove(self._active)
            return self._active

    def _copy(self, step: int) -> bool:
        """Copy and prune; return whether anything new has been copied."""
        self._remote.set_aside()
        steps = sorted({*self._remote.steps(), step})
        if step not in self._kept(steps):
            return False
        if step == steps[-1]:  # else the logs there may go further than those here, as does the checkpoint there
            self._remote.push_logs(self._output)  # first: no checkpoint is there without the logs up to it
        copied = self._remote.push(step_folder(self._output, step))
        self._remote.prune(self._kept)
        return copied

    def _report(self, event: str, step: int, **values: object) -> None:
        with self._condition:
            self._reports.append({"event": event, "step": step, **values})


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"

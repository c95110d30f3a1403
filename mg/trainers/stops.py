"""Wishes to end a run before its last step: signals, a file in the run's folder, the time that it was given.

Each is met at the end of a step, after a checkpoint. SIGTERM, SIGINT and the file STOP mean: stop, and that is all.
SIGUSR1 and the time limit mean: stop, and start me again.
"""

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

STOP_FILE = "STOP"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
TIME_LIMIT = "max_minutes"
_AGAIN = (signal.SIGUSR1.name, TIME_LIMIT)
_LOOK_SECONDS = 1.0
"""Between two looks for the file: on network disks each costs milliseconds."""


class Stops:
    """Collects wishes to stop inside a `with` block; the second signal has its usual effect: it ends the process.

    Args:
        folder: where the file STOP is looked for, at once and then about every second.
        max_minutes: time from now on after which the run shall stop; 0 is off.
        clock: seconds that only grow.
    """

    def __init__(self, folder: Path, max_minutes: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = folder / STOP_FILE
        self._clock = clock
        self._end = clock() + max_minutes * 60 if max_minutes else None
        self._next_look = clock()
        self._reason: str | None = None
        self._before: dict[int, object] = {}

    @property
    def reason(self) -> str | None:
        """The first wish: name of a signal, "STOP" or "max_minutes"; None while there is none."""
        if self._reason is None:
            now = self._clock()
            if now >= self._next_look:
                self._next_look = now + _LOOK_SECONDS
                if self._file.exists():
                    self._reason = STOP_FILE
            if self._reason is None and self._end is not None and now >= self._end:
                self._reason = TIME_LIMIT
        return self._reason

    @property
    def wants_restart(self) -> bool:
        """Whether the same command should be started again at once."""
        return self._reason in _AGAIN

    def obeyed(self) -> None:
        """Remove the file STOP if it was the reason, so that the next start is not stopped by it, too."""
        if self._reason == STOP_FILE:
            self._file.unlink(missing_ok=True)

    def __enter__(self) -> "Stops":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._reason = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

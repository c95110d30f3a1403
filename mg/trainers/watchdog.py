"""A run that hangs ends with an error that says where it hung, and a heartbeat file says how far it is.

Two timers guard each phase. A thread of Python writes the stacks of all threads and ends the process with exit code 4.
If that thread itself cannot run, because a library sits in C code and holds Python's lock, a timer of faulthandler's
own, which needs no lock, writes the stacks a little later and ends the process with exit code 1.
"""

import faulthandler
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mg.errors import EXIT_HANG
from mg.log import get_logger

BEAT_SECONDS = 10.0
"""Between two writings of the heartbeat file, at most."""


class Watchdog:
    """Watches a run inside a `with` block; call `step` after each step and wrap what takes long into `long`.

    Args:
        folder: where heartbeat-rank0.json and hang-rank0.txt are written.
        step_timeout: seconds that a step may take, the first one excepted; 0: nothing is watched, the heart beats.
        long_timeout: seconds for the first step, which compiles, and for everything inside `long`.
        on_hang: called with a sentence before the process ends, in the watching thread.
        rank: number of this process.
    """

    def __init__(
        self,
        folder: Path,
        step_timeout: float,
        long_timeout: float,
        on_hang: Callable[[str], None] = lambda text: None,
        rank: int = 0,
    ) -> None:
        self.heartbeat = folder / f"heartbeat-rank{rank}.json"
        self.stacks = folder / f"hang-rank{rank}.txt"
        self._limits = {"step": step_timeout, "long": long_timeout}
        self._on_hang = on_hang
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._file = None
        self._ended = False
        self._step, self._phase, self._limit = 0, "start", long_timeout
        self._beaten, self._time = time.monotonic(), time.time()

    def begin(self, step: int) -> None:
        """Note that the run goes on after `step`; the next step may take long."""
        self._beat(step, "first step", self._limits["long"])

    def step(self, step: int) -> None:
        """Note that `step` is done."""
        self._beat(step, "step", self._limits["step"])

    @contextmanager
    def long(self, phase: str) -> Iterator[None]:
        """Allow the time of a long phase ("save", "validation") for the block, that of a step afterwards."""
        self._beat(self._step, phase, self._limits["long"])
        yield
        self._beat(self._step, "step", self._limits["step"])

    def __enter__(self) -> "Watchdog":
        if self._limits["step"]:
            self._file = open(self.stacks, "a", encoding="utf-8")  # after those of an earlier hang
        self._beat(self._step, "start", self._limits["long"])
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._condition:
            self._ended = True
            self._condition.notify()
        self._thread.join()
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            if self.stacks.stat().st_size == 0:
                self.stacks.unlink()

    def _beat(self, step: int, phase: str, limit: float) -> None:
        with self._condition:
            self._step, self._phase, self._limit = step, phase, limit
            self._beaten, self._time = time.monotonic(), time.time()
        if self._file is not None:
            later = limit + max(1.0, 0.1 * limit)
            faulthandler.dump_traceback_later(later, exit=True, file=self._file)

    def _watch(self) -> None:
        watched = self._file is not None
        pause = min(BEAT_SECONDS, self._limits["step"] / 8) if watched else BEAT_SECONDS
        while True:
            with self._condition:
                if not self._ended:
                    self._condition.wait(pause)
                ended = self._ended
                late = watched and time.monotonic() - self._beaten >= self._limit
                said = {"step": self._step, "time": round(self._time, 3), "phase": self._phase, "pid": os.getpid()}
            self._write_heartbeat({**said, "phase": "end"} if ended else said)
            if ended:
                return
            if late:
                self._hang(said)

    def _write_heartbeat(self, said: dict) -> None:
        # Not through mg.files: nobody needs it after a power cut, and it must not wait for the disk.
        temporary = self.heartbeat.with_name(f".{self.heartbeat.name}.tmp")
        try:
            temporary.write_text(json.dumps(said) + "\n")
            os.replace(temporary, self.heartbeat)
        except OSError as error:
            get_logger().warning(f"{self.heartbeat}: not written ({error.strerror})")

    def _hang(self, said: dict) -> None:
        text = f"no end of phase '{said['phase']}' after step {said['step']} within {self._limit:g} s"
        self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n\n")
        self._file.flush()
        faulthandler.dump_traceback(self._file, all_threads=True)
        self._on_hang(text)
        get_logger().error(f"{text}: hanging; the stacks are in {self.stacks}, exit code {EXIT_HANG}")
        os._exit(EXIT_HANG)

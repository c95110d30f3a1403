"""Processes that end with the one that started them, and what they print."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_TAIL_SECONDS = 0.1


def adopt_orphans() -> None:
    """Become the parent of grandchildren whose parent ends (Linux), so that `end_descendants` finds them."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


class Process:
    """A command whose output goes to a file; it is killed when its parent dies (Linux).

    name: for messages, such as "rank 3".
    log: file that standard output and standard error are appended to.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Start it, in a session of its own: Ctrl-C in a terminal does not reach it."""
        self.name, self.log = name, log
        parent = os.getpid()

        def die_with_parent() -> None:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the line above
                os._exit(1)

        with log.open("ab") as file:
            self.start_of_log = file.tell()
            # The first function runs in the child, between fork and exec; the launcher has no other threads then.
            self._popen = subprocess.Popen(
                list(command), env=dict(environment), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent, start_new_session=True,
            )  # fmt: skip
        self.pid = self._popen.pid

    @property
    def code(self) -> int | None:
        """None while it runs, then its exit code: 128 + n after signal n, as a shell has it."""
        code = self._popen.poll()
        return 128 - code if code is not None and code < 0 else code

    def send(self, number: int) -> None:
        """Send a signal, to this process alone; nothing happens where it has ended."""
        self._popen.send_signal(number)

    def wait(self) -> None:
        """Wait for its end."""
        self._popen.wait()

    def last_lines(self, count: int) -> list[str]:
        """Return the last lines it printed."""
        with self.log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self.start_of_log, end - 500 * count))
            text = file.read().decode("utf-8", "replace")
        # A progress bar writes over its own line: what stands last is what a terminal shows.
        lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n")]
        return [line for line in lines if line.strip()][-count:] if count else []


class Follower:
    """Copies what is appended to a file to a stream, until `close`."""

    def __init__(self, path: Path, start: int, to: BinaryIO) -> None:
        """Begin at byte `start`."""
        self._path, self._start, self._to = path, start, to
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"follow {path.name}")
        self._thread.start()

    def close(self, seconds: float = 2.0) -> None:
        """Copy what is left and end; give up after some seconds, where nobody reads the stream."""
        self._closing.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        with self._path.open("rb") as file, suppress(BrokenPipeError):
            file.seek(self._start)
            last = False
            while not last:
                last = self._closing.wait(_TAIL_SECONDS)
                while data := file.read(1 << 16):
                    self._to.write(data)
                    self._to.flush()


def end_descendants(seconds: float) -> list[int]:
    """Kill all descendants of this process and wait until they are gone (Linux; elsewhere nothing happens).

    Returns:
        Process ids that are still there after `seconds`.
    """
    end = time.monotonic() + seconds
    while left := _descendants():
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        for pid in left:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        if time.monotonic() > end:
            return _descendants()
        time.sleep(0.02)
    return []


def _descendants() -> list[int]:
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat") if sys.platform == "linux" else ():
        with suppress(OSError):
            # The second field is the program's name in brackets and may hold anything.
            parent = int(status.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(status.parent.name))
    found, queue = [], [os.getpid()]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)

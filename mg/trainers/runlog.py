"""What a run writes about itself: one JSON per line, and a line or a progress bar for people.

metrics.jsonl (logged steps), validation.jsonl and bad_steps.jsonl hold each step once, also after a resume;
events.jsonl is the history of the run: start, resume, save, validate, skip, stop.
"""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from mg.files import write_text
from mg.log import get_logger

STEPWISE = ("metrics", "validation", "bad_steps")


class RunLog:
    """Logs of one run in its output folder; lines beyond `step`, where the run resumes, are dropped first."""

    def __init__(self, folder: Path, step: int, total: int) -> None:
        """Open the files to go on after `step` of `total` steps."""
        self._log = get_logger()
        self._total = total
        for name in STEPWISE:
            _drop_beyond(folder / f"{name}.jsonl", step)
        self._files = {
            name: open(folder / f"{name}.jsonl", "a", encoding="utf-8")
            for name in (*STEPWISE, "events")
        }
        self._bar = tqdm(total=total, initial=step, unit="step") if sys.stderr.isatty() else None

    def row(self, name: str, step: int, values: Mapping) -> None:
        """Append one line to a stepwise file; numbers that are not finite become null."""
        self._write(name, {"step": step, **values})

    def event(self, name: str, **values) -> None:
        """Append one line to events.jsonl, with the time in seconds since 1970."""
        self._write("events", {"event": name, "time": round(time.time(), 3), **values})

    def show(self, step: int, values: Mapping, line: bool) -> None:
        """Tell people about a step: on a terminal the progress bar, else one line if `line` is set."""
        text = " ".join(f"{key} {_short(value)}" for key, value in values.items())
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(text, refresh=False)
        elif line:
            self._log.info(f"step {step}/{self._total} {text}")

    def say(self, text: str) -> None:
        """Print one line without tearing the progress bar."""
        if self._bar is not None:
            self._bar.clear()
        self._log.info(text)

    def sync(self) -> None:
        """Force everything to the disk (before a checkpoint that says how far the logs go)."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files and the progress bar."""
        for file in self._files.values():
            file.close()
        if self._bar is not None:
            self._bar.close()

    def _write(self, name: str, values: Mapping) -> None:
        file = self._files[name]
        file.write(json.dumps({key: _plain(value) for key, value in values.items()}, allow_nan=False) + "\n")
        file.flush()


def _plain(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _drop_beyond(path: Path, step: int) -> None:
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    kept = "".join(line for line in text.splitlines(keepends=True) if _step_of(line) <= step)
    if kept != text:
        write_text(path, kept)


def _step_of(line: str) -> float:
    """Return the step of one line, infinity for a line torn off when the machine stopped."""
    if not line.endswith("\n"):
        return math.inf
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf

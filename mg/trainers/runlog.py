"""What a run writes about itself: one JSON per line, and a line or a progress bar for people.

metrics.jsonl (logged steps), validation.jsonl and bad_steps.jsonl hold each step once, also after a resume;
events.jsonl is the history of the run: start, resume, save, validate, skip, stop; run.log has the lines for people.
"""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mg.config.logs import LogConfig
from mg.files import write_text
from mg.log import get_logger, setup_logging
from mg.trainers.about import about
from mg.trainers.sinks import Sinks

STEPWISE = ("metrics", "validation", "bad_steps")
LINES = "run.log"
RANKS = "ranks"
"""Folder in which each process that does not lead has one of its own, called by its rank."""
_SINKS = {"metrics": "train", "validation": "validation"}  # file: name in the sinks, and of its lines


class RunLog:
    """Logs of one run in its output folder; lines beyond `step`, where the run resumes, are dropped first.

    Args:
        folder: the run's output folder.
        step: the run goes on after this step, 0 for a new one.
        total: its number of steps.
        config: further places for the figures; each gets every step once, also after a resume.
        settings: configuration of the run for those places (JSON values).

    Raises:
        UserError: a package that is asked for is missing, or the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        step: int,
        total: int,
        config: LogConfig | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._log = get_logger()
        self._total = total
        written = {sink: _last_step(folder / f"{name}.jsonl") for name, sink in _SINKS.items()}
        # First of all: what raises here leaves the logs as they were.
        self._sinks = Sinks(config or LogConfig(), folder, step, written, settings or {})
        for name in STEPWISE:
            _drop_beyond(folder / f"{name}.jsonl", step)
        _drop_torn(folder / "events.jsonl")
        self._files = {
            name: open(folder / f"{name}.jsonl", "a", encoding="utf-8")
            for name in (*STEPWISE, "events")
        }
        self._lines = setup_logging(folder / LINES)
        self._bar = tqdm(total=total, initial=step, unit="step") if sys.stderr.isatty() else None

    def row(self, name: str, step: int, values: Mapping) -> None:
        """Append one line to a stepwise file; numbers that are not finite become null."""
        self._write(name, {"step": step, **values})
        if name in _SINKS:
            self._sinks.scalars(_SINKS[name], step, values)

    def event(self, name: str, **values) -> None:
        """Append one line to events.jsonl, with the time in seconds since 1970."""
        self._write("events", {"event": name, "time": round(time.time(), 3), **values})

    def begin(self, resumed: bool, step: int, config: Mapping[str, Any]) -> None:
        """Note that a process begins: with which configuration, version, MindSpore, on which machine and device."""
        place = about()
        self.event("resume" if resumed else "start", step=step, about=place, config=config)
        self.say(
            f"{'resuming' if resumed else 'starting'} at step {step}/{self._total}: mg {place['version']} "
            f"({place['commit'] or 'no repository'}), MindSpore {place['mindspore']} on {place['device']}, "
            f"host {place['host']}, process {place['pid']}"
        )

    def end(self, reason: str, step: int, pace: Mapping[str, Any], compilations: int) -> None:
        """Note that the process ends as it should, and how fast it went (see `Pace`)."""
        self.event("stop", step=step, reason=reason, compilations=compilations, pace=pace)
        if pace["steps"]:
            rates = [f"{value:.4g} {key[:-6]}/s" for key, value in pace.items() if key.endswith("_per_s")]
            self.say(
                f"stopped at step {step}/{self._total} ({reason}): {pace['step_time']:.4g} s/step, {', '.join(rates)}, "
                f"mean of {pace['steps']} steps; {pace['left_out']} with compilation left out"
            )

    def show(self, step: int, values: Mapping, line: bool) -> None:
        """Tell people about a training step: on a terminal by the progress bar, else by a line if `line` is set.

        run.log gets the line in either case.
        """
        text = line_of("train", step, values)
        if self._bar is None:
            if line:
                self._log.info(text)
            return
        self._bar.update(step - self._bar.n)
        self._bar.set_postfix_str(" ".join(f"{key} {_short(value)}" for key, value in values.items()), refresh=False)
        if line:
            self._lines.handle(self._log.makeRecord(self._log.name, logging.INFO, "", 0, text, (), None))

    def tell(self, kind: str, step: int, values: Mapping) -> None:
        """Print one line of figures of a step, see `line_of`."""
        self.say(line_of(kind, step, values))

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
        """Close the files, the sinks and the progress bar."""
        for file in self._files.values():
            try:
                file.close()
            except OSError as error:
                self._complain(file.name, error)
        if self._bar is not None:
            self._bar.close()
        self._sinks.close()
        self._log.removeHandler(self._lines)
        self._lines.close()

    def _write(self, name: str, values: Mapping) -> None:
        file = self._files[name]
        line = json.dumps({key: _plain(value) for key, value in values.items()}, allow_nan=False) + "\n"
        try:
            file.write(line)
            file.flush()
        except OSError as error:  # a full disk does not end a training; the file tries again with the next line
            self._complain(file.name, error)

    def _complain(self, name: str, error: OSError) -> None:
        self._log.warning(f"{name}: cannot be written ({error.strerror}); free some space, the training goes on")


def line_of(kind: str, step: int, values: Mapping) -> str:
    """Return `kind step=N key=value ...`, for grep and simple parsers.

    Numbers have up to six digits, nan and inf are spelled so, true and false are 1 and 0; no value has a space in it.
    """
    return " ".join([kind, f"step={step}", *(f"{key}={_word(value)}" for key, value in values.items())])


def _word(value: object) -> str:
    if value is None:
        return "nan"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(int(value)) if isinstance(value, bool) else "_".join(str(value).split())


def _plain(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _drop_beyond(path: Path, step: int) -> None:
    _keep(path, lambda line: _step_of(line) <= step)


def _drop_torn(path: Path) -> None:
    _keep(path, lambda line: line.endswith("\n"))


def _keep(path: Path, wanted) -> None:
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    kept = "".join(line for line in text.splitlines(keepends=True) if wanted(line))
    if kept != text:
        write_text(path, kept)


def _last_step(path: Path) -> int:
    """Return the greatest step in a file, 0 without any."""
    if not path.exists():
        return 0
    steps = (_step_of(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True))
    return max((step for step in steps if step != math.inf), default=0)


def _step_of(line: str) -> float:
    """Return the step of one line, infinity for a line torn off when the machine stopped."""
    if not line.endswith("\n"):
        return math.inf
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf

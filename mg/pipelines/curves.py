"""The figures of trainings as curves: read from their logs, joined over resumes, smoothed."""

import fnmatch
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mg.errors import UserError

FILES = ("metrics.jsonl", "validation.jsonl")
Row = Mapping[str, object]


@dataclass(frozen=True)
class Curve:
    """One figure of one run.

    Attributes:
        run: what the run is called.
        key: name of the figure.
        steps: rising, each once, int64 (n,).
        values: float64 (n,); NaN where the training had no finite value.
        seldom: a figure of the validation, which smoothing leaves as it is.
    """

    run: str
    key: str
    steps: np.ndarray
    values: np.ndarray
    seldom: bool = False


@dataclass(frozen=True)
class Run:
    """All curves of a run by key, and the steps at which it was resumed."""

    name: str
    curves: Mapping[str, Curve]
    resumes: tuple[int, ...] = ()


def read_run(folders: Sequence[str | Path], name: str) -> Run:
    """Read the logs of a run; several folders are its parts in order, each of which went on from the one before.

    A step that comes again, in a file or in a later part, takes the place of the earlier one and voids what lies beyond
    it. Lines that are no JSON (torn off when a machine stopped) are passed over.

    Raises:
        UserError: a folder without logs.
    """
    values: dict[str, dict[int, float]] = {}
    seldom: set[str] = set()
    resumes: list[int] = []
    for number, folder in enumerate(map(Path, folders)):
        paths = [folder] if folder.is_file() else [folder / file for file in FILES if (folder / file).is_file()]
        if not paths:
            raise UserError(f"{folder}: no {' or '.join(FILES)} there; name the output folder of a training")
        parts = [list(_rows(path)) for path in paths]
        if number:
            start = min((step for part in parts for step, _ in part), default=math.inf)
            _forget(values, start)
            resumes.append(int(start) - 1) if start != math.inf else None
        for path, part in zip(paths, parts, strict=True):
            for key, found in _columns(part).items():
                values.setdefault(key, {}).update(found)
                if path.name == FILES[1]:
                    seldom.add(key)
        resumes += [int(row["step"]) for row in _objects(folder / "events.jsonl") if row.get("event") == "resume"]
    curves = {key: _curve(name, key, found, key in seldom) for key, found in values.items() if found}
    return Run(name, curves, tuple(sorted(set(resumes))))


def _curve(run: str, key: str, found: Mapping[int, float], seldom: bool) -> Curve:
    steps = sorted(found)
    values = np.array([found[step] for step in steps], np.float64)
    return Curve(run, key, np.array(steps, np.int64), values, seldom)


def _forget(values: dict[str, dict[int, float]], start: float) -> None:
    for found in values.values():
        for step in [step for step in found if step >= start]:
            del found[step]


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a stepwise file that are still valid, in order."""
    kept: list[tuple[int, Row]] = []
    for row in _objects(path):
        step = row.get("step")
        if not isinstance(step, int):
            continue
        while kept and kept[-1][0] >= step:  # went on from an earlier step
            kept.pop()
        kept.append((step, row))
    yield from kept


def _objects(path: Path) -> Iterator[Row]:
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def _columns(rows: Sequence[tuple[int, Row]]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for step, row in rows:
        for key, value in row.items():
            if key == "step" or not (value is None or isinstance(value, (bool, int, float))):
                continue
            found.setdefault(key, {})[step] = math.nan if value is None else float(value)
    return found


def choose_keys(runs: Sequence[Run], patterns: Sequence[str] | None) -> list[str]:
    """Return the keys to draw, in order: those that match a pattern (`val_*`), or the loss and what validation gives.

    Raises:
        UserError: a pattern that no run has anything for.
    """
    known = list(dict.fromkeys(key for run in runs for key in run.curves))
    if not patterns:
        chosen = [key for key in known if key == "loss" or key.startswith("val_")]
        # Every noise level of a transformer's validation has a figure; their mean, val_loss, stands for them.
        chosen = [key for key in chosen if not ("val_loss" in known and key.startswith("val_loss_"))]
        if chosen or not known:
            return chosen
        patterns = known[:1]
    chosen = []
    for pattern in patterns:
        found = [key for key in known if fnmatch.fnmatchcase(key, pattern)]
        if not found:
            raise UserError(f"--keys {pattern}: the logs have {', '.join(known) or 'nothing yet'}")
        chosen += [key for key in found if key not in chosen]
    return chosen


def within(curve: Curve, first: int, last: int | None) -> Curve:
    """Return the part of a curve between two steps, both included."""
    inside = (curve.steps >= first) & (curve.steps <= (np.iinfo(np.int64).max if last is None else last))
    return replace(curve, steps=curve.steps[inside], values=curve.values[inside])


def smoothed(curve: Curve, weight: float) -> Curve:
    """Average each value with those before it: exponential weights, the start without bias; gaps stay gaps.

    Args:
        curve: any; a figure of the validation comes back as it is.
        weight: of what came before, in [0, 1); 0 changes nothing.
    """
    if not weight or curve.seldom:
        return curve
    out = np.full(len(curve.values), np.nan)
    total = norm = 0.0
    for i, value in enumerate(curve.values):
        if math.isfinite(value):
            total, norm = weight * total + (1 - weight) * value, weight * norm + (1 - weight)
            out[i] = total / norm
    return replace(curve, values=out)

"""Which processes of a run are behind, by the heartbeat files they write (mg.trainers.watchdog)."""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mg.errors import UserError

_NAME = re.compile(r"heartbeat-rank(\d+)\.json")


@dataclass(frozen=True)
class Place:
    """Where one process of a run is; seconds are those before now, None where no file is."""

    rank: int
    step: int | None
    phase: str
    idle: float | None
    """Seconds since it last finished a step, or began or ended a phase such as saving."""
    silent: float | None
    """Seconds since its file was written: a living process writes every ten seconds, also while it hangs."""
    state: str
    """"ok", "behind", "silent", "missing" or "ended"."""


def places(run: str | Path, ranks: int | None = None, late: float = 60.0, now: float | None = None) -> list[Place]:
    """Return every process of a run, those that hold the others up first.

    Processes of a parallel run wait for each other in every step, so where a run stands still the one to look at has
    done the fewest steps. "behind": it last moved `late` seconds before the others did, or stands `late` seconds as all
    others do but at an earlier step. "silent": its file is older than `late`, the process is gone. "missing": no file.

    Args:
        run: output folder of a training.
        ranks: number of processes; None: as many as the highest rank found says.
        late: seconds, above the ten between two writings; the machines' clocks must agree better than that.
        now: time since the epoch; None: the clock's.

    Raises:
        UserError: no heartbeat in the folder, or a file that is none.
    """
    now = time.time() if now is None else now
    found = _read(Path(run))
    if not found:
        raise UserError(f"{run}: no heartbeat-rank0.json; give the output folder of a training that has begun")
    newest = max(beat["time"] for beat, _ in found.values())
    highest = max(beat["step"] for beat, _ in found.values())
    listed = []
    for rank in range(max(ranks or 0, max(found) + 1)):
        if rank not in found:
            listed.append(Place(rank, None, "", None, None, "missing"))
            continue
        beat, written = found[rank]
        stands = newest - beat["time"] > late or (now - newest > late and beat["step"] < highest)
        state = (
            "ended" if beat["phase"] == "end" else "silent" if now - written > late else "behind" if stands else "ok"
        )
        listed.append(Place(rank, beat["step"], beat["phase"], now - beat["time"], now - written, state))
    order = ("missing", "silent", "behind", "ok", "ended")
    return sorted(listed, key=lambda place: (order.index(place.state), place.step or 0, place.rank))


def table(found: Sequence[Place], most: int = 20) -> list[str]:
    """Return lines for a terminal: a summary, then those that are not ok, and at most `most` in all."""
    counts = {state: sum(place.state == state for place in found) for state in ("missing", "silent", "behind")}
    steps = [place.step for place in found if place.step is not None]
    wrong = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none behind"
    lines = [f"{len(found)} processes, steps {min(steps)} to {max(steps)}, {wrong}"]
    lines.append(f"{'rank':>6} {'state':8} {'step':>10} {'phase':12} {'idle s':>8} {'silent s':>8}")
    for place in found[:most]:
        step = "-" if place.step is None else str(place.step)
        idle, silent = ("-" if value is None else f"{value:.0f}" for value in (place.idle, place.silent))
        lines.append(f"{place.rank:>6} {place.state:8} {step:>10} {place.phase:12} {idle:>8} {silent:>8}")
    if len(found) > most:
        lines.append(f"... and {len(found) - most} more")
    return lines


def as_json(found: Sequence[Place]) -> str:
    """Return all places as a JSON list of objects."""
    return json.dumps([asdict(place) for place in found], indent=2)


def _read(run: Path) -> dict[int, tuple[dict, float]]:
    """Return what each rank said, and when its file was written."""
    found = {}
    for path in run.glob("heartbeat-rank*.json"):
        name = _NAME.fullmatch(path.name)
        if name is None:
            continue
        try:
            beat = json.loads(path.read_text())
            found[int(name[1])] = (
                {"step": int(beat["step"]), "time": float(beat["time"]), "phase": str(beat["phase"])},
                path.stat().st_mtime,
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a heartbeat ({error}); remove it, or give another folder") from error
    return found

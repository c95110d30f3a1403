"""Where the figures of a training go besides its own files: TensorBoard, Weights & Biases.

A sink never ends a training: when one fails, a line says so and the training goes on without it.
"""

import importlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Protocol

from mg.config.logs import LogConfig, WandbConfig
from mg.errors import UserError
from mg.files import write_json
from mg.log import get_logger

TENSORBOARD_FOLDER = "tensorboard"
WANDB_RECORD = "wandb.json"


class Sink(Protocol):
    """Takes figures; may raise anything."""

    def scalars(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Take the values of a step; `name` says what they are of: "train" or "validation"."""

    def close(self) -> None:
        """Send what is left."""


class Sinks:
    """All sinks of a run.

    Args:
        config: which ones.
        folder: the run's output folder.
        step: where the run goes on, 0 for a new one.
        written: for each name the last step of which figures were logged before, also those that are void now.
        about: configuration of the run, for people (JSON values).

    Raises:
        UserError: a package that is asked for is missing, or Weights & Biases refuses the options.
    """

    def __init__(
        self, config: LogConfig, folder: Path, step: int, written: Mapping[str, int], about: Mapping[str, Any]
    ) -> None:
        self._sinks: dict[str, Sink] = {}
        self._failed: dict[str, BaseException] = {}
        if config.wandb.mode != "disabled":
            wandb = _package("wandb", "train.log.wandb.mode=disabled")
            with _Isolated("Weights & Biases", self._failed):
                self._sinks["Weights & Biases"] = WandbRun(wandb, config.wandb, folder, written, about)
        if config.tensorboard:
            package = _package("tensorboardX", "train.log.tensorboard=false")
            with _Isolated("TensorBoard", self._failed):
                self._sinks["TensorBoard"] = EventFile(package, folder / TENSORBOARD_FOLDER, step)

    def scalars(self, name: str, step: int, values: Mapping[str, object]) -> None:
        """Pass on the numbers among the values."""
        numbers = {key: float(value) for key, value in values.items() if isinstance(value, (bool, int, float))}
        for sink, target in self._working():
            with _Isolated(sink, self._failed):
                target.scalars(name, step, numbers)

    def close(self) -> None:
        """Send what is left and close all."""
        for sink, target in self._working():
            with _Isolated(sink, self._failed):
                target.close()

    def _working(self) -> list[tuple[str, Sink]]:
        return [(name, sink) for name, sink in self._sinks.items() if name not in self._failed]


class _Isolated:
    """Keeps errors of other people's code, of whatever class, from the training; notes and tells them."""

    def __init__(self, name: str, failed: dict[str, BaseException]) -> None:
        self._name, self._failed = name, failed

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None or isinstance(error, UserError) or not isinstance(error, Exception):
            return False  # a user's mistake, Ctrl-C
        self._failed[self._name] = error
        get_logger().warning(
            "%s failed (%s: %s): this run goes on without it; metrics.jsonl has everything",
            self._name, type(error).__name__, " ".join(str(error).split()),
        )
        return True


def _package(name: str, off: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UserError(f"the package {name} is not installed; run: pip install {name}, or set {off}") from error


class EventFile:
    """A new file of events for TensorBoard, in a folder in which earlier ones may stand.

    Args:
        package: tensorboardX.
        folder: is made where it is missing.
        step: where the run goes on; readers forget what earlier files say of the steps beyond it.
    """

    def __init__(self, package: ModuleType, folder: Path, step: int) -> None:
        earlier = len(list(folder.glob("*tfevents*")))
        # Readers take the files in the order of their names, which begin with the second they were opened in.
        suffix = f".{earlier:05d}"
        self._writer = package.SummaryWriter(
            str(folder), purge_step=step + 1 if step else None, filename_suffix=suffix, write_to_disk=True
        )

    def scalars(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Write the values of one step with the tags `<name>/<key>`."""
        for key, value in values.items():
            self._writer.add_scalar(f"{name}/{key}", value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WandbRun:
    """A run of Weights & Biases that goes on where the training does: its id is kept in `wandb.json`.

    There a step cannot be taken back. The steps between the checkpoint that a run resumes from and the last one that
    was sent come out the same again, so that they are not sent twice; the steps there only rise.

    Args:
        wandb: the package.
        config: options.
        folder: the run's output folder; gets the folder `wandb`.
        written: see `Sinks`.
        about: see `Sinks`.

    Raises:
        UserError: Weights & Biases refuses the options, or nobody is logged in.
    """

    def __init__(
        self, wandb: ModuleType, config: WandbConfig, folder: Path, written: Mapping[str, int], about: Mapping[str, Any]
    ) -> None:
        record = folder / WANDB_RECORD
        known = _read_record(record)
        run_id = known.get("id") or secrets.token_hex(4)
        sent = known.get("sent", {})
        self._sent = {name: max(sent.get(name, 0), written.get(name, 0)) for name in ("train", "validation")}
        if not known:
            self._sent = dict.fromkeys(self._sent, 0)  # logged before, but not to this run
        write_json(record, {"id": run_id, "project": config.project, "sent": self._sent})
        try:
            self._run = wandb.init(
                project=config.project,
                entity=config.entity,
                name=config.name or folder.resolve().name,
                id=run_id,
                resume="allow",
                mode=config.mode,
                dir=str(folder),
                config=dict(about),
            )
        except wandb.errors.UsageError as error:
            raise UserError(
                f"train.log.wandb: {' '.join(str(error).split())}; run: wandb login, or set mode to offline"
            ) from error

    def scalars(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Log the values as `<name>/<key>`, unless this step was sent before."""
        if step > self._sent[name]:
            self._run.log({f"{name}/{key}": value for key, value in values.items()}, step=step)

    def close(self) -> None:
        """Wait until everything is sent, or in offline mode written."""
        self._run.finish()


def _read_record(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
        return {"id": str(found["id"]), "sent": {name: int(step) for name, step in found["sent"].items()}}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); restore it, or delete it for a new run there") from error

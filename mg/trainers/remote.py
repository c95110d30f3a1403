"""Checkpoints in a folder that any driver of fsspec reaches: file://, memory://, s3://, gs://, hdfs:// and others.

As on the local disk a checkpoint there exists completely or not at all: its manifest is written last, after every
other file has been read back and found equal, and it is the first to go when the checkpoint is deleted.
"""

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mg.dataset.item_plan import FILE_NAME as ITEM_PLANS
from mg.dataset.quarantine import FILE_NAME as BAD_VIDEOS
from mg.errors import UserError
from mg.files import write_bytes
from mg.log import get_logger
from mg.trainers.checkpoint import FOLDER, MANIFEST, Checkpoint, fault, load, step_folder, temporary_of
from mg.trainers.runlog import LINES, RANKS, STEPWISE
from mg.trainers.sinks import WANDB_RECORD

_BLOCK = 1 << 22
RECORDS = (BAD_VIDEOS, ITEM_PLANS)
"""What later batches depend on beside the data; processes that do not lead may have their own."""

LOGS = (*(f"{name}.jsonl" for name in (*STEPWISE, "events")), LINES, WANDB_RECORD, "config.yaml", *RECORDS)
"""What a run writes about itself and needs to go on writing elsewhere; copied beside the checkpoints."""


class Outcome:
    """Ends its `with` block at any error and keeps that as `error`; None after a block that reached its end.

    For calls of foreign drivers only: each raises errors of its own kinds, and none may end a training.
    """

    error: Exception | None = None

    def __enter__(self) -> "Outcome":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        self.error = error if isinstance(error, Exception) else None
        return self.error is not None


def is_url(place: str) -> bool:
    """Tell whether a place is named by a URL rather than by a path."""
    return "://" in place


class RemoteFolder:
    """A run's folder at a URL; the methods raise whatever the driver raises where it cannot be reached.

    Args:
        url: of the folder; need not exist.
        option: name of the option that holds it, for messages.

    Raises:
        UserError: fsspec or the driver of the URL is not installed, or there is no such kind of URL.
    """

    def __init__(self, url: str, option: str) -> None:
        try:
            from fsspec.core import url_to_fs
        except ModuleNotFoundError as error:
            raise UserError(f"{option}={url}: fsspec is not installed; run: pip install 'mg[remote]'") from error
        try:
            self._fs, path = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UserError(f"{option}={url}: {error}") from error
        self.url, self.option = url.rstrip("/"), option
        self._path = path.rstrip("/")
        self._damaged: set[int] = set()

    def steps(self) -> list[int]:
        """Return the steps whose checkpoints have a manifest, rising."""
        self._fs.invalidate_cache()
        try:
            entries = self._fs.ls(self._path, detail=True)
        except FileNotFoundError:
            return []
        names = [entry["name"].rstrip("/").rpartition("/")[2] for entry in entries]
        found = [int(match[1]) for name in names if (match := FOLDER.fullmatch(name))]
        return sorted(step for step in found if self._info(f"{self._folder(step)}/{MANIFEST}") is not None)

    def push(self, folder: Path) -> bool:
        """Copy a local checkpoint and commit it; return False if the very same is there already, each file in its size.

        Raises:
            OSError: a file read back is not what was written, or a damaged checkpoint would replace another one.
        """
        target = f"{self._path}/{folder.name}"
        manifest = (folder / MANIFEST).read_bytes()
        entries = json.loads(manifest)["files"]
        self._fs.invalidate_cache()
        if self._info(f"{target}/{MANIFEST}") is not None:
            if self._fs.cat_file(f"{target}/{MANIFEST}") == manifest and self._has(target, entries):
                return False
            # Damaged there, or of the same step of a run that went another way.
            if (why := fault(folder, checksums=True)) is not None:
                raise OSError(f"{folder}: damaged ({why}), not copied over the one there")
            self._fs.rm_file(f"{target}/{MANIFEST}")
        self._fs.makedirs(target, exist_ok=True)
        for entry in entries:
            path = f"{target}/{entry['name']}"
            self._fs.put_file(str(folder / entry["name"]), path)
            self._compare(path, entry["bytes"], entry["crc32"])
        self._fs.put_file(str(folder / MANIFEST), f"{target}/{MANIFEST}")
        self._compare(f"{target}/{MANIFEST}", len(manifest), zlib.crc32(manifest))
        return True

    def push_logs(self, folder: Path) -> None:
        """Copy the logs of a run, over those copied before."""
        for path in logs_in(folder, LOGS):
            target = f"{self._path}/{path.relative_to(folder).as_posix()}"
            self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(target, path.read_bytes())

    def prune(self, kept: Callable[[list[int]], Collection[int]]) -> None:
        """Delete the checkpoints that `kept` leaves out of the steps there, the manifest of each first."""
        steps = self.steps()
        for step in sorted(set(steps) - set(kept(steps))):
            self._fs.rm_file(f"{self._folder(step)}/{MANIFEST}")
            self._fs.rm(self._folder(step), recursive=True)

    def fetch(self, step: int, output: Path) -> Checkpoint | None:
        """Copy one checkpoint to a local run's folder as step-N.tmp, to be adopted; None if damaged or incomplete."""
        temporary = temporary_of(step_folder(output, step))
        for _ in range(2):  # what was lost on the way, and not there, comes when it is read once more
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            found = None
            try:
                found = self._read(self._folder(step), temporary)
            finally:
                if found is None:
                    shutil.rmtree(temporary, ignore_errors=True)
            if found is not None:
                return found
        self._damaged.add(step)
        return None

    def _read(self, source: str, target: Path) -> Checkpoint | None:
        manifest = self._fs.cat_file(f"{source}/{MANIFEST}")
        names = _names_in(manifest)
        if names is None or any(self._info(f"{source}/{name}") is None for name in names):
            return None
        for name in names:
            self._fs.get_file(f"{source}/{name}", str(target / name))
            with open(target / name, "rb") as file:
                os.fsync(file.fileno())
        write_bytes(target / MANIFEST, manifest)
        return load(target)

    def set_aside(self) -> None:
        """Rename the manifests of the checkpoints found damaged, so that they count no more as steps kept."""
        for step in sorted(self._damaged):
            manifest = f"{self._folder(step)}/{MANIFEST}"
            if self._info(manifest) is not None:
                self._fs.pipe_file(f"{manifest}.damaged", self._fs.cat_file(manifest))
                self._fs.rm_file(manifest)
                get_logger().warning(f"{self.url}: step {step} is damaged, its manifest now {MANIFEST}.damaged")
            self._damaged.remove(step)

    def fetch_newest(self, output: Path, beyond: int = -1) -> Checkpoint | None:
        """Fetch the newest whole checkpoint after step `beyond`, see `fetch`; None if there is none."""
        for step in reversed([step for step in self.steps() if step > beyond]):
            found = self.fetch(step, output)
            if found is not None:
                return found
            get_logger().warning(f"{self.url}: incomplete or damaged checkpoint of step {step} passed over")
        return None

    def fetch_logs(self, output: Path, names: Collection[str] = LOGS) -> None:
        """Copy the logs that are there to a local run's folder, over its own, with the records of all processes."""
        try:
            ranks = [path.rstrip("/").rpartition("/")[2] for path in self._fs.ls(f"{self._path}/{RANKS}", detail=False)]
        except FileNotFoundError:
            ranks = []
        others = [f"{RANKS}/{rank}/{name}" for rank in ranks if rank.isdecimal() for name in RECORDS]
        for name in (*names, *others):
            if self._info(f"{self._path}/{name}") is not None:
                write_bytes(output / name, self._fs.cat_file(f"{self._path}/{name}"))

    def _folder(self, step: int) -> str:
        return f"{self._path}/{step_folder(Path(), step).name}"

    def _info(self, path: str) -> dict[str, Any] | None:
        """Return what is known of a file, None without it; `exists` of many drivers takes every error for absence."""
        try:
            return self._fs.info(path)
        except FileNotFoundError:
            return None

    def _has(self, target: str, entries: Collection[Mapping[str, Any]]) -> bool:
        """Tell whether the files of a manifest are there in their sizes."""
        found = [self._info(f"{target}/{entry['name']}") for entry in entries]
        return all(one is not None and one["size"] == entry["bytes"] for one, entry in zip(found, entries, strict=True))

    def _compare(self, path: str, size: int, crc: int) -> None:
        """Read a file back."""
        self._fs.invalidate_cache()
        found, length = 0, 0
        with self._fs.open(path, "rb") as file:
            while block := file.read(_BLOCK):
                found, length = zlib.crc32(block, found), length + len(block)
        if (length, found) != (size, crc):
            raise OSError(f"{path}: read back {length} bytes with CRC {found:08x}, written {size} with {crc:08x}")


def logs_in(folder: Path, names: Collection[str]) -> list[Path]:
    """Return the files of these names that a local run's folder has, and the records of all its processes."""
    paths = [folder / name for name in names]
    paths += [path for name in RECORDS for path in sorted(folder.glob(f"{RANKS}/*/{name}"))]
    return [path for path in paths if path.is_file()]


def split_step(place: str) -> tuple[str, int | None]:
    """Return the run's folder and the step that a path or URL of a run or of one of its step folders names."""
    run, _, last = place.rstrip("/").rpartition("/")
    match = FOLDER.fullmatch(last)
    return (run or ".", int(match[1])) if match else (place.rstrip("/"), None)


def _names_in(manifest: bytes) -> list[str] | None:
    """Return the names of the files, None for what is no manifest."""
    try:
        names: list[Any] = [entry["name"] for entry in json.loads(manifest)["files"]]
    except (ValueError, KeyError, TypeError):
        return None
    # A name of another folder would be written outside the checkpoint.
    return names if all(isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name) for name in names) else None

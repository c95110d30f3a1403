"""Checkpoints that exist completely or not at all.

A checkpoint is a folder step-00001000 with its tensors, state.json and manifest.json (size and CRC of every file). The
tensors are whole, a file for each kind, or in pieces that several processes wrote (see mg.trainers.sharded).
It is written as step-00001000.tmp, each file synced, then renamed: the rename is the commit. LATEST only helps people;
the reader takes the newest folder whose manifest holds.
"""

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mg.errors import UserError
from mg.files import sync_folder, write_json, write_text
from mg.log import get_logger
from mg.trainers.stored import StoredTensors
from mg.weights import write_weights

MANIFEST = "manifest.json"
STATE = "state.json"
TABLE = "tensors"
"""In the manifest: what is in which file, where several processes wrote."""
LATEST = "LATEST"
FOLDER = re.compile(r"step-(\d{8,})")
_BESIDE = 1 << 20
"""Bytes allowed for state.json, manifest.json and the headers of the tensors."""


@dataclass(frozen=True)
class Checkpoint:
    """One valid checkpoint: its folder, step and state.json."""

    folder: Path
    step: int
    state: dict
    shards: dict[str, dict] = field(default_factory=dict)
    """What is in which file, if several processes wrote it: kind ("model", "optimizer", "ema") -> name -> entry."""

    def has(self, name: str) -> bool:
        """Tell whether tensors were saved as `name`."""
        return name in self.shards or (self.folder / f"{name}.safetensors").is_file()

    def tensors(self, name: str) -> StoredTensors:
        """Open the tensors saved as `name` ("model", "optimizer", "ema"); raises UserError if there are none."""
        if self.shards:
            if name not in self.shards:
                kinds = ", ".join(self.shards)
                raise UserError(f"{self.folder}: it has no {name}, only {kinds}; take another checkpoint")
            return StoredTensors.of_shards(self.folder, self.shards[name])
        return StoredTensors.of_file(self.folder / f"{name}.safetensors")

    @property
    def kinds(self) -> list[str]:
        """Return the names that tensors were saved as."""
        return sorted(self.shards or (path.stem for path in self.folder.glob("*.safetensors")))


def step_folder(output: Path, step: int) -> Path:
    """Return the folder of one step's checkpoint."""
    return output / f"step-{step:08d}"


def save(
    output: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, np.ndarray]],
    state: Mapping,
    *,
    hook: Callable[[str], None] = lambda point: None,
) -> Path:
    """Write one checkpoint and return its folder.

    tensors: file name without suffix -> arrays by name. An existing valid checkpoint of this step is left as it is.
    hook: called with the name of each point passed (tests break off there): "folder", each file of tensors, "state",
        "manifest", "renamed" (the checkpoint exists from here on), "latest".
    Raises UserError where the disk refuses or has too little space; what was begun is then removed.
    """
    final = step_folder(output, step)
    if is_complete(final, checksums=True):
        return final
    remove_leftovers(output)
    with refusals(final):
        temporary = begin(final, bytes_of(tensors))
        hook("folder")
        for name, arrays in tensors.items():
            write_weights(temporary / f"{name}.safetensors", arrays)
            hook(name)
        write_json(temporary / STATE, {"step": step, **state})
        hook("state")
        commit(final, manifest_of(temporary), hook)
    return final


def temporary_of(final: Path) -> Path:
    """Return where a checkpoint is written before it is renamed."""
    return final.with_name(final.name + ".tmp")


@contextmanager
def refusals(final: Path) -> Iterator[None]:
    """Remove what was begun where the disk refuses, and raise that as a UserError."""
    try:
        yield
    except (OSError, UserError) as error:
        shutil.rmtree(temporary_of(final), ignore_errors=True)
        if isinstance(error, UserError):
            raise
        raise UserError(f"{final}: cannot write the checkpoint ({error.strerror or error}); "
                        "free some space or choose another output folder") from error


def begin(final: Path, arrays: int) -> Path:
    """Make the folder in which a checkpoint with `arrays` bytes of arrays is written, and return it."""
    temporary = temporary_of(final)
    shutil.rmtree(temporary, ignore_errors=True)  # of an attempt that was broken off
    final.parent.mkdir(parents=True, exist_ok=True)
    check_space(final.parent, arrays)
    temporary.mkdir()
    return temporary


def commit(final: Path, manifest: Mapping, hook: Callable[[str], None] = lambda point: None) -> None:
    """Let a checkpoint exist, all files of which are written and in the manifest."""
    text = json.dumps(manifest, indent=None if TABLE in manifest else 2, ensure_ascii=False)
    write_text(temporary_of(final) / MANIFEST, text + "\n")
    hook("manifest")
    if final.exists():  # a damaged checkpoint of this very step, passed over when the run resumed
        shutil.rmtree(final)
    os.rename(temporary_of(final), final)
    hook("renamed")
    sync_folder(final.parent)
    write_text(final.parent / LATEST, final.name + "\n")
    hook("latest")


def adopt(found: Checkpoint) -> Checkpoint:
    """Commit a checkpoint that was fetched whole to step-N.tmp; return it as it is called from then on."""
    final = found.folder.with_suffix("")
    shutil.rmtree(final, ignore_errors=True)  # a damaged one of this step
    os.rename(found.folder, final)
    sync_folder(final.parent)
    return replace(found, folder=final)


def bytes_of(tensors: Mapping[str, Mapping[str, np.ndarray]]) -> int:
    """Return the size of these arrays."""
    return sum(array.nbytes for arrays in tensors.values() for array in arrays.values())


def check_space(output: Path, arrays: int) -> None:
    """Raise UserError where the disk has no room for a checkpoint with `arrays` bytes of arrays."""
    needed = arrays + _BESIDE
    free = shutil.disk_usage(output).free
    if free < needed:
        raise UserError(f"{output}: a checkpoint needs {_size(needed)}, the disk has {_size(free)} left; "
                        "free some space or choose another output folder")


def prune(
    output: Path,
    kept: Callable[[list[int]], Collection[int]],
    *,
    hook: Callable[[str], None] = lambda point: None,
) -> None:
    """Delete the complete checkpoints that `kept` leaves out of the steps it is given, oldest first.

    hook: called with "prune" before each deletion and with "pruned" in the middle of it. Damaged folders are not
    counted and not touched. A deletion that fails is a warning.
    """
    complete = {step: folder for step, folder in committed(output).items() if is_complete(folder)}
    staying = set(kept(sorted(complete)))
    for step in sorted(complete.keys() - staying):
        folder = complete[step]
        hook("prune")
        try:
            # Renamed first: a deletion broken off half-way must not leave a folder that looks committed.
            doomed = folder.with_name(folder.name + ".tmp")
            os.rename(folder, doomed)
            hook("pruned")
            shutil.rmtree(doomed)
        except OSError as error:
            get_logger().warning(f"{folder}: old checkpoint not deleted ({error.strerror})")


def load(folder: Path, checksums: bool = True) -> Checkpoint | None:
    """Return the checkpoint of one step folder if all its files have the size and CRC of its manifest, else None."""
    if fault(folder, checksums) is not None:
        return None
    state = json.loads((folder / STATE).read_text())
    return Checkpoint(folder, state["step"], state, json.loads((folder / MANIFEST).read_text()).get(TABLE, {}))


def newest(output: Path) -> Checkpoint | None:
    """Return the newest checkpoint whose files all have the size and CRC of its manifest, or None."""
    for _, folder in sorted(committed(output).items(), reverse=True):
        why = fault(folder, checksums=True)
        if why is None:
            return load(folder, checksums=False)
        get_logger().warning(f"{folder}: incomplete or damaged checkpoint passed over ({why})")
    return None


def set_aside(output: Path, beyond: int) -> None:
    """Rename the damaged checkpoints after step `beyond` to *.damaged, so that they count no more as steps kept."""
    for step, folder in committed(output).items():
        if step > beyond and not is_complete(folder, checksums=True):
            target = folder.with_name(folder.name + ".damaged")
            shutil.rmtree(target, ignore_errors=True)
            os.rename(folder, target)
            get_logger().warning(f"{folder}: damaged, now called {target.name}; delete it when you have seen why")


def remove_leftovers(output: Path) -> None:
    """Delete half-written checkpoints of an earlier, interrupted run."""
    for path in output.glob("step-*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def differences(before: Mapping, now: Mapping) -> list[tuple[str, object, object]]:
    """Return (dotted name, value before, value now) of every leaf in which two trees of JSON values differ."""
    old, new = dict(_leaves(before)), dict(_leaves(json.loads(json.dumps(now))))
    names = sorted(name for name in old.keys() | new.keys() if old.get(name, ...) != new.get(name, ...))
    return [(name, old.get(name), new.get(name)) for name in names]


def _leaves(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def committed(output: Path) -> dict[int, Path]:
    """Return the committed step folders by step, valid or not."""
    if not output.is_dir():
        return {}
    return {int(match[1]): path for path in output.iterdir() if (match := FOLDER.fullmatch(path.name))}


def entry_of(path: Path) -> dict:
    """Return what a manifest says of a file."""
    return {"name": path.name, "bytes": path.stat().st_size, "crc32": _crc32(path)}


def manifest_of(folder: Path) -> dict:
    """Return the manifest of a folder of whole tensors, in which all other files are."""
    return {"files": [entry_of(path) for path in sorted(folder.iterdir())]}


def crc_of_table(table: Mapping) -> int:
    """Return the CRC of the table in a manifest, which no file's CRC covers."""
    return zlib.crc32(json.dumps(table, sort_keys=True).encode())


def _crc32(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            crc = zlib.crc32(block, crc)
    return crc


def is_complete(folder: Path, checksums: bool = False) -> bool:
    """Tell whether every file of the manifest is there in its size, and with `checksums` with its CRC, too."""
    return fault(folder, checksums) is None


def fault(folder: Path, checksums: bool = False) -> str | None:
    """Return what is wrong with a step folder, None if it is complete; see `is_complete`."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        entries = {entry["name"]: (entry["bytes"], entry["crc32"]) for entry in manifest["files"]}
        table = manifest.get(TABLE, {})
        if checksums and table and crc_of_table(table) != manifest[f"{TABLE}_crc32"]:
            return f"{MANIFEST} is damaged"
    except OSError as error:
        return f"{MANIFEST}: {error.strerror or error}"
    except (ValueError, KeyError, TypeError, AttributeError):  # not JSON, or JSON of another make
        return f"{MANIFEST} is damaged"
    if STATE not in entries:
        return f"{MANIFEST} has no {STATE}"
    for name, (size, crc) in entries.items():
        try:
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
            if checksums and _crc32(folder / name) != crc:
                return f"{name} has not the CRC of {MANIFEST}"
        except (OSError, TypeError) as error:
            return f"{name}: {getattr(error, 'strerror', None) or error}"
    return None


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"

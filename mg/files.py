"""Files that exist completely or not at all."""

import errno
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mg.errors import UserError

_REMEDIES = {
    errno.ENOSPC: "the disk is full; free space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free space or choose another folder",
    errno.EACCES: "permission denied; choose a folder you may write to",
    errno.EPERM: "permission denied; choose a folder you may write to",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder; choose another path",
    errno.EISDIR: "there is a folder of that name; choose another path",
    errno.EEXIST: "there is a file where a folder is needed; choose another path",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}

_numbers = itertools.count()


def _explain(path: Path, error: OSError) -> UserError:
    remedy = _REMEDIES.get(error.errno or 0, f"{error.strerror or error}; choose another path")
    return UserError(f"cannot write {path}: {remedy}")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is flushed to disk and renamed, on failure removed.

    The temporary name keeps the suffix, for writers that choose a format by it. Missing folders are created.

    Raises:
        UserError: the disk is full, the folder cannot be written, or the name is a folder's.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
        # Part of the stem is enough for a person, the number tells apart what one process writes at a time; a whole
        # stem could grow beyond the 255 bytes a name may have.
        temporary = path.with_name(f".{path.stem[:40]}.{os.getpid()}-{next(_numbers)}.tmp{path.suffix}")
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise _explain(path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # renamed, never made, or out of reach: what went wrong is told already
                temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk, so that a rename in it survives a power cut."""
    _sync(folder)


def _sync(path: Path) -> None:
    # Open for reading is enough to flush, and possible for a file that its writer made read-only.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def writable_folder(path: str | Path, option: str) -> Path:
    """Create a folder and prove that it can be written.

    Raises:
        UserError: it cannot; the message names the option.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink(missing_ok=True)  # processes of other machines may have the same number
    except OSError as error:
        raise UserError(f"{option}: {_explain(folder, error)}") from error
    return folder

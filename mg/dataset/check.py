"""Checks of whole lists before a training: which files cannot be used, and whether lists share files."""

import csv
import hashlib
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mg.dataset.headers import Limits
from mg.dataset.manifest import Item
from mg.dataset.ordered import in_order
from mg.dataset.video import probe, read_image
from mg.errors import BadClip, UserError

_BLOCK = 1 << 22


@dataclass(frozen=True)
class Finding:
    """What was found out about one file.

    Attributes:
        item: the file.
        reason: why it cannot be used; None: it can.
    """

    item: Item
    reason: str | None


def check_items(items: Sequence[Item], limits: Limits | None = None, workers: int = 1) -> Iterator[Finding]:
    """Decode every file to its end, in order; the reasons are those that a training would give.

    Args:
        items: videos and pictures.
        limits: files beyond them are bad, and are not decoded.
        workers: threads; 0 works in the caller's.
    """
    limits = limits or Limits()

    def look(item: Item) -> Finding:
        try:
            limits.check(item.path)
            if item.is_image:
                read_image(item.path)
            else:
                probe(item.path)
        except BadClip as error:
            return Finding(item, error.reason)
        return Finding(item, None)

    return in_order(look, items, workers)


@dataclass(frozen=True)
class Shared:
    """A file that stands in two lists.

    Attributes:
        first: (list, name in it).
        second: see first.
    """

    first: tuple[str, str]
    second: tuple[str, str]


def shared_files(lists: Mapping[str, Sequence[Item]]) -> list[Shared]:
    """Find the files of equal content that stand in more than one of several lists, whatever they are called.

    Only files of equal size are read. A copy that was encoded anew is another file.

    Raises:
        UserError: a file cannot be read.
    """
    sizes: dict[int, list[tuple[str, Item]]] = defaultdict(list)
    for name, items in lists.items():
        for item in items:
            sizes[_size(item.path)].append((name, item))
    found = []
    for same in sizes.values():
        if len({name for name, _ in same}) < 2:
            continue
        contents: dict[str, list[tuple[str, Item]]] = defaultdict(list)
        for name, item in same:
            contents[file_hash(item.path)].append((name, item))
        for equal in contents.values():
            (first, item), rest = equal[0], equal[1:]
            found += [Shared((first, item.name), (name, other.name)) for name, other in rest if name != first]
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); take it off the list") from error


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal.

    Raises:
        UserError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); take it off the list") from error
    return digest.hexdigest()


def as_csv(items: Sequence[Item]) -> str:
    """Write a list as `read_manifest` reads it: video, and caption where there is one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    captioned = any(item.caption is not None for item in items)
    writer.writerow(["video", "caption"] if captioned else ["video"])
    for item in items:
        writer.writerow([item.name, item.caption or ""] if captioned else [item.name])
    return text.getvalue()

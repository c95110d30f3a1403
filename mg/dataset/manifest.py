"""Lists of clips: a CSV beside a folder of files, or simply a folder."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mg.errors import UserError

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".gif"})
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})


@dataclass(frozen=True)
class Item:
    """One entry of a list of clips.

    Attributes:
        path: the file; it need not exist, see `existing`.
        name: the file as the list names it.
        caption: its description, None where the list has none.
        row: 1 for the first entry.
    """

    path: Path
    name: str
    caption: str | None
    row: int

    @property
    def is_image(self) -> bool:
        """Whether the file's suffix is that of a still picture."""
        return self.path.suffix.lower() in IMAGE_SUFFIXES


def read_manifest(csv_path: str | Path, video_folder: str | Path, column: str = "video") -> list[Item]:
    """Read a CSV of clips.

    Args:
        csv_path: UTF-8 (with or without byte order mark) with a header line; a column `caption` is optional.
        video_folder: the folder that relative paths start from; absolute paths and `..` are the user's own business.
        column: the column that names the files.

    Returns:
        One item per row, in order. Files that do not exist are listed too: see `existing`.

    Raises:
        UserError: the CSV or the folder is missing, unreadable or empty, the column is missing, or a row is malformed.
    """
    csv_path, folder = Path(csv_path), _folder(video_folder, "video_folder")
    if not csv_path.is_file():
        raise UserError(f"csv_path: {csv_path} is not a file; give a CSV with the columns {column},caption")
    try:
        with csv_path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            rows = list(reader)
    except OSError as error:
        raise UserError(f"csv_path: {csv_path} cannot be read ({error.strerror}); check its permissions") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"csv_path: {csv_path} is not a UTF-8 CSV file ({error}); save it as UTF-8 CSV") from error
    if not header:
        raise UserError(f"csv_path: {csv_path} is empty; it needs a header line such as {column},caption")
    if column not in header:
        raise UserError(f"csv_path: {csv_path} has no column {column!r}, only {', '.join(header)}; rename one")
    if not rows:
        raise UserError(f"csv_path: {csv_path} lists no clips; add a row per clip below the header")
    return [_item(row, number, csv_path, folder, column) for number, row in enumerate(rows, start=1)]


def _item(row: dict, number: int, csv_path: Path, folder: Path, column: str) -> Item:
    if None in row:  # where DictReader puts the fields that no column is left for
        raise UserError(
            f"csv_path: {csv_path}, row {number} has more fields than the header; put quotes around text with commas"
        )
    name = (row[column] or "").strip()
    if not name:
        raise UserError(f"csv_path: {csv_path}, row {number}: column {column!r} is empty; name a file there")
    if "\0" in name:
        raise UserError(f"csv_path: {csv_path}, row {number}: column {column!r} has a zero byte; save it as UTF-8 CSV")
    caption = (row.get("caption") or "").strip()
    return Item(path=folder / name, name=name, caption=caption or None, row=number)


def scan_folder(folder: str | Path) -> list[Item]:
    """List every video and picture below a folder.

    Args:
        folder: searched with its subfolders, by suffix (`VIDEO_SUFFIXES`, `IMAGE_SUFFIXES`); hidden files are left out.

    Returns:
        Items sorted by name, without captions.

    Raises:
        UserError: the folder is missing or holds neither videos nor pictures.
    """
    folder = _folder(folder, "video_folder")
    wanted = VIDEO_SUFFIXES | IMAGE_SUFFIXES
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in wanted and not path.name.startswith(".") and path.is_file()
    )
    if not names:
        raise UserError(f"video_folder: {folder} holds no video; put files such as clip.mp4 there")
    return [Item(path=folder / name, name=name, caption=None, row=row) for row, name in enumerate(names, start=1)]


def read_lists(paths: Iterable[str], video_folder: str | Path | None = None) -> dict[str, list[Item]]:
    """Read several lists of clips that are used together.

    Args:
        paths: CSVs, or folders, of which every video and picture is taken.
        video_folder: the folder that the CSVs' paths start from; None: each CSV's own.

    Returns:
        The items by path.

    Raises:
        UserError: as `read_manifest` and `scan_folder`; or two lists call different files by the same name, which
            latents, embeddings and chunks are found by.
    """
    lists = {}
    known: dict[str, tuple[Path, str]] = {}
    for path in paths:
        whole = Path(path).is_dir()
        lists[path] = scan_folder(path) if whole else read_manifest(path, video_folder or Path(path).parent)
        for item in lists[path]:
            where, other = known.setdefault(item.name, (item.path, path))
            if where != item.path:
                raise UserError(f"{item.name} is {where} in {other} and {item.path} in {path}; rename one of them")
    return lists


def existing(items: Iterable[Item]) -> tuple[list[Item], list[Item]]:
    """Split items into those whose file exists and those whose file is missing, both in order."""
    good: list[Item] = []
    missing: list[Item] = []
    for item in items:
        (good if item.path.is_file() else missing).append(item)
    return good, missing


def _folder(folder: str | Path, option: str) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{option}: {folder} is not a folder; give the folder that holds the clips")
    return folder

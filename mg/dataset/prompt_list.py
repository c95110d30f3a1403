"""Lists of prompts: a CSV of videos and captions, or a text file of one prompt per line; read row by row."""

import csv
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mg.errors import UserError
from mg.models.text_encoders.prompts import clean_prompt

SUFFIX = ".npz"
_WORDS = 10
_LONGEST = 255  # bytes that a file system allows a name
_CONTROL = re.compile("[\x00-\x1f\x7f]")
_UNSAFE = re.compile(r'[\\/:*?"<>|]')


@dataclass(frozen=True)
class PromptRow:
    """One row of a list of prompts.

    Attributes:
        row: 1 for the first row below the header, or for the first line of a text file.
        name: the video as the list names it; the output's name where there are no videos.
        output: path of the row's embeddings, relative to their folder.
        text: the cleaned caption; "" is the null prompt.
        error: why the row cannot be used, None if it can.
    """

    row: int
    name: str
    output: str
    text: str
    error: str | None = None


def read_prompts(
    path: str | Path, columns: tuple[str, str] = ("video", "caption"), nameless: bool = False
) -> Iterator[PromptRow]:
    """Read a list of prompts, one row in memory at a time.

    Args:
        path: UTF-8 (with or without byte order mark). A .csv has a header line, and a row's embeddings are named after
            its video; a .txt has one prompt per line, empty ones included, and names are the line's number from 000
            on with the first ten words.
        columns: of a CSV, those of videos and captions.
        nameless: whether the program that asks can do without the videos' column, if it is told so.

    Yields:
        Rows in order; what is wrong with a single row stands in its `error`.

    Raises:
        UserError: the file is missing, empty, unreadable, neither kind, no UTF-8, or a column is missing.
    """
    path = Path(path)
    if path.suffix.lower() not in (".csv", ".txt"):
        raise UserError(f"prompts_file: {path} is neither .csv nor .txt; give a CSV or one prompt per line")
    if not path.is_file():
        raise UserError(f"prompts_file: {path} is not a file; check the path")
    is_csv, empty = path.suffix.lower() == ".csv", True
    try:
        with path.open(encoding="utf-8-sig", newline="" if is_csv else None) as file:
            for row in _csv_rows(file, path, columns, nameless) if is_csv else _lines(file):
                empty = False
                yield row
    except OSError as error:
        raise UserError(f"prompts_file: {path} cannot be read ({error.strerror}); check its permissions") from error
    except (UnicodeDecodeError, csv.Error) as error:
        kind = "CSV" if is_csv else "text"
        raise UserError(f"prompts_file: {path} is not a UTF-8 {kind} file ({error}); save it as UTF-8") from error
    if empty:
        raise UserError(f"prompts_file: {path} lists no prompts; add a row per prompt")


def _csv_rows(file: Iterator[str], path: Path, columns: tuple[str, str], nameless: bool) -> Iterator[PromptRow]:
    reader = csv.DictReader(file, strict=True)  # otherwise quotation marks at the wrong place just vanish
    header = [name.strip() for name in reader.fieldnames or []]
    if not header:
        raise UserError(f"prompts_file: {path} is empty; it needs a header line such as {','.join(columns)}")
    for column in columns:
        if column not in header:
            names = ", ".join(header).encode("unicode_escape").decode()[:200]
            remedy = f"give --column_names {columns[1]}" if nameless and columns[1] in header else "see --column_names"
            raise UserError(f"prompts_file: {path} has no column {column!r}, only {names}; {remedy}")
    reader.fieldnames = header
    for number in itertools.count(1):
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield PromptRow(number, "", "", "", _explained(error, path, number))
            continue
        if row is None:
            return
        name = (row[columns[0]] or "").strip()
        output, error = _output_of(name, columns[0])
        if None in row:  # where DictReader puts the fields that no column is left for
            error = "has more fields than the header; put quotes around text with commas"
        elif row[columns[1]] is None:
            error = f"has no field {columns[1]!r}"
        yield PromptRow(number, name, output, clean_prompt(row[columns[1]] or ""), error)


def _explained(error: csv.Error, path: Path, number: int) -> str:
    if "end of data" in str(error):
        raise UserError(f"prompts_file: {path}: a quotation mark in row {number} is not closed; close it") from error
    return f'is no CSV ({error}); put quotes around the text and double those inside: "a sign ""OPEN"" in rain"'


def _output_of(name: str, column: str) -> tuple[str, str | None]:
    """Return the path of the embeddings that belong to a video, and what is wrong with it."""
    path = PurePosixPath(name)
    if _CONTROL.search(name) or max(len(part.encode()) for part in (*path.parts, path.stem + SUFFIX)) > _LONGEST:
        return "", f"names {name[:80]!r} in column {column!r}, which is too long or no text"
    if not path.name:
        return "", f"names no file in column {column!r}"
    if path.is_absolute() or ".." in path.parts:
        return "", f"names {name}, which leaves the output folder; use paths below the videos' folder"
    return str(path.with_suffix(SUFFIX)), None


def _lines(file: Iterator[str]) -> Iterator[PromptRow]:
    for number, line in enumerate(file):
        text = clean_prompt(line)
        words = _UNSAFE.sub("_", "-".join(text.split()[:_WORDS]))
        stem = f"{number:03d}-{words}".encode()[: _LONGEST - len(SUFFIX)].decode(errors="ignore")
        yield PromptRow(number + 1, stem + SUFFIX, stem + SUFFIX, text)

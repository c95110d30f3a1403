"""What is to be generated: prompts of a command line, a list of them, or embeddings."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mg.config.generate import GenerateConfig
from mg.dataset.prompt_list import SUFFIX, read_prompts
from mg.errors import UserError
from mg.log import get_logger
from mg.models.text_encoders.prompts import clean_prompt
from mg.pipelines.video_outputs import slug


@dataclass(frozen=True)
class Task:
    """One video to make.

    Attributes:
        row: its place in the list, from 1.
        name: what its files are named after.
        prompt: the text; with embeddings, the name of their file.
        files: embeddings by encoder, instead of the text.
    """

    row: int
    name: str
    prompt: str
    files: dict[str, Path] | None = None


def tasks_of(config: GenerateConfig) -> tuple[list[Task], list[dict]]:
    """List what is to be made, and the rows that cannot be.

    Raises:
        UserError: the list or a folder cannot be read, or there is nothing in it.
    """
    if config.text_emb.folders:
        return _embeddings(config.text_emb.folders), []
    if config.prompts:
        return [Task(row, slug(text), clean_prompt(text)) for row, text in enumerate(config.prompts, 1)], []
    tasks, bad = [], []
    for row, name, text, error in _rows(config):
        if error is None and not text:
            error = "is empty"
        if error is None:
            tasks.append(Task(row, name or slug(text), text))
            continue
        get_logger().warning("skipped: row %d %s", row, error)
        bad.append({"row": row, "error": error})
    if not tasks and all(row["error"] == "is empty" for row in bad):
        raise UserError(f"prompts_file: {config.prompts_file} lists no prompts; write one per line")
    return tasks, bad


def _rows(config: GenerateConfig) -> Iterator[tuple[int, str, str, str | None]]:
    """Yield (row, name or "", prompt, error)."""
    path = Path(config.prompts_file)
    if path.suffix.lower() != ".csv" or len(config.columns) == 2:
        columns = config.columns if len(config.columns) == 2 else ("video", "caption")
        for row in read_prompts(path, columns, nameless=True):
            name = _joined(row.output) if path.suffix.lower() == ".csv" and row.output else ""
            yield row.row, name, row.text, row.error
        return
    (column,) = config.columns
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            if column not in (reader.fieldnames or []):
                names = ", ".join(reader.fieldnames or []) or "nothing"
                raise UserError(f"prompts_file: {path} has no column {column!r}, only {names}; see --column_names")
            for number, row in enumerate(reader, 1):
                yield number, "", clean_prompt(row[column] or ""), None
    except OSError as error:
        raise UserError(f"prompts_file: {path} cannot be read ({error.strerror}); check the path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"prompts_file: {path} is not a UTF-8 CSV file ({error}); save it as UTF-8") from error


def _embeddings(folders: dict[str, str]) -> list[Task]:
    names: dict[str, list[str]] = {}
    for kind, folder in folders.items():
        if not Path(folder).is_dir():
            raise UserError(f"--text_emb.{kind}_dir {folder} is not a folder; check the path")
        found = (path.relative_to(folder) for path in Path(folder).rglob(f"*{SUFFIX}"))
        names[kind] = sorted(path.as_posix() for path in found if not path.name.startswith("."))
        if not names[kind]:
            raise UserError(f"--text_emb.{kind}_dir {folder} holds no {SUFFIX}; encode prompts into it first")
    first = next(iter(names))
    for kind, listed in names.items():
        if listed != names[first]:
            odd = sorted(set(listed) ^ set(names[first]))[0]
            raise UserError(f"--text_emb.{kind}_dir and --text_emb.{first}_dir differ: {odd} is in one of them only")
    tasks = []
    for row, name in enumerate(names[first], 1):
        files = {kind: Path(folder) / name for kind, folder in folders.items()}
        tasks.append(Task(row, _joined(name), name, files))
    return tasks


def _joined(name: str) -> str:
    """Make one name of a path: without suffix, folders joined."""
    return "__".join(Path(name).with_suffix("").parts)

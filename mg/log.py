"""Logging: one plain line per event on standard error, and in a file on request."""

import logging
import sys
from pathlib import Path

from mg.errors import UserError, printable

_LINE = "%(asctime)s %(levelname)s %(message)s"


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


_FORMAT = _Formatter(_LINE, "%H:%M:%S")
_FILE_FORMAT = _Formatter(_LINE, "%Y-%m-%d %H:%M:%S")  # a file is read days later


class _StandardError(logging.Handler):
    """Looks standard error up for every line, so that a stream exchanged meanwhile is followed."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


def get_logger(name: str = "mg") -> logging.Logger:
    """Return the project's logger; its first use sends lines of level INFO and above to standard error."""
    root = logging.getLogger("mg")
    if not root.handlers:
        handler = _StandardError()
        handler.setFormatter(_FORMAT)
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        root.propagate = False
    return logging.getLogger(name)


def setup_logging(path: str | Path | None = None) -> logging.Handler | None:
    """Send the lines to standard error and, given a path, append them to that file too.

    Returns:
        The file's handler, for `logging.Logger.removeHandler`, or None without a path.

    Raises:
        UserError: the file cannot be opened for writing.
    """
    root = get_logger()
    if path is None:
        return None
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the log {path}: {error.strerror}; choose another path") from error
    handler.setFormatter(_FILE_FORMAT)
    root.addHandler(handler)
    return handler

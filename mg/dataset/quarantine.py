"""Files found bad during a run: named once, listed on disk, left alone from then on, and too many end the run."""

import json
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from mg.errors import BadClip, TooManyBadClips, UserError
from mg.log import get_logger

FILE_NAME = "bad_videos.jsonl"
"""Name of the list in a run's folder: one line {"path", "reason"} per bad file, "name" where an item has another."""

_TOLD = 20


class Quarantine:
    """Keeps account of the bad files of a run; safe to share by threads.

    A list that is there already is believed: a resumed run leaves out what the run before it left out, so that both
    use the same clips. Deleting the list (the remote copy as well) gives the files another chance.

    Args:
        total: files of the training's list.
        max_bad: share of them that may be bad; one is allowed in any case, unless the share is 0.
        path: the list on disk; None keeps none.

    Attributes:
        reasons: path -> what is wrong with the file.
        names: of the items that were given with a bad file.

    Raises:
        UserError: the list cannot be read or is no such list.
    """

    def __init__(self, total: int, max_bad: float, path: str | Path | None = None) -> None:
        self.reasons: dict[str, str] = {}
        self.names: set[str] = set()
        self._total, self._share = total, max_bad
        self._allowed = max(1, int(max_bad * total)) if max_bad else 0
        self._path = None if path is None else Path(path)
        self._torn = False
        self._noted: list[dict[str, str]] = []
        self._lock = threading.Lock()
        self.reload()

    def reload(self) -> None:
        """Take in what the list on disk says: that of the run to go on with may have come there in the meantime.

        What was noted here and is not in it is written there once more.

        Raises:
            UserError: it cannot be read.
        """
        with self._lock:
            if self._path is None or not self._path.exists():
                return
            there = self._load()
            for entry in self._noted:
                if entry not in there:
                    self._append(entry)

    def _load(self) -> list[dict[str, str]]:
        there = []
        known = len(self.reasons)
        try:
            text = self._path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self._path}: cannot be read ({error}); delete it or check its permissions") from error
        lines = text.split("\n")
        self._torn = lines.pop() != ""  # a line that a crash cut off: written anew when its file is met again
        for line in lines:
            try:
                entry = json.loads(line)
                self.reasons[entry["path"]] = entry["reason"]
                if "name" in entry:
                    self.names.add(entry["name"])
                there.append(entry)
            except (ValueError, KeyError, TypeError):
                if line:
                    get_logger().warning("%s: passed over a damaged line", self._path)
        if len(self.reasons) > known:
            get_logger().info("%d files that %s names are left out; delete it to try them again", len(self.reasons),
                              self._path)  # fmt: skip
        return there

    def check(self, path: object) -> None:
        """Raise BadClip if the file is known to be bad, so that it is not decoded again on every pass."""
        reason = self.reasons.get(str(path))
        if reason is not None:
            raise BadClip(path, reason)

    def add(self, error: BadClip, name: str | None = None) -> None:
        """Note a bad file; known ones are passed over.

        Args:
            error: what is wrong with which file.
            name: of the item that needs it, where that is known by another name than the file.

        Raises:
            TooManyBadClips: it is one too many.
        """
        if self._note(error, name):
            get_logger().warning("skipping a bad clip: %s", error)
        self._judge()

    def add_all(
        self,
        errors: Iterable[BadClip],
        what: str,
        describe: Callable[[BadClip], object] = lambda error: error,
        name: Callable[[BadClip], str | None] = lambda error: None,
    ) -> None:
        """Note files found bad at the start, with a line for the first of them and one for all; raises as `add`.

        Args:
            errors: what is wrong with which files.
            what: they are, for the line.
            describe: returns what to log of one.
            name: returns the name that `add` would be given.
        """
        new = [error for error in errors if self._note(error, name(error))]
        for error in new[:_TOLD]:
            get_logger().warning("skipping a bad clip: %s", describe(error))
        if new:
            get_logger().warning("%d of %d files are %s", len(new), self._total, what)
        self._judge()

    def _note(self, error: BadClip, name: str | None = None) -> bool:
        """Take down a bad file, and each item that needs it; return whether the file was not known."""
        with self._lock:
            new = error.path not in self.reasons
            self.reasons.setdefault(error.path, error.reason)
            unnamed = name is not None and name not in self.names
            if unnamed:
                self.names.add(name)
            if (new or unnamed) and self._path is not None:
                named = {} if name is None else {"name": name}
                self._noted.append({"path": error.path, **named, "reason": error.reason})
                self._append(self._noted[-1])
        return new

    def _append(self, entry: dict[str, str]) -> None:
        start = "\n" if self._torn else ""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(start + json.dumps(entry) + "\n")
        except OSError as error:
            # The log has the line as well; a full disk is for the checkpoints to judge.
            get_logger().warning("%s: not written (%s)", self._path, error.strerror)
            return
        self._torn = False

    def _judge(self) -> None:
        bad = len(self.reasons)
        if bad > self._allowed:
            path, reason = next(iter(self.reasons.items()))
            listed = "" if self._path is None else f"; all of them are in {self._path}, delete it once they are mended"
            raise TooManyBadClips(
                f"{bad} of {self._total} files are bad, more than max_bad={self._share} allows; the first: {path}: "
                f"{reason}{listed}"
            )

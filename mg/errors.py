"""Errors that reach a user as one line, and the exit code each ends a command with."""

EXIT_HANG = 4
"""A training step did not end; the process is ended from a thread, no exception reaches anyone."""
EXIT_RESTART = 75
"""A training has stopped with a checkpoint and wants the same command again (EX_TEMPFAIL of sysexits.h)."""


class UserError(ValueError):
    """A mistake of the user's; the message names the option or file, the value and the remedy."""

    exit_code = 2


class NoGoodClip(UserError):
    """Not one video of those given could be used."""

    exit_code = 5


class TooManyBadClips(UserError):
    """More of the training's videos are damaged or missing than its settings allow."""

    exit_code = 5


class NumericalAbort(RuntimeError):
    """Training met too many steps with NaN or Inf in a row."""

    exit_code = 3


def printable(text: str) -> str:
    r"""Return the text with `\udcff` in place of what UTF-8 cannot express: file names need not be UTF-8, logs must."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class BadClip(ValueError):
    """A video or image that cannot be used."""

    def __init__(self, path: object, reason: str) -> None:
        super().__init__(printable(f"{path}: {reason}"))
        self.path, self.reason = str(path), reason

    def __reduce__(self) -> tuple:
        # An exception is copied to another process by its message alone, which is not what __init__ takes.
        return type(self), (self.path, self.reason)

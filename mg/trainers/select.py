"""Parameters chosen by patterns over their names."""

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from mg.errors import UserError


def check_patterns(option: str, patterns: Iterable[str], names: Sequence[str]) -> None:
    """Raise UserError for the first pattern that fits no name, with the names most like it."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
            raise UserError(f"{option}: no parameter is called {pattern!r}; near it: {', '.join(near)} "
                            "(* stands for any characters)")


def frozen(patterns: Sequence[str], names: Sequence[str], option: str = "freeze") -> set[str]:
    """Return the names that the patterns choose.

    `*` stands for any characters, dots included, `?` for one, `[ab]` for one of these. A pattern behind `!` takes
    names out again; the last pattern that fits a name decides.

    Raises:
        UserError: a pattern that fits no name.
    """
    check_patterns(option, [pattern.removeprefix("!") for pattern in patterns], names)
    chosen: set[str] = set()
    for pattern in patterns:
        fits = {name for name in names if fnmatchcase(name, pattern.removeprefix("!"))}
        chosen = chosen - fits if pattern.startswith("!") else chosen | fits
    return chosen

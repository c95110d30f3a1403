"""Arrays of a pickle, read by looking at its instructions; nothing in the file is ever called."""

import pickletools
from typing import Any

import numpy as np

from mg.errors import UserError

_GLOBALS = {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}
_ITEMS = {"f4": np.dtype("<f4"), "f8": np.dtype("<f8")}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_MARK = object()


def arrays_of(data: bytes, path: str) -> dict[str, np.ndarray]:
    """Return the arrays of a pickled nested dict by their joined names ("a.b.c").

    Args:
        data: the pickle: dicts with texts as keys, floating NumPy arrays as leaves, and nothing else.
        path: where it comes from, for messages.

    Raises:
        UserError: it is damaged or has something else in it.
    """
    try:
        return dict(_leaves(_value(data), ""))
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{path}: not a pickle of plain arrays ({error}); nothing in it was run; check the file"
        ) from error


def _leaves(value: Any, name: str) -> list[tuple[str, np.ndarray]]:
    if isinstance(value, _Array):
        return [(name, value.array())]
    if not isinstance(value, dict):
        raise ValueError(f"{name or 'the whole'} is no array")
    return [leaf for key, part in value.items() for leaf in _leaves(part, f"{name}.{key}" if name else str(key))]


class _Array:
    """What stands for an array or its element type while the file is read: the state that the pickle gives it."""

    def __init__(self, made_of: tuple) -> None:
        self.made_of = made_of
        self.state: tuple = ()

    def array(self) -> np.ndarray:
        _, shape, kind, by_columns, data = self.state
        flat = np.frombuffer(data, _ITEMS[kind.made_of[0]])
        if kind.state[1] not in "<=|":
            raise ValueError("its numbers are not little-endian")
        return flat.reshape(shape, order="F" if by_columns else "C").copy()


def _value(data: bytes) -> Any:
    """Follow the few instructions that such a pickle needs."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        place = max(index for index, item in enumerate(stack) if item is _MARK)
        taken = stack[place + 1 :]
        del stack[place:]
        return taken

    for code, argument, _ in pickletools.genops(data):
        name = code.name
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name == "MARK":
            stack.append(_MARK)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name.startswith(("BININT", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES")):
            stack.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("SETITEM", "SETITEMS"):
            items = since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            wanted = argument if name == "GLOBAL" else f"{stack.pop(-2)} {stack.pop()}"
            if wanted not in _GLOBALS:
                raise ValueError(f"it asks for {wanted}")
            stack.append(wanted)
        elif name == "REDUCE":
            made_of, _ = stack.pop(), stack.pop()
            stack.append(_Array(made_of))
        elif name == "BUILD":
            state = stack.pop()
            stack[-1].state = state
        else:
            raise ValueError(f"it has the instruction {name}")
    raise ValueError("it has no end")

"""Command lines and YAML files made from frozen dataclasses; the only module that knows the parser."""

import argparse
import ast
import atexit
import difflib
import faulthandler
import inspect
import itertools
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import jsonargparse
import yaml

from mg.errors import BadClip, NumericalAbort, UserError

Config = TypeVar("Config")

_CONFIG_FLAGS = ("-c", "--config")
_NAMES = (
    {"steps", "num_steps", "sampling_steps", "num_sampling_steps", "num_inference_steps"},
    {"cfg", "cfg_scale", "guidance_scale"},
    {"size", "resolution", "image_size", "height", "width"},
    {"lr", "learning_rate"},
    {"out", "output", "output_dir", "output_folder", "output_path"},
    {"ckpt", "ckpt_path", "checkpoint", "pretrained", "pretrained_model_path"},
)
"""What other programs, and other ones of these scripts, call the same thing."""


class _Dumper(yaml.SafeDumper):
    """Quotes text such as 1e-3 too: YAML 1.1 takes it for text, the parser for a number."""


_FLOAT = re.compile(r"[-+]?[\d._]+[eE][-+]?\d+$")
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse(
    config_class: type[Config], argv: Sequence[str], *, description: str | None = None, prog: str | None = None
) -> Config:
    """Turn a command line into an instance of a dataclass.

    Every field is a flag, fields of a nested dataclass are dotted ones (`--train.optimizer.lr 1e-4`). `--config FILE`
    (or -c, may be repeated) reads YAML; later files override earlier ones, and flags override every file, wherever
    they stand. A bool may stand bare (`--save_vis`), a tuple is `--size 64 64` or `--size [64,64]`.
    `--help` and `--print_config` print and leave with SystemExit(0).

    Args:
        config_class: a dataclass whose fields are plain types or dataclasses; its defaults hold where nothing is said.
        argv: the arguments without the program's name.
        description: text above the options in the help; the class's docstring by default.
        prog: name of the program in the help; that of the running script by default.

    Raises:
        UserError: an unknown option or key, a value of a wrong type, an unreadable file, or a ValueError of a
            dataclass's own checks, with the dotted path of the field. Always one line.
    """
    options = dict(_options(config_class))
    argv, files = _normalised(argv, options)
    for path in files:
        _check_file(path, options)
    parser = _parser(config_class, description or inspect.getdoc(config_class), prog or Path(sys.argv[0]).name)
    try:
        values = parser.parse_args([*(f"--config={path}" for path in files), *argv])
    except argparse.ArgumentError as error:
        raise UserError(_readable(error, options)) from error
    return _build(config_class, values)


def dump(config: object) -> str:
    """Return a config dataclass as YAML that `load` turns into an equal instance."""
    plain = json.loads(json.dumps(asdict(config), default=str))  # tuples become lists, paths strings
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def load(config_class: type[Config], path: str | Path) -> Config:
    """Read one YAML file into a config dataclass; raises UserError as `parse` does."""
    return parse(config_class, ["--config", str(path)])


def run(main: Callable[[list[str]], int | None]) -> NoReturn:
    """Call `main` with the command line's arguments and leave the process with its exit code.

    A user's mistake, a clip that cannot be used and a numerical abort become one line `error: ...` on standard error
    and the error's exit code (2 if it has none); Ctrl-C ends with 130. Any other exception is a defect and keeps its
    traceback; a crash in a library (SIGSEGV and its like) leaves the Python frames on standard error.

    As the last line of a program it also ends the process without the interpreter's teardown, see `_leave`.
    """
    ended: list[int] = []
    if sys._getframe(1).f_back is None:  # called by the program itself, nothing of which comes after it
        faulthandler.enable()
        atexit.register(_leave, ended)
    try:
        code = main(sys.argv[1:]) or 0
    except (UserError, BadClip, NumericalAbort) as error:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        print(f"error: {_one_line(f'{error}{notes}')}", file=sys.stderr)
        code = getattr(error, "exit_code", 2)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        code = 130
    ended.append(code)
    sys.exit(code)


def _leave(ended: Sequence[int]) -> None:
    """End the process with the exit code of a `main` that is over; do nothing after a traceback or `--help`.

    Exit functions are called in the reverse order of their registration, and this one was registered before those of
    MindSpore and whatever else `main` has imported: their work is done by now. What is skipped are the interpreter's
    last garbage collection and the destructors of the libraries: a segmentation fault there would make a failure of a
    run that has written all it was to write.
    """
    if not ended:
        return
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # nobody reads it any more; the interpreter has a message and an exit code for that
        return
    os._exit(ended[0])


def _options(config_class: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, type) of every field that is not itself a dataclass."""
    hints = get_type_hints(config_class)
    for field in fields(config_class):
        kind, name = hints[field.name], prefix + field.name
        if is_dataclass(kind):
            yield from _options(kind, f"{name}.")
        elif any(is_dataclass(part) for part in get_args(kind)):
            raise TypeError(f"{config_class.__name__}.{field.name}: a choice or list of dataclasses is not supported")
        else:
            yield name, kind


def _parts(kind: Any) -> set[Any]:
    """The plain types (tuple for tuple[int, ...]) that a union, or a type that is none, allows."""
    members = (kind,) if get_origin(kind) in (None, tuple, list) else get_args(kind)
    return {get_origin(member) or member for member in members}


def _normalised(argv: Sequence[str], options: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the arguments, bare bools and spread-out tuples written as one word, and the config files apart."""
    words, files = [], []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        parts = _parts(options.get(flag.removeprefix("--"))) if flag.startswith("--") else set()
        following = len(list(itertools.takewhile(lambda item: not item.startswith("-"), rest)))
        if flag in _CONFIG_FLAGS:
            if not equals and not following:
                raise UserError(f"{flag}: the name of a YAML file is missing after it")
            files.append(value if equals else rest.pop(0))
        elif bool in parts and not equals and not following:
            words.append(f"{word}=true")
        elif not equals and (parts & {tuple, list} and following > 1 or _needs_brackets(parts, rest[:following])):
            words.append(f"{word}=[{','.join(rest[:following])}]")
            del rest[:following]
        else:
            words.append(word)
    return words, files


def _needs_brackets(parts: set[Any], values: Sequence[str]) -> bool:
    """Whether this is a single bare value of an option that takes a tuple and nothing else but none."""
    only_tuple = bool(parts & {tuple, list}) and parts <= {tuple, list, type(None)}
    return only_tuple and len(values) == 1 and not values[0].startswith(("[", "(")) and values[0] != "null"


def _check_file(path: str, options: dict[str, Any]) -> None:
    """Raise UserError, which names the file, if it is not a mapping of known options to values."""
    try:
        content = yaml.safe_load(Path(path).read_text("utf-8"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}; give an existing YAML file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--config {path}: not a text file in UTF-8; give a YAML file") from error
    except yaml.YAMLError as error:
        raise UserError(f"--config {path}: not valid YAML: {_one_line(error)}") from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"--config {path}: holds no options; write lines of the form `name: value`")
    _check_keys(path, content, options, "")


def _check_keys(path: str, content: dict, options: dict[str, Any], prefix: str) -> None:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if name in options:
            continue
        if not any(option.startswith(f"{name}.") for option in options):
            raise UserError(f"--config {path}: unknown option {name}{_suggestion(name, options, '')}")
        if not isinstance(value, dict):
            raise UserError(f"--config {path}: {name}: {value!r} must be a section, options indented below its name")
        _check_keys(path, value, options, f"{name}.")


def _parser(config_class: type, description: str | None, prog: str) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(
        prog=prog, description=description, exit_on_error=False, allow_abbrev=False, default_env=False
    )
    parser.add_argument(*_CONFIG_FLAGS, action="config", help="YAML file of options; may be repeated, the last wins")
    parser.add_class_arguments(config_class)
    docs = dict(_docs(config_class))
    # The parser has no public way to set the texts afterwards, and reads none from fields without another package.
    for action in parser._actions:
        if action.dest in docs:
            action.help = docs[action.dest]
            action.required = action.required and action.default in (None, MISSING, argparse.SUPPRESS)
    titles = dict(_titles(config_class))
    for group in parser._action_groups:
        group.title = titles.get(group.title, group.title)
    return parser


def _docs(config_class: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, text) from the string below each field, or from "Attributes:" in the class's docstring."""
    section = (inspect.getdoc(config_class) or "").partition("Attributes:\n")[2]
    texts = dict(re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", section, re.MULTILINE))
    for base in reversed(config_class.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                texts[field.target.id] = str(text.value.value)
    hints = get_type_hints(config_class)
    for name in (field.name for field in fields(config_class)):
        if is_dataclass(hints[name]):
            yield from _docs(hints[name], f"{prefix}{name}.")
        elif name in texts:
            yield prefix + name, " ".join(texts[name].split())


def _titles(config_class: type) -> Iterator[tuple[str, str]]:
    """Yield (title that the parser gives a class's options, first line of the class's docstring)."""
    name, text = config_class.__name__, inspect.getdoc(config_class) or ""
    written = text and not text.startswith(f"{name}(")  # otherwise the text is the signature that dataclass puts there
    yield str(config_class), text.split("\n")[0].rstrip(".") if written else name
    for kind in get_type_hints(config_class).values():
        if is_dataclass(kind):
            yield from _titles(kind)


def _build(config_class: type[Config], values: Any, path: str = "") -> Config:
    """Make the instance, nested ones first, so that a failing check can be told with its place."""
    hints = get_type_hints(config_class)
    arguments = {}
    for name in (field.name for field in fields(config_class)):
        nested = is_dataclass(hints[name])
        arguments[name] = _build(hints[name], values[name], f"{path}{name}.") if nested else values[name]
    try:
        return config_class(**arguments)
    except ValueError as error:
        raise UserError(_located(_one_line(error), path, arguments)) from error


def _located(message: str, path: str, names: Iterable[str]) -> str:
    """Put the dotted path before a check's message, which may begin with the field's name or the end of the path."""
    if not path:
        return message
    section = path.split(".")[-2]
    if message.startswith(f"{section}."):
        return path.removesuffix(f"{section}.") + message
    first = re.match(r"\w*", message)
    return path + message if first and first[0] in names else f"{path[:-1]}: {message}"


def _readable(error: argparse.ArgumentError, options: Mapping[str, Any]) -> str:
    """Say the parser's complaint in one line, with the nearest option for an unknown one."""
    text = re.sub(r"<class '([\w.]+)'>|typing\.(?=\w)", lambda match: match[1] or "", _one_line(error))
    text = re.sub(r'Parser key "([\w.]+)": ?', r"\1: ", text)
    text = re.sub(r"Expected a Literal\[(.+?)\]\. Got value: (.*)", r"\2 is not one of \1", text)
    text = re.sub(r"Expected a (.+?)\. Got value: (.*)", r"\2 is not of type \1", text)
    text = re.sub(r"Does not .*Subtypes: \[(.*)\] Errors: .*Given value: (.*)", r"\2 is not of type \1", text)
    text = text.replace("NoneType", "null")
    name, colon, rest = text.partition(": ")
    value, wrong, _ = rest.partition(" is not of type ")
    if colon and wrong and (wanted := _wanted(options.get(name))):
        text = f"{name}: {value}{wanted}"
    unknown = re.match(r"unrecognized arguments: --([\w.]+)", text)
    return f"{text}{_suggestion(unknown[1], options) if unknown else ''}; see --help"


def _wanted(kind: Any) -> str | None:
    """Say in plain words what an option takes, None for types that say it themselves."""
    members = set(get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)) - {type(None)}
    choices = [member for member in members if get_origin(member) is Literal]
    if choices and len(members) == 1:
        return f" is not one of {', '.join(map(repr, get_args(choices[0])))}"
    if members == {int, tuple[int, int]}:
        return ": give one number or two, such as 64 64"
    return None


def _suggestion(name: str, known: Iterable[str], dashes: str = "--") -> str:
    """Name what was probably meant: the same in another section, another word for it, a longer name, a similar one."""
    names, last = list(known), _last(name)
    other = set().union(*(group for group in _NAMES if last in group))
    named = [option for option in names if _last(option) in other]
    same = [option for option in names if _last(option) == last]
    if named and not same:
        return f" (here: {', '.join(dashes + option for option in named)})"
    starting = [option for option in names if len(last) > 2 and option.startswith(name)]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    tails = difflib.get_close_matches(last, [_last(option) for option in names], n=1, cutoff=0.8)
    found = same or starting or near or [option for option in names if _last(option) in tails]
    return f" (did you mean {', '.join(dashes + option for option in found)}?)" if found else ""


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _one_line(text: object) -> str:
    return " ".join(line.strip() for line in str(text).splitlines() if line.strip())

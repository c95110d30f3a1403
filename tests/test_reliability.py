"""docs/reliability.md speaks of modules, tests, options and files that there are."""

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from mg import errors
from mg.config import cli
from mg.config.tae_train import TaeTrainConfig
from mg.config.trainer import TrainerConfig

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "reliability.md").read_text("utf-8")
PROMISES = ("P1", "P2", "P3", "P4", "P5", "P6", "P-RNG", "P7", "P8", "P9")


def table_rows(heading):
    section = TEXT.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows[2:]]


@pytest.mark.parametrize("row", table_rows("Promises"), ids=lambda row: row[0])
def test_every_promise_has_a_sentence_modules_and_tests(row):
    name, sentence, modules, tests = row
    assert name in PROMISES and sentence.endswith(".") and sentence.count(". ") == 0
    modules, tests = (re.findall(r"`([^`]+)`", cell) for cell in (modules, tests))
    assert modules and tests
    for path in modules:
        assert path.startswith("mg/") and (ROOT / path).is_file(), path
    for path in tests:
        assert re.fullmatch(r"tests/(\w+/)*test_\w+\.py", path) and (ROOT / path).is_file(), path
        assert re.search(r"^def test_", (ROOT / path).read_text("utf-8"), re.MULTILINE)


def test_no_promise_is_missing():
    assert tuple(row[0] for row in table_rows("Promises")) == PROMISES


def test_exit_codes_are_those_of_the_errors():
    told = {int(code) for row in table_rows("Exit codes") for code in re.findall(r"\d+", row[0])}
    codes = {kind.exit_code for kind in vars(errors).values() if hasattr(kind, "exit_code")}
    assert codes | {0, errors.EXIT_HANG, errors.EXIT_RESTART} <= told


def test_options_are_options_and_defaults_are_defaults():
    known = {field.name: field.default for field in fields(TrainerConfig)}
    named = re.findall(r"`(?:--)?train\.(\w+)", TEXT)
    assert len(named) > 8 and set(named) <= set(known)
    for row in table_rows("Checkpoints"):
        for name, default in re.findall(r"`(\w+)` \(`?(\w+)`?\)", row[0]):
            assert str(known[name]) == default, name


def test_commands_can_be_parsed():
    lines = [line for line in TEXT.splitlines() if line.startswith(".venv/bin/python ")]
    assert len(lines) >= 1
    for line in lines:
        words = shlex.split(line)[1:]
        programs = [number for number, word in enumerate(words) if word.endswith(".py")]
        assert all((ROOT / words[number]).is_file() for number in programs)
        config = [ROOT / word if word.startswith("configs/") else word for word in words[programs[-1] + 1 :]]
        assert cli.parse(TaeTrainConfig, list(map(str, config))).train.steps > 0


def test_examples_of_options_can_be_parsed():
    examples = re.findall(r"`--(train\.[^`]+)`", " ".join(TEXT.split()))
    assert len(examples) >= 5
    for example in examples:
        name, *value = shlex.split(f"--{example}")
        words = [name, *(value or ["1"]), "--train.validate_every", "1"]
        assert cli.parse(TaeTrainConfig, words).train.steps > 0, words

import re
import shlex
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = sorted(
    path.relative_to(ROOT).as_posix() for folder in ("scripts", "tools") for path in (ROOT / folder).glob("*.py")
)
DOCUMENTS = ["README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))]
HELP_SECONDS = 2.0


@cache
def show_help(program):
    """Run `program --help`; return its output, the modules it imported and the seconds it took."""
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-X", "importtime", program, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    seconds = time.perf_counter() - start
    assert result.returncode == 0, f"{program} --help: {result.stderr[-2000:]}"
    modules = re.findall(r"^import time:.*\| +([\w.]+)$", result.stderr, re.MULTILINE)
    return result.stdout, {name.split(".")[0] for name in modules}, seconds


STARTERS = ("scripts/launch.py", "tools/cloud_job.py")


def commands(text):
    """Return the programs called in a document's lines, each as (path, words); a backslash continues a line.

    A program that another one starts is one of its own.
    """
    text = text.replace("\\\n", " ")
    calls = re.findall(r"(?:^|[\s`;&])\S*python[\d.]*\s+((?:scripts|tools|benchmarks)/\S+?\.py)([^`\n]*)", text)
    found = []
    for program, line in calls:
        words = shlex.split(line.split(" > ")[0], comments=True)
        inner = next((place for place, word in enumerate(words) if word.endswith(".py")), None)
        if program in STARTERS and inner is not None:
            found.append((words[inner], words[inner + 1 :]))
            words = words[:inner]
        found.append((program, words))
    return found


def flags_of(words):
    return [word.split("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)]


def unknown_flags(words, help_text):
    return [flag for flag in flags_of(words) if not re.search(rf"(?<![\w.-]){re.escape(flag)}(?![\w.-])", help_text)]


def readme():
    return (ROOT / "README.md").read_text("utf-8")


def test_imports_run_downwards():
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter, "--no-cache", "--no-logo"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"Contracts: [1-9]\d* kept, 0 broken", result.stdout)


def test_there_are_programs():
    assert {"scripts/train_tae.py", "scripts/inference_vae.py", "tools/inflate_vae_to_tae.py"} <= set(PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_comes_before_any_framework(program):
    text, modules, _ = show_help(program)
    assert text.startswith("usage:")
    assert "argparse" in modules  # the list of imports was read
    assert not modules & {"mindspore", "torch", "mindone", "cv2", "decord", "av"}


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_is_quick(program):
    seconds = show_help(program)[2]
    if seconds >= HELP_SECONDS:  # once more: the machine may have been busy
        show_help.cache_clear()
        seconds = show_help(program)[2]
    assert seconds < HELP_SECONDS


def test_commands_are_found_in_a_document():
    text = (
        "Run `.venv/bin/python scripts/a.py --x 1`:\n```\npython tools/b.py --size=3 \\\n    -c 'd e'  # --why\n"
        "pip install x\npython other.py --z\n$ A=1 python3.11 benchmarks/c.py -1\n```\n"
    )
    assert commands(text) == [
        ("scripts/a.py", ["--x", "1"]),
        ("tools/b.py", ["--size=3", "-c", "d e"]),
        ("benchmarks/c.py", ["-1"]),
    ]
    words = ["--size=3", "-c", "4", "--siz", "--a.b", "-1"]
    assert unknown_flags(words, "[-c C] --size N --a.b.c") == ["--siz", "--a.b"]


def test_commands_of_documents_are_found():
    assert {program for program, _ in commands(readme())} >= {"scripts/train_tae.py", "scripts/inference_vae.py"}
    logs = (ROOT / "docs/logs.md").read_text("utf-8")
    assert {program for program, _ in commands(logs)} >= {"tools/plot_training.py", "tools/latent_statistics.py"}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_of_a_document_lead_somewhere(document):
    path = ROOT / document
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", path.read_text("utf-8")):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_of_a_document_exist(document):
    for program, words in commands((ROOT / document).read_text("utf-8")):
        assert (ROOT / program).is_file(), program
        assert not unknown_flags(words, show_help(program)[0]), f"{program} {words}"
        for flag, value in zip(words, words[1:], strict=False):
            if flag in ("-c", "--config"):  # a variable of the shell stands for any name
                assert list(ROOT.glob(re.sub(r"\$\w+", "*", value))), f"{program} {flag} {value}"


def test_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    quoted = re.findall(r"`make ([\w-]+)", readme())
    lines = re.findall(r"^\s*(?:\$ )?make ([\w-]+)(?: +\w+=\S+)*\s*(?:#.*)?$", readme(), re.MULTILINE)
    named = {*quoted, *lines}
    assert {"demo", "test"} <= named <= targets

import os
import re
from importlib.metadata import distribution
from itertools import chain

import pytest


def lines(path):
    stripped = (line.split("#")[0].strip() for line in path.read_text("utf-8").splitlines())
    return [line for line in stripped if line]


def test_git_ignores_no_folder_of_the_sources(root):
    # A pattern without a leading slash holds at every depth: `models/` would lose mg/models, to ruff as well.
    anywhere = {line.rstrip("/") for line in lines(root / ".gitignore") if not line.startswith("/")}
    sources = ("mg", "tests", "scripts", "tools", "benchmarks", "configs", "assets")
    paths = chain.from_iterable((root / name).rglob("*") for name in sources)
    folders = {path.name for path in paths if path.is_dir()}
    assert {"models", "tae"} <= folders
    assert not anywhere & (folders - {"__pycache__"} | set(sources))


def test_ci_runs_what_the_readme_says(root):
    assert os.access(root / ".ci/run", os.X_OK)
    assert "exec make test" in lines(root / ".ci/run")


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-test.txt"])
def test_every_requirement_is_pinned(root, name):
    for line in lines(root / name):
        assert line == "-r requirements.txt" or re.match(r"[\w-]+==[\d.]+( *;|$)", line), line


def test_pins_install_on_the_pythons_that_make_accepts(root):
    makefile = (root / "Makefile").read_text("utf-8")
    low, high = (int(text) for text in re.search(r"\(3, (\d+)\) <= v < \(3, (\d+)\)", makefile).groups())
    for line in lines(root / "requirements.txt") + lines(root / "requirements-test.txt"):
        if line.startswith("-r"):
            continue
        needed = distribution(line.split("==")[0]).metadata["Requires-Python"] or ""
        for sign, minor in re.findall(r"(>=|<)3\.(\d+)", needed):
            assert low >= int(minor) if sign == ">=" else high <= int(minor), f"{line} needs Python {needed}"


def test_what_must_not_be_installed_is_not_pinned(root):
    names = {line.split("==")[0] for line in lines(root / "requirements.txt")}
    assert not names & {"torch", "torchvision", "lpips", "diffusers", "opencv-python"}
    names |= {line.split("==")[0] for line in lines(root / "requirements-test.txt")}
    assert not names & {"torchvision", "lpips"}

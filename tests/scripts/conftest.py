"""Run the scripts: as a process of its own, or in this one where only the ending counts."""

import os
import runpy
import subprocess
import sys
from dataclasses import dataclass

import pytest


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def start(root):
    """Start a script: start("name.py", *arguments) -> Popen."""

    def call(script, *args):
        command = [sys.executable, str(root / "scripts" / script), *map(str, args)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=root, env=dict(os.environ))

    return call


@pytest.fixture(scope="session")
def run(start):
    """Run a script to its end in its own process."""

    def call(script, *args):
        process = start(script, *args)
        out, err = process.communicate(timeout=600)
        return Result(process.returncode, out, err)

    return call


@pytest.fixture
def here(root, monkeypatch, capfd):
    """Run a script as a program inside this process, which spares the imports."""

    def call(script, *args):
        monkeypatch.setattr(sys, "argv", [script, *map(str, args)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(root / "scripts" / script), run_name="__main__")
        code = end.value.code
        return Result(code or 0, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def error_line():
    """Return the one line that a failed command ended with, after the log's."""

    def check(result, code=2):
        assert result.code == code, result.err
        *log, last = result.err.splitlines()
        assert last.startswith("error: ") and len(last) < 1500, result.err
        assert all(" INFO " in line or " WARNING " in line for line in log), result.err
        return last

    return check


@pytest.fixture(scope="session")
def network():
    """Random weights of the preset tiny, {name: array}, and their metadata."""
    import mg.device

    mg.device.setup("CPU", "graph")
    from mg.models.tae import PRESETS, TemporalAutoencoder
    from mg.models.tae.loading import metadata_of

    network = TemporalAutoencoder(PRESETS["tiny"], seed=1)
    return {name: param.asnumpy().copy() for name, param in network.parameters_and_names()}, metadata_of(network.config)


@pytest.fixture(scope="session")
def weights(network, tmp_path_factory):
    from mg.weights import write_weights

    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    write_weights(path, *network)
    return path

"""Fixtures of all tests. MindSpore runs on the CPU in graph mode wherever a test does not say otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mg.device  # sets the environment, before anything imports MindSpore

ROOT = Path(__file__).resolve().parent.parent
OWN_PROCESS = "MG_TEST_IN_ITS_OWN_PROCESS"
# These rooms are MindSpore's; in the others it is set up only where a test has imported it.
ROOMS = ("ops", "models", "trainers", "pipelines")


def pytest_configure(config: pytest.Config) -> None:
    # Other people's imports; our own deprecation warnings stay visible.
    for origin in ("mindspore", "mindone", "google", "safetensors", "jsonargparse", "torch", "diffusers"):
        config.addinivalue_line("filterwarnings", f"ignore::DeprecationWarning:{origin}")
        config.addinivalue_line("filterwarnings", f"ignore::FutureWarning:{origin}")


@pytest.fixture(autouse=True)
def cpu_graph_mode(request: pytest.FixtureRequest) -> None:
    """Set the CPU and graph mode before each test, so that a test in PyNative leaves nothing behind."""
    room = request.path.relative_to(ROOT / "tests").parts[0] if request.path.is_relative_to(ROOT / "tests") else ""
    if room in ROOMS or "mindspore" in sys.modules:
        mg.device.setup("CPU", "graph")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test marked `own_process` in a new process.

    MindSpore 2.10 refuses second derivatives of graphs ("real_primal_func is null") once certain other networks have
    run in a process, text encoders in PyNative among them.
    """
    if pyfuncitem.get_closest_marker("own_process") is None or OWN_PROCESS in os.environ:
        return None
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", pyfuncitem.nodeid],
        cwd=ROOT, env={**environment, OWN_PROCESS: "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "1 passed" in done.stdout
    return True


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT

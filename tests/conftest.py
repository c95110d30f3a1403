"""Fixtures of all tests. MindSpore runs on the CPU in graph mode wherever a test does not say otherwise."""

import sys
from pathlib import Path

import pytest

import mg.device  # sets the environment, before anything imports MindSpore

ROOT = Path(__file__).resolve().parent.parent
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


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT

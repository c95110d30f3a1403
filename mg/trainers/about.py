"""What a run should say of the place where it runs: versions, machine, device."""

import os
import platform
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

import mg
from mg import device


def about() -> dict[str, str | int | None]:
    """Return version and git commit of this project, versions of Python, MindSpore and numpy, host, process, device.

    commit is None where the project does not run from a git repository; it ends in `-dirty` where files were changed.
    """
    return {
        "version": mg.__version__,
        "commit": git_commit(Path(mg.__file__).resolve().parents[1]),
        "python": platform.python_version(),
        "numpy": np.__version__,
        **device.facts(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "pid": os.getpid(),
        "command": Path(sys.argv[0]).name,
    }


def git_commit(folder: Path) -> str | None:
    """Return the commit that is checked out in the repository at `folder`, None if there is none or no git."""
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None

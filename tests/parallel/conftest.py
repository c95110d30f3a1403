import functools
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for the modules that the tests share with the programs run under msrun

LIMIT = 400
"""Seconds for one launch with all its checks."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="session")
def launched(tmp_path_factory):
    """Run `ranks.py` under msrun once per number of processes; returns what every rank found, by name of the check.

    `checks` is a module with checks of its own, which get a launch of their own.
    """

    @functools.cache
    def launch(processes: int, checks: str = "checks") -> list[dict[str, str]]:
        folder = tmp_path_factory.mktemp(f"{checks}{processes}")
        tools = Path(sys.executable).parent
        msrun = tools / "msrun" if (tools / "msrun").exists() else shutil.which("msrun")
        assert msrun, "msrun, which comes with MindSpore, is not on PATH"
        environment = {
            **os.environ,
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",  # msrun starts `python` from there
            "PYTHONPATH": f"{HERE.parent.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "MG_TEST_CHECKS": checks,
            "OMP_NUM_THREADS": "1",
            "GLOG_v": "3",
        }
        # Now and then one worker's connection to the scheduler never comes about, and MindSpore's cluster gives up; the
        # results are opened once it stands.
        for _ in range(2):
            if list(folder.glob("result-*.jsonl")):
                break
            command = [
                str(msrun), f"--worker_num={processes}", f"--local_worker_num={processes}",
                f"--master_port={free_port()}", f"--log_dir={folder / 'logs'}", "--join=True", "--cluster_time_out=60",
                str(HERE / "ranks.py"), str(folder),
            ]  # fmt: skip
            started = subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.STDOUT)  # fmt: skip
            try:
                started.wait(LIMIT)
            except subprocess.TimeoutExpired:
                pass
            finally:
                for path in folder.glob("pid-*"):  # msrun, when ended, leaves its processes behind
                    try:
                        os.kill(int(path.read_text()), 9)
                    except ProcessLookupError:
                        pass
                    path.unlink(missing_ok=True)
                started.kill()
                started.wait()
        found = []
        for rank in range(processes):
            path = folder / f"result-{rank}.jsonl"
            rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
            log = folder / "logs" / f"worker_{rank}.log"
            tail = log.read_text(errors="replace")[-2000:] if log.exists() else "no log"
            missing = {"": f"rank {rank} did not come so far: {tail}"}
            found.append(missing | {row["check"]: row["found"] for row in rows})
        return found

    return launch

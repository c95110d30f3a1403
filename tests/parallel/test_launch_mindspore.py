"""The launcher with real MindSpore workers, and with `msrun` beside it."""

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mg.config.launch import LaunchConfig
from mg.parallel.launch import environment, worker_environment

WORKER = """
import os, signal, sys, time
import numpy as np
import mindspore as ms
from mindspore import ops
from mindspore.communication import get_group_size, get_rank, init
ms.set_device("CPU")
if "MS_ROLE" in os.environ:
    init()
    rank, world, reduce = get_rank(), get_group_size(), ops.AllReduce()
else:
    rank, world, reduce = 0, 1, lambda x: x
value = reduce(ms.Tensor(np.arange(3, dtype=np.float32) * (rank + 1)))
print("sum", rank, world, value.asnumpy().tolist(), flush=True)
if sys.argv[1] == "fail" and rank == 1:
    time.sleep(1)
    print("about to fail at", time.time(), flush=True)
    sys.exit(3)
stop = []
signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
while world > 1:  # one decision for all, however late a signal reaches one of them
    if reduce(ms.Tensor(np.float32([len(stop)]))).asnumpy()[0] > 0:
        break
    time.sleep(0.05)
print("stopped", rank, flush=True)
"""


@pytest.fixture
def start(root, tmp_path):
    """Start scripts/launch.py around WORKER; returns the process and the folder of logs."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)

    def call(processes, what):
        logs = tmp_path / "logs"
        command = [sys.executable, "scripts/launch.py", "--nproc_per_node", str(processes), "--log_dir", str(logs)]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*command, "--cluster_seconds", "100", str(script), what], cwd=root, stdout=pipe, stderr=pipe, text=True
        ), logs

    yield call


def pids_of(logs):
    return [entry["pid"] for entry in json.loads((logs / "node-0.json").read_text())["processes"]]


def gone(pids):
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.slow
def test_all_reduce_and_a_worker_that_fails(start):
    process, logs = start(2, "fail")
    out, err = process.communicate(timeout=150)
    assert "sum 0 2 [0.0, 3.0, 6.0]\n" in out
    assert process.returncode == 3, err
    [failed] = [line for line in err.splitlines() if "about to fail at" in line]
    assert time.time() - float(failed.split()[-1]) < 10  # rank 0 waited in an all-reduce, the scheduler for time-outs
    assert "sum 1 2 [0.0, 3.0, 6.0]" in (logs / "rank-00001.log").read_text()
    assert gone(pids_of(logs))


@pytest.mark.slow
def test_sigterm_lets_the_workers_agree_and_end(start):
    process, logs = start(2, "loop")
    end = time.monotonic() + 120
    while time.monotonic() < end and not all(
        path.exists() and "sum" in path.read_text() for path in (logs / "rank-00000.log", logs / "rank-00001.log")
    ):
        time.sleep(0.1)
    time.sleep(0.5)
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "stopped 0\n" in out and "stopped 1\n" in (logs / "rank-00001.log").read_text()
    assert time.monotonic() - sent < 10
    assert gone(pids_of(logs))


def test_the_same_script_runs_alone(start):
    process, _ = start(1, "loop")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "sum 0 1 [0.0, 1.0, 2.0]\n" in out


@pytest.mark.slow
def test_workers_get_the_variables_that_msrun_sets(tmp_path):
    script = tmp_path / "show.py"
    script.write_text("import os; print({name: value for name, value in os.environ.items()})")
    msrun = Path(sys.executable).with_name("msrun")
    before = dict(os.environ, PATH=f"{msrun.parent}{os.pathsep}{os.environ['PATH']}")
    result = subprocess.run(
        [msrun, "--worker_num=4", "--local_worker_num=2", "--node_rank=1", "--master_addr=127.0.0.1",
         "--master_port=18765", f"--log_dir={tmp_path}", "--join=True", "--cluster_time_out=77", script],
        env=before, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    config = LaunchConfig(
        nproc_per_node=2, nnodes=2, node_rank=1, master_addr="localhost.", master_port=18765, cluster_seconds=77
    )
    for local in (0, 1):
        shown = ast.literal_eval((tmp_path / f"worker_{2 + local}.log").read_text())
        added = {name: value for name, value in shown.items() if before.get(name) != value}
        ours = {**environment(config, "127.0.0.1", 18765), **worker_environment(config, local)}
        assert {name: added.get(name) for name in ours} == ours
        assert not {name for name in added if name.startswith(("MS_", "RANK", "DEVICE"))} - set(ours)

"""The launcher with plain Python workers: exit codes, signals, orphans, logs."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from mg.config.launch import LaunchConfig
from mg.errors import UserError
from mg.parallel import launch as module
from mg.parallel.launch import environment, launch, worker_environment
from mg.parallel.processes import Process

DRIVER = """
import json, os, signal, sys
from mg.config.launch import LaunchConfig
from mg.parallel.launch import launch
# Tests that run under nohup or in a script's background would pass on that these are ignored.
signal.signal(signal.SIGHUP, signal.SIG_IGN if "TEST_NOHUP" in os.environ else signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
config = LaunchConfig(**json.loads(sys.argv[1]))
sys.exit(launch(config, sys.argv[2:], scheduler=[sys.executable, "-c", "import time; time.sleep(600)"]))
"""
PREAMBLE = """
import os, signal, subprocess, sys, time
rank = int(os.environ.get("RANK_ID", "0"))
def ready():
    open(os.path.join(sys.argv[1], f"ready-{rank}"), "w").close()
def rest():
    while True:  # one long sleep would not be woken by a signal with a handler that came just before it
        time.sleep(0.1)
"""
LIMIT = 10.0
"""Seconds within which everything must have ended."""


STARTED: list["Launcher"] = []


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    """A test that fails half-way must not leave its launcher behind; the workers go with it."""
    yield
    for run in STARTED:
        run.process.kill()
    STARTED.clear()


class Launcher:
    """A launcher as a process of its own, around a worker given as source text."""

    def __init__(self, folder: Path, worker: str, **options: object) -> None:
        script = folder / "worker.py"
        script.write_text(PREAMBLE + textwrap.dedent(worker))
        (folder / "driver.py").write_text(DRIVER)
        self.folder, self.log_dir = folder, folder / "logs"
        options = {"nproc_per_node": 2, "log_dir": str(self.log_dir), **options}
        self.marker = f"mark-{os.getpid()}-{time.monotonic_ns()}"
        self.start = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, str(folder / "driver.py"), json.dumps(options), str(script), str(folder)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TEST_MARKER": self.marker},
        )  # fmt: skip
        STARTED.append(self)

    def wait(self) -> tuple[int, str, str]:
        try:
            out, err = self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            logs = "".join(f"{path.name}: {path.read_text()}\n" for path in sorted(self.log_dir.glob("*")))
            raise AssertionError(f"still running after 60 s\n{out}\n{err}\n{logs}") from None
        self.seconds = time.monotonic() - self.start
        return self.process.returncode, out, err

    def until_ready(self, ranks=(0, 1)) -> None:
        while not all((self.folder / f"ready-{rank}").exists() for rank in ranks):
            assert self.process.poll() is None, self.process.stderr.read()
            time.sleep(0.02)
        self.start = time.monotonic()

    def record(self) -> dict:
        return json.loads((self.log_dir / "node-0.json").read_text())

    def log(self, rank: int) -> str:
        return (self.log_dir / f"rank-{rank:05d}.log").read_text()

    def left(self) -> list[str]:
        """Command lines of living processes that carry this launcher's environment."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self.marker.encode() in path.read_bytes() and "zombie" not in (path.parent / "status").read_text():
                    found.append((path.parent / "cmdline").read_text())
            except OSError:
                continue
        return found


def test_all_ranks_run_with_their_logs_and_rank_0_on_the_terminal(tmp_path):
    names = ("MS_ROLE", "MS_WORKER_NUM", "MS_NODE_ID", "RANK_ID", "RANK_SIZE", "DEVICE_ID", "MS_SCHED_HOST")
    run = Launcher(tmp_path, f"print('here', *(os.environ[name] for name in {names}))", nproc_per_node=3)
    code, out, err = run.wait()
    assert code == 0, err
    assert out == "here MS_WORKER 3 0 0 3 0 127.0.0.1\n"
    assert [run.log(rank) for rank in (1, 2)] == [f"here MS_WORKER 3 {r} {r} 3 {r} 127.0.0.1\n" for r in (1, 2)]
    record = run.record()
    assert record["exit_code"] == 0 and record["world"] == 3
    assert [(entry["name"], entry["exit_code"]) for entry in record["processes"][:3]] == [
        ("rank 0", 0), ("rank 1", 0), ("rank 2", 0),
    ]  # fmt: skip
    assert not run.left()  # the scheduler, too, which would have gone on for ten minutes
    assert run.seconds < LIMIT


def test_a_failing_worker_ends_the_run_with_its_code_and_last_lines(tmp_path):
    run = Launcher(tmp_path, """
        if rank == 1:
            for line in range(30):
                print("line", line)
            sys.exit(3)
        time.sleep(600)
    """, tail_lines=4)  # fmt: skip
    code, out, err = run.wait()
    assert code == 3
    assert [line for line in err.splitlines() if line.startswith("[rank 1]")] == [
        f"[rank 1] line {line}" for line in (26, 27, 28, 29)
    ]
    assert "rank 1 ended with exit code 3" in err
    assert run.record()["reason"] == "rank 1 ended with exit code 3"
    assert run.seconds < LIMIT and not run.left()


def test_lines_of_rank_0_are_not_shown_twice(tmp_path):
    code, out, err = Launcher(tmp_path, "print('why', rank)\nif rank == 0: sys.exit(5)\ntime.sleep(600)").wait()
    assert code == 5 and out == "why 0\n" and "why" not in err


def test_a_killed_worker_gives_the_signals_code_and_one_that_ignores_sigterm_is_killed(tmp_path):
    run = Launcher(tmp_path, """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ready()
        time.sleep(600)
    """, grace_seconds=1.0)  # fmt: skip
    run.until_ready()
    os.kill(run.record()["processes"][1]["pid"], signal.SIGKILL)
    code, _, err = run.wait()
    assert code == 128 + signal.SIGKILL
    assert "rank 0 does not end; killed" in err
    assert 0.9 < run.seconds < LIMIT and not run.left()


def test_the_first_failure_counts_not_what_follows_from_it(tmp_path):
    code, _, _ = Launcher(tmp_path, """
        if rank == 1:
            sys.exit(4)
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
        rest()
    """).wait()  # fmt: skip
    assert code == 4


def test_of_failures_seen_at_once_a_code_of_its_own_counts():
    ordered = sorted([137, 1, 3, 134, 2], key=module._obscurity)
    assert ordered == [3, 2, 1, 137, 134]


@pytest.mark.parametrize(("number", "seen"), [
    (signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT"), (signal.SIGHUP, "SIGTERM"),
])  # fmt: skip
def test_signals_reach_the_workers_which_end_in_their_own_way(tmp_path, number, seen):
    run = Launcher(tmp_path, """
        def handler(number, frame):
            print("saved after", signal.Signals(number).name)
            sys.exit(0)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, handler)
        ready()
        rest()
    """)  # fmt: skip
    run.until_ready()
    run.process.send_signal(number)
    code, out, err = run.wait()
    assert code == 0, err
    assert out == f"saved after {seen}\n" == run.log(1)
    assert run.record()["reason"] == f"stopped by {number.name}"
    assert run.seconds < LIMIT and not run.left()


def test_under_nohup_the_end_of_the_terminal_is_not_passed_on(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_NOHUP", "1")
    run = Launcher(tmp_path, "ready()\nrest()")
    run.until_ready()
    run.process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    run.process.terminate()
    code, _, err = run.wait()
    assert code == 128 + signal.SIGTERM and "SIGTERM, passed on" in err and "SIGHUP" not in err


def test_sigusr1_is_passed_on_and_does_not_end_the_run(tmp_path):
    run = Launcher(tmp_path, """
        came = []
        signal.signal(signal.SIGUSR1, lambda number, frame: came.append(number))
        ready()
        while not came:
            time.sleep(0.02)
        time.sleep(0.5)
        sys.exit(75 if rank else 0)
    """, stop_seconds=0.0, grace_seconds=0.0)  # fmt: skip
    run.until_ready()
    run.process.send_signal(signal.SIGUSR1)
    assert run.wait()[0] == 75  # "start me again", not a failure: nothing was cut short
    assert [entry["exit_code"] for entry in run.record()["processes"][:2]] == [0, 75]


def test_workers_that_do_not_stop_are_killed_and_a_second_signal_makes_it_sooner(tmp_path):
    run = Launcher(tmp_path, """
        signal.signal(signal.SIGTERM, lambda number, frame: print("not yet"))
        ready()
        while True:
            time.sleep(1)
    """, grace_seconds=0.5)  # fmt: skip
    run.until_ready()
    run.process.terminate()
    time.sleep(1.0)
    assert run.process.poll() is None  # stop_seconds leaves them ten minutes
    run.process.terminate()
    code, out, _ = run.wait()
    assert code == 128 + signal.SIGKILL
    assert out == "not yet\nnot yet\n"
    assert run.seconds < LIMIT and not run.left()


def test_workers_without_a_handler_end_at_once(tmp_path):
    run = Launcher(tmp_path, "ready()\ntime.sleep(600)")
    run.until_ready()
    run.process.terminate()
    assert run.wait()[0] == 128 + signal.SIGTERM
    assert run.record()["reason"] == "stopped by SIGTERM"
    assert run.seconds < LIMIT and not run.left()


def test_grandchildren_in_sessions_of_their_own_are_ended_too(tmp_path):
    run = Launcher(tmp_path, """
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        sys.exit(3 * rank)
    """)  # fmt: skip
    assert run.wait()[0] == 3
    assert not run.left()


def test_a_killed_launcher_leaves_no_worker(tmp_path):
    run = Launcher(tmp_path, "ready()\ntime.sleep(600)")
    run.until_ready()
    assert len(run.left()) == 4  # launcher, scheduler, two workers
    run.process.kill()
    run.wait()
    end = time.monotonic() + LIMIT
    while run.left() and time.monotonic() < end:
        time.sleep(0.05)
    assert not run.left()


def test_a_slow_worker_is_waited_for(tmp_path):
    run = Launcher(tmp_path, "time.sleep(2.0 * rank)", grace_seconds=0.1, stop_seconds=0.1)
    assert run.wait()[0] == 0
    assert run.seconds > 2.0


def test_a_scheduler_that_fails_ends_the_run(tmp_path):
    config = LaunchConfig(nproc_per_node=2, log_dir=str(tmp_path))
    failing = [sys.executable, "-c", "print('port taken'); raise SystemExit(7)"]
    start = time.monotonic()
    assert launch(config, ["sleep", "600"], scheduler=failing) == 7
    assert time.monotonic() - start < LIMIT
    assert json.loads((tmp_path / "node-0.json").read_text())["reason"] == "scheduler ended with exit code 7"


def test_one_process_has_no_cluster_and_logs_are_appended_to(tmp_path):
    run = "print(sorted(name for name in os.environ if name.startswith('MS_') and name != 'MS_OM_PATH'), rank)"
    for _ in range(2):
        assert Launcher(tmp_path, run, nproc_per_node=1).wait()[:2] == (0, "[] 0\n")
    launcher = Launcher(tmp_path, "pass", nproc_per_node=1)
    launcher.wait()
    assert launcher.log(0) == "[] 0\n[] 0\n"


def test_last_lines_are_those_of_this_start_as_a_terminal_shows_them(tmp_path):
    log = tmp_path / "log"
    log.write_text("an earlier run\n")
    process = Process("x", ["printf", r"10%%\r50%%\r100%%\ndone\n\n"], os.environ, log)
    while process.code is None:
        time.sleep(0.01)
    assert process.last_lines(5) == ["100%", "done"]
    assert process.last_lines(1) == ["done"] and process.last_lines(0) == []


@pytest.fixture
def machines(tmp_path):
    """Start the launchers of several machines, all of them here; returns them."""
    with socket.socket() as free:
        free.bind(("127.0.0.2", 0))
        port = free.getsockname()[1]

    def call(worker, count=2, **options):
        folders = [tmp_path / str(node) for node in range(count)]
        started = []
        for node, folder in enumerate(folders):
            folder.mkdir()
            started.append(Launcher(
                folder, worker, nnodes=count, node_rank=node, master_addr="127.0.0.2", master_port=port, **options
            ))  # fmt: skip
        return started

    return call


def test_machines_have_ranks_in_order_and_the_first_waits_for_the_others(machines):
    first, second, third = machines("print('here', rank)\ntime.sleep(0.5 * rank)", count=3)
    assert second.wait()[0] == 0 and third.wait()[0] == 0
    code, out, _ = first.wait()
    assert code == 0 and out == "here 0\n"
    assert [third.log(rank) for rank in (4, 5)] == ["here 4\n", "here 5\n"]
    assert first.seconds > 2.5  # its scheduler may not end before the workers of the others
    assert not first.left() + second.left() + third.left()


@pytest.mark.parametrize("failing", [1, 2, 5])
def test_a_failure_on_one_machine_ends_all_with_its_code(machines, failing):
    started = machines(f"print('why')\nif rank == {failing}: sys.exit(3)\ntime.sleep(600)", count=3)
    for run in started:
        code, _, err = run.wait()
        assert code == 3 and f"rank {failing} ended with exit code 3" in err
        assert (f"[rank {failing}] why" in err) == (run is started[failing // 2])
        assert run.seconds < LIMIT and not run.left()


@pytest.mark.parametrize("killed", [0, 1])
def test_a_launcher_that_is_gone_ends_the_others(machines, killed):
    started = machines("ready()\ntime.sleep(600)")
    for node, run in enumerate(started):
        run.until_ready((2 * node, 2 * node + 1))
    time.sleep(1.0)  # the second has reached the first
    started[killed].process.kill()
    started[killed].wait()
    code, _, err = started[1 - killed].wait()
    assert code == 1 and f"the launcher of machine {killed} ended with exit code 1" in err
    assert started[1 - killed].seconds < LIMIT and not started[1 - killed].left()


def test_a_first_machine_that_never_comes_is_given_up(tmp_path):
    options = {"nnodes": 2, "node_rank": 1, "master_addr": "127.0.0.2", "master_port": 9, "cluster_seconds": 1}
    code, _, err = Launcher(tmp_path, "time.sleep(600)", **options).wait()
    assert code == 1 and "the way to machine 0 (127.0.0.2:10: " in err


def test_ranks_of_several_machines():
    config = LaunchConfig(
        nproc_per_node=4, nnodes=3, node_rank=2, master_addr="10.0.0.1", master_port=9000, cluster_seconds=30
    )
    assert config.world == 12
    assert environment(config, "10.0.0.1", 9000) == {
        "MS_WORKER_NUM": "12", "MS_SCHED_HOST": "10.0.0.1", "MS_SCHED_PORT": "9000", "MS_TOPO_TIMEOUT": "30",
        "RANK_SIZE": "12",
    }  # fmt: skip
    assert worker_environment(config, 3) == {
        "MS_ROLE": "MS_WORKER", "MS_NODE_ID": "11", "RANK_ID": "11", "DEVICE_ID": "3"
    }


def test_a_taken_port_is_refused(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = LaunchConfig(nproc_per_node=2, master_port=port, log_dir=str(tmp_path))
        with pytest.raises(UserError, match=f"master_port={port}: Address already in use; choose another port"):
            launch(config, ["true"])


@pytest.mark.parametrize(("command", "message"), [
    ([], "no script to run"),
    (["missing.py"], "missing.py: no such script"),
    (["no-such-program-anywhere"], "no such program"),
])  # fmt: skip
def test_what_cannot_be_started_is_refused(tmp_path, command, message):
    with pytest.raises(UserError, match=message):
        launch(LaunchConfig(nproc_per_node=2, log_dir=str(tmp_path)), command)

"""Start the processes of a parallel run, pass signals on to them, and end all of them when one fails.

The processes find each other by MindSpore's dynamic cluster: environment variables and a scheduler process. `msrun`
does the same with the same variables, but loses exit codes, waits for the scheduler's time-outs after a failure, and
leaves its workers behind when it is ended by a signal; here the launcher is the parent of all processes.
"""

import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from types import FrameType

from mg.config.launch import LaunchConfig
from mg.errors import EXIT_RESTART, UserError
from mg.files import writable_folder, write_json
from mg.log import get_logger
from mg.parallel.nodes import Failure, Nodes
from mg.parallel.processes import Follower, Process, adopt_orphans, end_descendants

SCHEDULER = (sys.executable, "-c", "from mindspore.communication import init; init()")
"""The process that introduces the workers to each other; it runs nothing of the training script."""

_LOOK_SECONDS = 0.05
_ORDERLY = (0, EXIT_RESTART)
"""Exit codes of a process that has finished, or saved and wants to be started again: the others may do the same."""
_PASSED_ON = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGINT: signal.SIGINT,
    signal.SIGUSR1: signal.SIGUSR1,
    signal.SIGUSR2: signal.SIGUSR2,
    signal.SIGHUP: signal.SIGTERM,  # the terminal is gone; workers know SIGTERM
}
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def launch(config: LaunchConfig, command: Sequence[str], scheduler: Sequence[str] = SCHEDULER) -> int:
    """Run a command as the processes of this machine and return the exit code of the run.

    That is 0 if all processes ended with 0, else the code of the process that failed first (128 + n if signal n
    ended it; of several found at once one with a code of its own rather than a signal's or 1). With one process
    there is no cluster: the command runs as it would by itself. It is meant for a process of its own: at the end every
    descendant of this process is killed, whoever started it.

    Args:
        config: number of processes, address, folder of logs, time limits.
        command: program and arguments; a name that ends in .py is run by this Python.
        scheduler: command of the scheduler process, started on machine 0.

    Raises:
        UserError: no such script, a port that is taken, an unknown host, or a folder that cannot be written.
    """
    command = _command(command)
    config = located(config)
    host, port = _meeting_point(config)
    folder = writable_folder(config.log_dir, "log_dir")
    nodes = Nodes(
        node=config.node_rank, count=config.nnodes, host=host, port=port + 1, seconds=config.cluster_seconds
    )
    adopt_orphans()
    run = _Run(config=config, nodes=nodes)
    with _signals(run.signals):
        try:
            run.start(command, scheduler, folder, environment(config, host, port))
            run.record(folder, command)
            code = run.watch()
        finally:
            left = end_descendants(config.grace_seconds)
            nodes.close()
            run.close()
    if left:
        get_logger().warning("processes that could not be killed: %s", ", ".join(map(str, left)))
    run.report()
    try:
        run.record(folder, command, exit_code=code)
    except UserError as error:  # the exit code matters more than its record
        get_logger().warning("%s", error)
    return code


def located(config: LaunchConfig) -> LaunchConfig:
    """Return the configuration with the machines that its `hosts_file` names.

    Raises:
        UserError: the file cannot be read, or does not name this machine.
    """
    if config.hosts_file is None:
        return config
    try:
        record = json.loads(Path(config.hosts_file).read_text("utf-8"))
        hosts = sorted(record["hosts"])  # the same order on all of them
        rank = hosts.index(record["current_host"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'hosts_file={config.hosts_file}: {error}; give a JSON file with "hosts" and "current_host", one of them'
        ) from error
    address = hosts[0] if len(hosts) > 1 else config.master_addr
    return replace(config, hosts_file=None, nnodes=len(hosts), node_rank=rank, master_addr=address)


def environment(config: LaunchConfig, host: str, port: int) -> dict[str, str]:
    """Return the variables that all processes of a run share; empty for a run of one process."""
    if config.world == 1:
        return {}
    return {
        "MS_WORKER_NUM": str(config.world),
        "MS_SCHED_HOST": host,
        "MS_SCHED_PORT": str(port),
        "MS_TOPO_TIMEOUT": str(config.cluster_seconds),
        "RANK_SIZE": str(config.world),
    }


def worker_environment(config: LaunchConfig, local: int) -> dict[str, str]:
    """Return the variables of one worker, the local-th of this machine; empty for a run of one process."""
    if config.world == 1:
        return {}
    rank = str(config.node_rank * config.nproc_per_node + local)
    return {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": rank, "RANK_ID": rank, "DEVICE_ID": str(local)}


@dataclass(kw_only=True)
class _Run:
    """The processes of this machine, from their start to their end."""

    config: LaunchConfig
    nodes: Nodes
    """The launchers on the other machines."""
    signals: list[int] = field(default_factory=list)
    """Signals that have come and were not yet passed on."""
    workers: list[Process] = field(default_factory=list)
    scheduler: Process | None = None
    reason: str = "all processes ended with 0"
    _failed: Failure | None = None
    _process: Process | None = None
    """The one that failed, where it is of this machine."""
    _deadline: float = float("inf")
    """When what is left is killed."""
    _stopping: bool = False
    _follower: Follower | None = None
    _started: str = field(default_factory=lambda: datetime.now().astimezone().isoformat(timespec="seconds"))

    def start(self, command: list[str], scheduler: Sequence[str], folder: Path, shared: Mapping[str, str]) -> None:
        """Start the scheduler (on machine 0 of a run of several processes) and the workers."""
        config = self.config
        # Unbuffered, or the last lines of a process that is killed would be lost.
        common = {**os.environ, "PYTHONUNBUFFERED": "1", **shared}
        if config.world > 1 and config.node_rank == 0:
            variables = {**common, "MS_ROLE": "MS_SCHED", "RANK_ID": "0"}
            self.scheduler = Process("scheduler", scheduler, variables, folder / "scheduler.log")
        for local in range(config.nproc_per_node):
            rank = config.node_rank * config.nproc_per_node + local
            variables = {**common, **worker_environment(config, local)}
            log = folder / f"rank-{rank:05d}.log"
            self.workers.append(Process(f"rank {rank}", command, variables, log))
        if config.node_rank == 0:
            self._follower = Follower(self.workers[0].log, self.workers[0].start_of_log, sys.stdout.buffer)
        here = f"{config.nproc_per_node} of " if config.nnodes > 1 else ""
        many = f"{here}{config.world} process{'es' if config.world > 1 else ''}"
        where = f", meeting at {shared['MS_SCHED_HOST']}:{shared['MS_SCHED_PORT']}" if shared else ""
        get_logger().info("launcher: %s%s, logs in %s", many, where, folder)

    def watch(self) -> int:
        """Wait for the end of all workers, on machine 0 also for the other machines; return the run's exit code."""
        while any(worker.code is None for worker in self.workers) or self.nodes.waiting:
            self._pass_on_signals()
            self._look_for_failures()
            if time.monotonic() > self._deadline:
                self._kill()
                break
            time.sleep(_LOOK_SECONDS)
        self._look_for_failures()
        if self._failed is not None:
            return self._failed.code
        return next((code for worker in self.workers if (code := worker.code)), 0)

    def close(self) -> None:
        """Show the rest of what rank 0 printed."""
        if self._follower is not None:
            self._follower.close()

    def report(self) -> None:
        """Show the last lines of the process that failed, unless they are on the terminal already."""
        if self._failed is None:
            return
        process, log = self._process, ""
        if process is not None:
            log = f"; its log is {process.log}"
            if process is not self.workers[0] or self._follower is None:
                for line in process.last_lines(self.config.tail_lines):
                    print(f"[{process.name}] {line}", file=sys.stderr)
        get_logger().error("launcher: %s ended with exit code %d%s", self._failed.name, self._failed.code, log)

    def record(self, folder: Path, command: Sequence[str], exit_code: int | None = None) -> None:
        """Write node-N.json: who runs, or how it ended."""
        value = {
            "command": list(command),
            "nnodes": self.config.nnodes,
            "world": self.config.world,
            "launcher": os.getpid(),
            "host": socket.gethostname(),
            "started": self._started,
            "processes": [
                {"name": process.name, "pid": process.pid, "log": process.log.name, "exit_code": process.code}
                for process in (*self.workers, *filter(None, [self.scheduler]))
            ],
            "exit_code": exit_code,
            "reason": None if exit_code is None else self.reason,
        }
        write_json(folder / f"node-{self.config.node_rank}.json", value)

    def _pass_on_signals(self) -> None:
        while self.signals:
            number = signal.Signals(self.signals.pop(0))
            again = self._stopping and number in _STOPS
            get_logger().info("launcher: %s, passed on to the workers", number.name)
            for worker in self.workers:
                worker.send(_PASSED_ON[number])
            if number in _STOPS:
                self.reason = f"stopped by {number.name}"
                self._end_within(self.config.grace_seconds if again else self.config.stop_seconds)
                self._stopping = True

    def _look_for_failures(self) -> None:
        if self._failed is not None:
            return
        found = [(worker, code) for worker in self.workers if (code := worker.code) not in (None, *_ORDERLY)]
        if not found and self.scheduler is not None and (code := self.scheduler.code):
            # Ended by a signal or an error of its own: the workers would wait for it until a time-out.
            found = [(self.scheduler, code)]
        if found:
            self._process, code = min(found, key=lambda item: _obscurity(item[1]))
            self.nodes.fail(Failure(self._process.name, code))
        self._failed = self.nodes.look()
        if self._failed is not None:
            self._end_others(self._failed)

    def _end_others(self, failed: Failure) -> None:
        by_signal = self._stopping and failed.code in (128 + signal.SIGTERM, 128 + signal.SIGINT)
        if not by_signal:
            self.reason = f"{failed.name} ended with exit code {failed.code}"
        others = [worker for worker in self.workers if worker.code is None]
        if others:
            get_logger().error(
                "launcher: %s ended with exit code %d; ending the other %d", failed.name, failed.code, len(others)
            )
        for worker in others:
            if not self._stopping:  # they have had a signal then, and a second one ends some programs at once
                worker.send(signal.SIGTERM)
        self._end_within(self.config.grace_seconds)

    def _end_within(self, seconds: float) -> None:
        self._deadline = min(self._deadline, time.monotonic() + seconds)

    def _kill(self) -> None:
        for worker in self.workers:
            if worker.code is None:
                get_logger().warning("launcher: %s does not end; killed", worker.name)
                worker.send(signal.SIGKILL)
                worker.wait()


def _obscurity(code: int) -> int:
    """How little an exit code says: one of the project's own, Python's 1, a signal's."""
    return 2 if code > 128 else 1 if code == 1 else 0


def _command(command: Sequence[str]) -> list[str]:
    if not command:
        raise UserError("no script to run; give it after the options: scripts/launch.py --nproc_per_node 2 SCRIPT ...")
    if not command[0].endswith(".py"):
        if shutil.which(command[0]) is None:
            raise UserError(f"{command[0]}: no such program; give a script's path, or a program after --")
        return list(command)
    if not Path(command[0]).is_file():
        raise UserError(f"{command[0]}: no such script; give the path of an existing one")
    return [sys.executable, *command]


def _meeting_point(config: LaunchConfig) -> tuple[str, int]:
    """Return address and port of the scheduler; on machine 0 the port is known to be free."""
    try:
        found = socket.getaddrinfo(config.master_addr, config.master_port or None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise UserError(f"master_addr={config.master_addr}: {error.strerror}; give a name or address") from error
    family, kind, _, _, address = found[0]
    if config.node_rank or config.world == 1:
        return address[0], config.master_port
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise UserError(
                f"master_addr={config.master_addr}, master_port={config.master_port}: {error.strerror}; choose another "
                "port, or 0 for a free one, and an address of this machine"
            ) from error
        return address[0], probe.getsockname()[1]


@contextmanager
def _signals(came: list[int]) -> Iterator[None]:
    """Collect the signals that are passed on; those that are ignored (nohup) stay ignored."""

    def handler(number: int, frame: FrameType | None) -> None:
        came.append(number)

    kept = [number for number in _PASSED_ON if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in kept}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)

"""Configuration of `scripts/launch.py`."""

from dataclasses import dataclass

from mg.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """Which processes of a run this machine starts, and where they meet; raises UserError for values out of range."""

    nproc_per_node: int
    """Processes on each machine: one per card, or a few on a CPU."""
    nnodes: int = 1
    """Machines; the same command is started on each, with its own node_rank."""
    node_rank: int = 0
    """Number of this machine, 0 and up; machine 0 is the one at master_addr."""
    master_addr: str = "127.0.0.1"
    """Address of machine 0, by which all machines reach it."""
    master_port: int = 0
    """Port on machine 0 where the processes meet; 0: any free one (one machine only). With several machines
    the launchers use the port after it, to tell each other of failures."""
    hosts_file: str | None = None
    """JSON file with `hosts`, the names of all machines, and `current_host`, as a cloud service writes it on each of
    them; it stands for nnodes, node_rank and master_addr."""
    log_dir: str = "outputs/launch"
    """Folder for what each process prints (rank-00000.log and so on; appended to) and for node-0.json, the record of
    processes and exit codes. Rank 0 is shown on the terminal, too."""
    cluster_seconds: int = 600
    """How long the processes may take until all of them have met."""
    grace_seconds: float = 5.0
    """After a failure, and after a second signal: time for the other processes to end before they are killed."""
    stop_seconds: float = 600.0
    """After SIGTERM or Ctrl-C: time for the processes to save and end before they are killed."""
    tail_lines: int = 20
    """Lines of a failed process that are shown."""

    def __post_init__(self) -> None:
        """Check ranges and what several machines need."""
        for name, least in (("nproc_per_node", 1), ("nnodes", 1), ("cluster_seconds", 1), ("tail_lines", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: give at least {least}")
        for name in ("grace_seconds", "stop_seconds"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name}={getattr(self, name)}: give a number of seconds, 0 or above")
        if self.hosts_file is not None and (self.nnodes, self.node_rank) != (1, 0):
            raise UserError("hosts_file says which machines there are; leave nnodes and node_rank out")
        if not 0 <= self.node_rank < self.nnodes:
            raise UserError(f"node_rank={self.node_rank}: with nnodes={self.nnodes} choose 0 to {self.nnodes - 1}")
        if not 0 <= self.master_port < 65535:
            raise UserError(f"master_port={self.master_port}: choose 1 to 65534, or 0 for a free one")
        if self.nnodes > 1 and self.master_port == 0:
            raise UserError(f"nnodes={self.nnodes} needs --master_port, a port that is free on machine 0")
        if self.nnodes > 1 and self.master_addr in ("127.0.0.1", "localhost", "::1"):
            raise UserError(
                f"nnodes={self.nnodes} needs --master_addr, the address by which the other machines reach machine 0"
            )

    @property
    def world(self) -> int:
        """Processes on all machines."""
        return self.nnodes * self.nproc_per_node

"""Run a script as several processes: scripts/launch.py --nproc_per_node 8 scripts/train.py --config ...

The script and its own options come after those of the launcher; any program can follow `--`. Each process writes to a
file of its own in --log_dir, rank 0 to the terminal, too. Signals are passed on to the processes. When one of them
fails, its last lines are shown, the others are ended, and its exit code is the launcher's.
"""

from mg.config import cli
from mg.config.launch import LaunchConfig


def main(argv: list[str]) -> int:
    """Parse, start the processes, and return the exit code of the run."""
    starts = [number for number, word in enumerate(argv) if word == "--" or word.endswith(".py")]
    own = argv[: starts[0]] if starts else argv
    command = argv[len(own) :]
    config = cli.parse(LaunchConfig, own, description=__doc__)
    from mg.parallel.launch import launch

    return launch(config, command[1:] if command[:1] == ["--"] else command)


if __name__ == "__main__":
    cli.run(main)

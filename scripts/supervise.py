"""Keep a training running: scripts/supervise.py scripts/train.py --config ... --output_path outputs/run

The script and its own options come after those of the supervisor; any program can follow `--`. The command is started
again when it ends by a crash, a hang, a signal or because its time is over (exit code 75), unless it makes no progress.
It is not started again when it is complete or would end the same way: exit codes 0, 2, 3 and 5.
"""

import sys

from mg.config import cli
from mg.config.supervise import SuperviseConfig


def main(argv: list[str]) -> int:
    """Parse, run the command as often as it takes, and return its last exit code."""
    starts = [number for number, word in enumerate(argv) if word == "--" or word.endswith(".py")]
    own = argv[: starts[0]] if starts else argv
    command = argv[len(own) :]
    config = cli.parse(SuperviseConfig, own, description=__doc__)
    from mg.parallel.supervise import supervise

    if command[:1] == ["--"]:
        return supervise(config, command[1:])
    return supervise(config, [sys.executable, *command] if command else [])


if __name__ == "__main__":
    cli.run(main)

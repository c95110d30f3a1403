"""Train the transformer on latents and texts, or go on with a run found in --output_path."""

from pathlib import Path

from mg.config import cli
from mg.config.train import TrainConfig
from mg.errors import EXIT_RESTART
from mg.pipelines.interrupts import held


def main(argv: list[str]) -> int:
    """Parse, train, report; return the exit code."""
    config = cli.parse(TrainConfig, argv, description=__doc__)
    with held():
        from mg.pipelines.train import CONFIG_RECORD, FINAL_FOLDER, train  # after parsing: imports MindSpore

    figures = train(config)
    stopped, step, restart = figures.pop("stopped"), figures.pop("step"), figures.pop("restart")
    steps = figures.pop("steps")
    ending = "; stopped early, the same command goes on from there" if stopped else ""
    print(f"step {step}/{steps}{ending}")
    for name, value in figures.items():
        print(f"{name}: {value:.6g}" if isinstance(value, float) else f"{name}: {value}")
    folder = Path(config.output_path)
    print(f"weights are in {folder / FINAL_FOLDER}, logs, {CONFIG_RECORD} and checkpoints beside it")
    return EXIT_RESTART if restart else 0


if __name__ == "__main__":
    cli.run(main)

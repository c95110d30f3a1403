"""Train the temporal autoencoder, or go on with a run found in --output_path."""

from pathlib import Path

from mg.config import cli
from mg.config.tae_train import TaeTrainConfig
from mg.files import write_text


def main(argv: list[str]) -> None:
    """Parse, train, keep the options beside the weights, report."""
    config = cli.parse(TaeTrainConfig, argv, description=__doc__)
    from mg.pipelines.train_tae import FINAL_WEIGHTS, train_tae  # after parsing: this imports MindSpore

    figures = train_tae(config)
    folder = Path(config.output_path)
    write_text(folder / "config.yaml", cli.dump(config))  # only now: a refused run must not replace another's record
    stopped, step = figures.pop("stopped"), figures.pop("step")
    ending = "; stopped early, the same command goes on from there" if stopped else ""
    print(f"step {step}/{config.train.steps}{ending}")
    for name, value in figures.items():
        print(f"{name}: {value:.6g}" if isinstance(value, float) else f"{name}: {value}")
    print(f"weights: {folder / FINAL_WEIGHTS}")


if __name__ == "__main__":
    cli.run(main)

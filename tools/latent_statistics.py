"""Measure mean and spread of an autoencoder's latents; store the factors that normalise them with its weights."""

from mg.config import cli
from mg.config.latent_statistics import LatentStatisticsConfig
from mg.pipelines.interrupts import held, sigterm_as_ctrl_c


def main(argv: list[str]) -> None:
    """Parse, measure, report."""
    config = cli.parse(LatentStatisticsConfig, argv, description=__doc__)
    with held():
        from mg.pipelines.latent_statistics import latent_statistics  # after parsing: imports MindSpore
    with sigterm_as_ctrl_c():
        report = latent_statistics(config)
    print(f"{report['rows']} videos and pictures: {report['encoded']} used, {report['skipped']} skipped")
    for shape, number in report["shapes"].items():
        print(f"{number:8d} of {shape} (frames x height x width)")
    spread = "samples' spread included" if report["samples"] else "means only"
    print(f"latents: mean {report['mean']:.4f}, standard deviation {report['std']:.4f} ({spread}), "
          f"{report['values']} values")
    print("channel      mean       std")
    for number, channel in enumerate(report["channels"]):
        print(f"{number:7d} {channel['mean']:9.4f} {channel['std']:9.4f}")
    for name in ("scaling_factor", "shift_factor"):
        print(f"{name} {report[name]:g} (the weights had {report['stored'][name]:g})")
    if config.write is not None:
        print(f"weights with these factors are in {config.write}; encode with them what a transformer is trained on")


if __name__ == "__main__":
    cli.run(main)

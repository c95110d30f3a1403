"""Encode videos and pictures into latents of the temporal autoencoder, or decode latents into videos."""

from mg.config import cli
from mg.config.encode_latents import EncodeLatentsConfig
from mg.pipelines.interrupts import held, sigterm_as_ctrl_c


def main(argv: list[str]) -> None:
    """Parse, encode or decode, report."""
    config = cli.parse(EncodeLatentsConfig, argv, description=__doc__)
    with held():  # after parsing: these import MindSpore
        if config.latent_data.folder:
            from mg.pipelines.decode_latents import decode_latents as work
        else:
            from mg.pipelines.encode_latents import encode_videos as work
    with sigterm_as_ctrl_c():
        report = work(config)
    if config.latent_data.folder:
        print(f"{report['rows']} latents: {report['decoded']} decoded, {report['skipped']} skipped")
        print(f"videos are in {config.output_path}")
        return
    counts = ", ".join(f"{report[name]} {name}" for name in ("encoded", "duplicates", "reused", "skipped"))
    print(f"{report['rows']} videos: {counts}")
    for shape, number in report["shapes"].items():
        print(f"{number:8d} of {shape} (frames x height x width)")
    if report["statistics"]:
        print("latents: mean {mean:.4f}, standard deviation {std:.4f}".format(**report["statistics"]))
    print(f"latents are in {config.output_path}")


if __name__ == "__main__":
    cli.run(main)

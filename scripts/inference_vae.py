"""Reconstruct videos with the temporal autoencoder and measure PSNR and SSIM."""

from mg.config import cli
from mg.config.reconstruct import ReconstructConfig


def main(argv: list[str]) -> None:
    """Parse, reconstruct, report."""
    config = cli.parse(ReconstructConfig, argv, description=__doc__)
    from mg.pipelines.reconstruct import reconstruct  # after parsing: this imports MindSpore

    report = reconstruct(config)
    width = max(len(row["video"]) for row in report["clips"])
    for row in report["clips"]:
        print(f"{row['video']:<{width}}  {row['frames']:4d} x {row['height']} x {row['width']}"
              f"  PSNR {row['psnr']} dB  SSIM {row['ssim']}")
    for row in report["bad"]:
        print(f"{row['video']:<{width}}  skipped: {row['error']}")
    mean = report["mean"]
    print(f"{'mean':<{width}}  PSNR {mean['psnr']} dB  SSIM {mean['ssim']}")
    print(f"videos, pictures and metrics are in {config.output_path}")


if __name__ == "__main__":
    cli.run(main)

"""Reconstruct videos with the temporal autoencoder and measure PSNR and SSIM."""

from mg.config import cli
from mg.config.reconstruct import ReconstructConfig
from mg.pipelines.interrupts import held, sigterm_as_ctrl_c


def main(argv: list[str]) -> None:
    """Parse, reconstruct, report."""
    config = cli.parse(ReconstructConfig, argv, description=__doc__)
    with held():
        from mg.pipelines.reconstruct import reconstruct  # after parsing: this imports MindSpore

    with sigterm_as_ctrl_c():
        report = reconstruct(config)
    width = max(len(row["video"]) for row in (*report["clips"], *report["bad"], {"video": "mean"}))
    for row in report["clips"]:
        print(f"{row['video']:<{width}}  {row['frames']:4d} x {row['height']} x {row['width']}  {_figures(row)}")
    for row in report["bad"]:
        print(f"{row['video']:<{width}}  skipped: {row['error']}")
    print(f"{'mean':<{width}}  {_figures(report['mean'])}")
    print(f"videos, pictures and metrics are in {config.output_path}")


def _figures(row: dict) -> str:
    # None: of equal clips (infinite), or of frames smaller than the SSIM's window.
    psnr, ssim = ("-" if row[key] is None else f"{row[key]:.{digits}f}" for key, digits in (("psnr", 2), ("ssim", 4)))
    lpips = f"  LPIPS {row['lpips']:.4f}" if row.get("lpips") is not None else ""
    return f"PSNR {psnr} dB  SSIM {ssim}{lpips}"


if __name__ == "__main__":
    cli.run(main)

"""What parts of the autoencoder bring: short trainings that differ in one thing each, and a table of their figures.

Every variant is a run of scripts/train_tae.py with the same data, seed and steps. The rows after the first differ from
it by one option: the outlier penalty, the latent channels, or whatever --variants names. PSNR and SSIM (and LPIPS, with
--loss.perceptual_path) are those of the validation at the end; `seconds` is the whole run, compilation included.
"""

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path

from mg.config import cli
from mg.config.tae_train import TaeTrainConfig
from mg.errors import UserError
from mg.files import write_json, write_text

FIGURES = ("rec", "kl", "val_psnr", "val_ssim", "val_lpips")


@dataclass(frozen=True, kw_only=True)
class Settings(TaeTrainConfig):
    """Options of the benchmark: those of scripts/train_tae.py, of the first variant, and the differences."""

    output_path: str = "outputs/tae-ablation"
    """Folder; each variant trains in one of its own inside, and a second call goes on from there."""
    variants: tuple[str, ...] = field(
        default=("loss.outlier_weight=1e5", "model.z_channels=4", "model.z_channels=8")
    )
    """Differences to the first variant, one option each: loss.outlier_weight=1e5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.valid.csv_path is None:
            raise UserError("--valid.csv_path is missing; name a CSV of clips to measure")
        for variant in self.variants:
            if "=" not in variant:
                raise UserError(f"--variants {variant}: give option=value, loss.outlier_weight=1e5 for instance")


def config_of(settings: Settings, variant: str | None, folder: str) -> TaeTrainConfig:
    """Return the configuration of one variant; None: the first.

    Raises:
        UserError: no such option, or a value it does not take.
    """
    names = [field.name for field in dataclasses.fields(TaeTrainConfig)]
    first = TaeTrainConfig(**{name: getattr(settings, name) for name in names} | {"output_path": folder})
    if variant is None:
        return first
    path = Path(folder) / "base.yaml"
    write_text(path, cli.dump(first))
    return cli.parse(TaeTrainConfig, ["--config", str(path), f"--{variant}"])


def table(rows: list[dict]) -> str:
    """Return the rows as a Markdown table; columns that no row has are left out."""
    columns = ["variant", *(name for name in FIGURES if any(name in row for row in rows)), "seconds"]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [row.get(name, "") for name in columns]
        texts = (f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells)
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Parse, check all variants, train one after the other, print the table."""
    settings = cli.parse(Settings, argv, description=__doc__)
    configs = {}
    for variant in (None, *settings.variants):
        name = variant or "first"
        folder = Path(settings.output_path) / name.replace("/", "_")
        configs[name] = config_of(settings, variant, str(folder))
    from mg.pipelines.train_tae import train_tae

    rows = []
    for name, config in configs.items():
        start = time.perf_counter()
        figures = train_tae(config)
        rows.append({"variant": name} | {key: float(figures[key]) for key in FIGURES if key in figures})
        rows[-1]["seconds"] = round(time.perf_counter() - start)
    write_json(Path(settings.output_path) / "ablation.json", rows)
    print(table(rows))


if __name__ == "__main__":
    cli.run(main)

"""Encode prompts with a text encoder (UL2, MetaCLIP or ByT5) and store the embeddings."""

from mg.config import cli
from mg.config.encode_text import EncodeTextConfig
from mg.pipelines.interrupts import held, sigterm_as_ctrl_c


def main(argv: list[str]) -> None:
    """Parse, encode, report."""
    config = cli.parse(EncodeTextConfig, argv, description=__doc__)
    with held():
        from mg.pipelines.encode_text import run  # after parsing: this imports MindSpore

    with sigterm_as_ctrl_c():
        report = run(config)
    counts = ", ".join(f"{report[name]} {name}" for name in ("encoded", "duplicates", "reused", "skipped"))
    print(f"{report['rows']} rows: {counts}")
    print(f"embeddings of {report['encoder']['kind']} are in {config.output_path}")


if __name__ == "__main__":
    cli.run(main)

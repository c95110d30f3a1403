"""Put a trained transformer, its autoencoder and its text encoders into one folder for scripts/inference.py."""

from mg.config import cli
from mg.config.make_pipeline import MakePipelineConfig


def main(argv: list[str]) -> None:
    """Parse, put together, report."""
    config = cli.parse(MakePipelineConfig, argv, description=__doc__)
    from mg.pipelines.make_pipeline import make_pipeline  # after parsing: this imports MindSpore

    pipeline = make_pipeline(config)
    encoders = ", ".join(pipeline.text_encoders) or "none"
    print(f"pipeline in {config.output_path}; text encoders: {encoders}")


if __name__ == "__main__":
    cli.run(main)

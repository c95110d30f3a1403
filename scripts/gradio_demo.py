"""Serve a page that turns prompts into videos."""

import importlib.util

from mg.config import cli
from mg.config.demo import DemoConfig
from mg.errors import UserError
from mg.pipelines.interrupts import held


def main(argv: list[str]) -> None:
    """Parse, load, serve."""
    config = cli.parse(DemoConfig, argv, description=__doc__)
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the demo needs Gradio: pip install 'gradio>=5,<6'")
    with held():
        from mg.pipelines.demo_app import DemoApp, serve  # after parsing: this imports MindSpore

    serve(DemoApp.load(config))


if __name__ == "__main__":
    cli.run(main)

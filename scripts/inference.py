"""Generate videos from prompts."""

from mg.config import cli
from mg.config.generate import GenerateConfig, join_prompts
from mg.pipelines.interrupts import held, sigterm_as_ctrl_c


def main(argv: list[str]) -> None:
    """Parse, generate, report."""
    config = cli.parse(GenerateConfig, join_prompts(argv), description=__doc__)
    with held():
        from mg.pipelines.generate import generate  # after parsing: this imports MindSpore

    with sigterm_as_ctrl_c():
        report = generate(config)
    for row in report["videos"]:
        print(f"{row['file']}  seed {row['seed']}  {row['prompt']}")
    for row in report["bad"]:
        print(f"skipped: row {row['row']} {row['error']}")
    print(f"{len(report['videos'])} made in {report['seconds']:.1f} s; they and videos.json are in {report['folder']}")


if __name__ == "__main__":
    cli.run(main)

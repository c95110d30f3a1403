"""Plan a parallel training: memory, communication and predicted time of every layout of the devices.

Everything is computed from formulas and from the stated figures of a device; put in your own.
"""

from mg.config import cli
from mg.config.plan import PlanConfig


def main(argv: list[str]) -> None:
    """Parse, compute, print the table and write the JSON."""
    config = cli.parse(PlanConfig, _square(argv), description=__doc__)
    from mg.files import write_json
    from mg.parallel.plan import make_plan, table

    plan = make_plan(config)
    print("\n".join(table(plan)))
    if config.output is not None:
        write_json(config.output, plan.to_dict())
        print(f"all layouts are in {config.output}")


def _square(argv: list[str]) -> list[str]:
    """`--size 768` is 768 x 768."""
    words = list(argv)
    for place, word in enumerate(words):
        after = words[place + 1 : place + 3]
        if word == "--size" and after and after[0].isdigit() and not (len(after) > 1 and after[1].isdigit()):
            words.insert(place + 1, after[0])
        elif word.startswith("--size=") and word[len("--size=") :].isdigit():
            words[place] = f"--size=[{word[len('--size=') :]},{word[len('--size=') :]}]"
    return words


if __name__ == "__main__":
    cli.run(main)

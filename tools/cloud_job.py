"""Print the description of a training job for Amazon SageMaker; nothing is sent.

tools/cloud_job.py OPTIONS scripts/train.py --config ... > job.json, then
aws sagemaker create-training-job --cli-input-json file://job.json
"""

import argparse
import json
from typing import NoReturn

from mg.config import cli
from mg.errors import UserError


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line as one line, as every other user error."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    starts = [number for number, word in enumerate(argv) if word.endswith(".py")]
    own = argv[: starts[0]] if starts else argv
    parser = _Parser(prog="cloud_job.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--job_name", required=True, help="unique in your account; also the run's folder in --output")
    add("--image", required=True, help="container image whose working directory is this project, with its environment")
    add("--role", required=True, metavar="ARN", help="role that may read the data and write the output")
    add("--instance_type", required=True, help="such as ml.c7i.8xlarge")
    add("--instance_count", type=int, default=1, help="machines (1)")
    add("--processes", type=int, default=1, help="processes on each machine: one per card (1)")
    add("--channel", action="append", default=[], metavar="NAME=s3://...",
        help="data that the script finds in /opt/ml/input/data/NAME; repeatable")  # fmt: skip
    add("--output", required=True, metavar="s3://...", help="where checkpoints, logs and weights go")
    add("--hours", type=float, default=24.0, help="after which the job is ended (24)")
    add("--spot", action="store_true", help="spare machines, cheaper; a training that loses them resumes")
    add("--volume_gb", type=int, default=200, help="disk of each machine (200)")
    return parser.parse_args(own), argv[len(own) :]


def main(argv: list[str]) -> None:
    """Print the job as JSON."""
    args, command = _parse(argv)
    from mg.parallel.cloud_job import CloudJob, request

    wrong = [channel for channel in args.channel if "=" not in channel]
    if wrong:
        raise UserError(f"--channel {wrong[0]}: give NAME=s3://BUCKET/FOLDER")
    options = {name: value for name, value in vars(args).items() if name != "channel"}
    channels = dict(channel.split("=", 1) for channel in args.channel)
    print(json.dumps(request(CloudJob(**options, channels=channels), command), indent=2))


if __name__ == "__main__":
    cli.run(main)

"""The description of a training job for Amazon SageMaker, which starts machines and the launcher on them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from mg.errors import UserError

HOSTS_FILE = "/opt/ml/input/config/resourceconfig.json"
"""Where a machine of a job finds the names of all of them."""
INPUT = "/opt/ml/input/data"
"""Each channel is a folder in it."""
CHECKPOINTS = "/opt/ml/checkpoints"
"""Copied to the bucket while the job runs, and back from it before it starts."""
PORT = 29500

_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
_CHANNEL = re.compile(r"[A-Za-z0-9.\-_]{1,64}")
_MOST_ARGUMENTS, _LONGEST_ARGUMENT = 100, 256


@dataclass(frozen=True, kw_only=True)
class CloudJob:
    """A training job: machines, data, time; raises UserError for values that the service would refuse."""

    job_name: str
    image: str
    role: str
    instance_type: str
    instance_count: int
    processes: int
    """On each machine."""
    channels: Mapping[str, str]
    """Name of the folder -> address in a bucket."""
    output: str
    """Address in a bucket."""
    hours: float
    spot: bool
    """Spare machines, which may be taken away; the job then starts again and the training resumes."""
    volume_gb: int

    def __post_init__(self) -> None:
        """Check names, addresses and ranges."""
        if not _NAME.fullmatch(self.job_name):
            raise UserError(f"--job_name {self.job_name}: give up to 63 letters, digits and hyphens")
        for name in ("instance_count", "processes", "volume_gb"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: give at least 1")
        if not 1 / 60 <= self.hours <= 28 * 24:
            raise UserError(f"--hours {self.hours:g}: a job runs from a minute to 28 days")
        if not self.role.startswith("arn:"):
            raise UserError(f"--role {self.role}: give the role's ARN, arn:aws:iam::...")
        for option, address in (("output", self.output), *((f"channel {n}", a) for n, a in self.channels.items())):
            if not re.fullmatch(r"s3://[^/]+(/.*)?", address):
                raise UserError(f"--{option}={address}: give an address s3://BUCKET/FOLDER")
        for name in self.channels:
            if not _CHANNEL.fullmatch(name):
                raise UserError(f"--channel {name}=...: a name has up to 64 letters, digits, '.', '-' and '_'")


def request(job: CloudJob, command: Sequence[str]) -> dict[str, Any]:
    """Return the body of CreateTrainingJob that runs a training script under the launcher.

    The run's folder is `CHECKPOINTS`, so that a job that starts again resumes. Every machine gets all data.

    Args:
        job: what to run it on.
        command: the script, relative to the image's working directory, and its options, without --output_path.

    Raises:
        UserError: no script, an --output_path, or more than the service takes.
    """
    if not command or PurePosixPath(command[0]).suffix != ".py":
        given = command[0] if command else "no command"
        raise UserError(f"{given}: end with a script, such as scripts/train.py, and its options")
    if any(word.split("=")[0] == "--output_path" for word in command):
        raise UserError(f"--output_path: leave it out; a job writes to {CHECKPOINTS}, which is copied to --output")
    words = ["scripts/launch.py", "--nproc_per_node", str(job.processes), "--hosts_file", HOSTS_FILE]
    words += ["--master_port", str(PORT), "--log_dir", f"{CHECKPOINTS}/launch", *command, "--output_path", CHECKPOINTS]
    if len(words) > _MOST_ARGUMENTS or max(map(len, words)) > _LONGEST_ARGUMENT:
        raise UserError(f"a job takes {_MOST_ARGUMENTS} words of up to {_LONGEST_ARGUMENT} letters; put options into a "
                        "--config file of the image")  # fmt: skip
    seconds = round(job.hours * 3600)
    channels = [
        {
            "ChannelName": name,
            "DataSource": {
                "S3DataSource": {
                    "S3DataType": "S3Prefix", "S3Uri": address, "S3DataDistributionType": "FullyReplicated",
                }
            },
        }
        for name, address in job.channels.items()
    ]  # fmt: skip
    body = {
        "TrainingJobName": job.job_name,
        "RoleArn": job.role,
        "AlgorithmSpecification": {
            "TrainingImage": job.image,
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python"],
            "ContainerArguments": words,
        },
        "ResourceConfig": {
            "InstanceType": job.instance_type,
            "InstanceCount": job.instance_count,
            "VolumeSizeInGB": job.volume_gb,
        },
        "OutputDataConfig": {"S3OutputPath": job.output},
        "CheckpointConfig": {"S3Uri": f"{job.output.rstrip('/')}/{job.job_name}", "LocalPath": CHECKPOINTS},
        "EnableManagedSpotTraining": job.spot,
        "StoppingCondition": {"MaxRuntimeInSeconds": seconds},
    }
    if job.spot:
        body["StoppingCondition"]["MaxWaitTimeInSeconds"] = 2 * seconds  # the wait for machines counts, too
    if channels:
        body["InputDataConfig"] = channels
    return body

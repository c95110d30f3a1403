"""tools/cloud_job.py: prints a job; the job itself is tested with the launcher."""

import json

import pytest

TOOL = "../tools/cloud_job.py"
OPTIONS = ["--job_name", "a", "--image", "mg:1", "--role", "arn:aws:iam::1:role/r", "--instance_type", "ml.c7i.large",
           "--output", "s3://b/runs"]  # fmt: skip


def test_it_prints_the_job(here):
    done = here(TOOL, *OPTIONS, "--channel", "x=s3://b/x", "--channel", "y=s3://b/y=1", "scripts/train.py", "--a=b")
    assert done.code == 0, done.err
    body = json.loads(done.out)
    addresses = {c["ChannelName"]: c["DataSource"]["S3DataSource"]["S3Uri"] for c in body["InputDataConfig"]}
    assert addresses == {"x": "s3://b/x", "y": "s3://b/y=1"}
    assert "--a=b" in body["AlgorithmSpecification"]["ContainerArguments"]


@pytest.mark.parametrize(("words", "error"), [
    (["--channel", "x", "scripts/train.py"], "--channel x: give NAME=s3://BUCKET/FOLDER"),
    (["--colour", "x", "scripts/train.py"], "unrecognized arguments: --colour x; see --help"), ([], "no command"),
])  # fmt: skip
def test_mistakes_are_one_line(here, words, error):
    done = here(TOOL, *OPTIONS, *words)
    assert done.code == 2 and done.out == ""
    assert error in done.err and done.err.count("\n") == 1

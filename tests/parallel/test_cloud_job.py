"""The description of a job: what SageMaker's own model of its interface accepts, and what runs on its machines."""

import json
from dataclasses import replace

import botocore.session
import pytest
from botocore.validate import ParamValidator

from mg.config.launch import LaunchConfig
from mg.errors import UserError
from mg.parallel.cloud_job import CloudJob, request
from mg.parallel.launch import located

JOB = CloudJob(
    job_name="stage-1", image="1.dkr.ecr.eu-west-1.amazonaws.com/mg:1", role="arn:aws:iam::123456789012:role/train",
    instance_type="ml.c7i.8xlarge", instance_count=2, processes=4, channels={"clips": "s3://data/clips"},
    output="s3://data/runs/", hours=1.5, spot=False, volume_gb=100,
)  # fmt: skip
COMMAND = ["scripts/train_tae.py", "--config", "configs/tae/train/tiny.yaml", "--video_folder=/opt/ml/input/data/clips"]


@pytest.mark.parametrize("changes", [{}, {"spot": True}, {"channels": {}, "instance_count": 1}])
def test_the_service_would_take_it(changes):
    model = botocore.session.get_session().get_service_model("sagemaker")
    shape = model.operation_model("CreateTrainingJob").input_shape
    body = request(replace(JOB, **changes), COMMAND)
    assert not ParamValidator().validate(body, shape).has_errors()
    assert ParamValidator().validate({**body, "Channels": []}, shape).has_errors()  # it looks


def test_what_is_asked_for_is_in_it():
    body = request(JOB, COMMAND)
    words = body["AlgorithmSpecification"]["ContainerArguments"]
    assert body["AlgorithmSpecification"]["ContainerEntrypoint"] == ["python"]
    assert words[:3] == ["scripts/launch.py", "--nproc_per_node", "4"]
    place = words.index("scripts/train_tae.py")
    assert words[place:] == [*COMMAND, "--output_path", "/opt/ml/checkpoints"]
    assert body["CheckpointConfig"] == {"S3Uri": "s3://data/runs/stage-1", "LocalPath": "/opt/ml/checkpoints"}
    (channel,) = body["InputDataConfig"]
    assert (channel["ChannelName"], channel["DataSource"]["S3DataSource"]["S3Uri"]) == ("clips", "s3://data/clips")
    assert body["StoppingCondition"] == {"MaxRuntimeInSeconds": 5400}
    spot = request(replace(JOB, spot=True), COMMAND)
    assert spot["EnableManagedSpotTraining"] and spot["StoppingCondition"]["MaxWaitTimeInSeconds"] == 10800


@pytest.mark.parametrize(("changes", "error"), [
    ({"job_name": "stage_1"}, "--job_name stage_1: give up to 63"), ({"processes": 0}, "--processes 0"),
    ({"hours": 0}, "--hours 0"), ({"role": "train"}, "--role train"), ({"output": "/tmp/x"}, "--output=/tmp/x"),
    ({"channels": {"a": "data/a"}}, "--channel a=data/a"), ({"channels": {"a b": "s3://d"}}, "--channel a b"),
])  # fmt: skip
def test_what_the_service_would_refuse_is_named(changes, error):
    with pytest.raises(UserError, match=f"^{error}"):
        replace(JOB, **changes)


@pytest.mark.parametrize(("command", "error"), [
    ([], "no command"), (["train"], "train: end with a script"),
    (["a.py", "--output_path", "x"], "--output_path: leave"),
    (["a.py", "--output_path=x"], "--output_path: leave"), (["a.py", "x" * 257], "a job takes 100 words"),
])  # fmt: skip
def test_commands_that_cannot_run_there_are_refused(command, error):
    with pytest.raises(UserError, match=f"^{error}"):
        request(JOB, command)


def test_the_launcher_finds_its_place_in_the_file_of_hosts(tmp_path):
    words = request(JOB, COMMAND)["AlgorithmSpecification"]["ContainerArguments"]
    port = int(words[words.index("--master_port") + 1])
    path = tmp_path / "resourceconfig.json"
    config = LaunchConfig(nproc_per_node=4, hosts_file=str(path), master_port=port)
    ranks = {}
    for host in ("algo-1", "algo-2", "algo-10"):
        path.write_text(json.dumps({"current_host": host, "hosts": ["algo-10", "algo-1", "algo-2"]}))
        found = located(config)
        assert (found.nnodes, found.world, found.master_addr, found.master_port) == (3, 12, "algo-1", 29500)
        ranks[host] = found.node_rank
    assert ranks == {"algo-1": 0, "algo-10": 1, "algo-2": 2}
    path.write_text('{"current_host": "algo-1", "hosts": ["algo-1"]}')
    assert (located(config).world, located(config).master_addr) == (4, "127.0.0.1")


@pytest.mark.parametrize("text", ["", "[]", '{"hosts": ["a"]}', '{"hosts": ["a"], "current_host": "b"}'])
def test_a_file_of_hosts_that_does_not_name_this_one_is_refused(tmp_path, text):
    path = tmp_path / "hosts.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"^hosts_file=.*hosts\.json: .*; give a JSON file"):
        located(LaunchConfig(nproc_per_node=1, hosts_file=str(path)))
    with pytest.raises(UserError, match="leave nnodes and node_rank out"):
        LaunchConfig(nproc_per_node=1, nnodes=2, master_addr="a", master_port=1, hosts_file=str(path))

"""What the launcher's options refuse."""

import pytest

from mg.config.launch import LaunchConfig
from mg.errors import UserError


@pytest.mark.parametrize(("options", "message"), [
    ({"nproc_per_node": 0}, "nproc_per_node=0: give at least 1"),
    ({"nproc_per_node": 1, "nnodes": 2}, "nnodes=2 needs --master_port"),
    ({"nproc_per_node": 1, "nnodes": 2, "master_port": 9000}, "nnodes=2 needs --master_addr"),
    ({"nproc_per_node": 1, "node_rank": 1}, "node_rank=1: with nnodes=1 choose 0 to 0"),
    ({"nproc_per_node": 1, "master_port": 70000}, "master_port=70000: choose 1 to 65534"),
    ({"nproc_per_node": 1, "stop_seconds": -1.0}, "stop_seconds=-1.0"),
])  # fmt: skip
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        LaunchConfig(**options)

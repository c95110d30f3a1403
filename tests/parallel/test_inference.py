import checks_inference
import pytest

from mg.config.parallel import ParallelConfig
from mg.errors import UserError
from mg.parallel.mesh import Mesh


@pytest.mark.parametrize("name", checks_inference.of(2))
def test_two_processes_make_what_one_makes(name, launched):
    for found in launched(2, "checks_inference"):
        assert found.get(name, found[""]) == "equal"


def test_degrees_are_refused_where_there_is_one_process():
    assert Mesh.joined(ParallelConfig(zero_stage=1)) is None
    with pytest.raises(UserError, match="sequence=2 is 2 devices, the run has 1"):
        Mesh.joined(ParallelConfig(data=1, sequence=2))

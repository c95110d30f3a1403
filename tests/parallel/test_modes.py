import checks_modes
import pytest


@pytest.mark.slow
@pytest.mark.parametrize(("world", "name"), [(world, name) for world in (2, 4) for name in checks_modes.of(world)])
def test_parallel_equals_serial(world, name, launched):
    for found in launched(world):
        assert found.get(name, found[""]) == "equal"

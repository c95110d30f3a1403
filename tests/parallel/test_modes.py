import checks_modes
import checks_tae
import checks_trainer
import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "name"),
    [(world, name) for world in (2, 4) for name in (*checks_modes.of(world), *checks_tae.of(world))],
)
def test_parallel_equals_serial(world, name, launched):
    for found in launched(world):
        assert found.get(name, found[""]) == "equal"


@pytest.mark.slow
@pytest.mark.parametrize(("world", "name"), [(world, name) for world in (2, 4) for name in checks_trainer.of(world)])
def test_the_loop_of_several_processes(world, name, launched):
    for found in launched(world):
        assert found.get(name, found[""]) == "equal"

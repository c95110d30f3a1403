"""Checks of training that run under msrun, by number of processes; a check is a function of the rank and raises."""

from collections.abc import Callable

import checks_modes
import checks_tae
import checks_trainer


def of(world: int) -> dict[str, Callable[[int], None]]:
    modules = (checks_modes, checks_tae, checks_trainer)
    return {name: check for module in modules for name, check in module.of(world).items()}

"""All checks that run under msrun, by number of processes; a check is a function of the rank and raises."""

from collections.abc import Callable

import checks_collectives
import checks_modes


def of(world: int) -> dict[str, Callable[[int], None]]:
    return {**checks_collectives.of(world), **checks_modes.of(world)}

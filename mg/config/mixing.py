"""Weights of several lists that a run is trained on together."""

from collections.abc import Mapping

from mg.errors import UserError


def check_mix(option: str, weights: Mapping[str, float] | None) -> None:
    """Check a mapping of lists to weights, which may have any sum; None is no mapping.

    Raises:
        UserError: it is empty, or a weight is not within 1e-6 to 1e6.
    """
    if weights is None:
        return
    if not weights:
        raise UserError(f"{option} is empty; name at least one list and its weight, such as {{videos.csv: 1}}")
    for name, weight in weights.items():
        if not 1e-6 <= weight <= 1e6:
            raise UserError(f"{option}: {name}: {weight} must be a number from 1e-6 to 1e6")

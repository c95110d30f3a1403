"""What the adversarial objective carries from step to step, on the host."""

from collections.abc import Mapping

import numpy as np


def _switch(on: bool) -> np.ndarray:
    """An input whose rank says whether a part of the objective takes part: the other graph does not contain it."""
    return np.zeros((1,) if on else (), np.float32)


class GeneratorMemory:
    """Brings the adversarial term in at its start step; before, the compiled graph does not contain it.

    Args:
        start: first step (1 and up) in which the generator has the adversarial term.
    """

    def __init__(self, start: int) -> None:
        self.start = start

    def inputs(self, step: int) -> dict[str, np.ndarray]:
        """Return `adversarial`, a 0-d array before the start and a 1-d one from then on."""
        return {"adversarial": _switch(step >= self.start)}

    def observe(self, step: int, terms: Mapping[str, float]) -> None:
        """Learn nothing from a step."""

    def state(self) -> dict:
        """Return nothing: the step says all."""
        return {}

    def restore(self, state: Mapping) -> None:
        """Need nothing."""


class DiscriminatorMemory:
    """LeCAM's moving averages of the mean logits, and the steps of the gradient penalty.

    Args:
        decay: of the averages per step; the first step observed sets them.
        r1_every: steps from one gradient penalty to the next; the first step has one.
    """

    def __init__(self, decay: float = 0.999, r1_every: int = 1) -> None:
        self.decay, self.r1_every = decay, r1_every
        self.real = self.fake = 0.0
        self.observed = 0
        """Steps observed."""

    def inputs(self, step: int) -> dict[str, np.ndarray]:
        """Return lecam_real, lecam_fake, lecam_on (0 before the first observation) and the switch `r1`."""
        numbers = {"lecam_real": self.real, "lecam_fake": self.fake, "lecam_on": float(self.observed > 0)}
        return {name: np.float32(value) for name, value in numbers.items()} | {
            "r1": _switch((step - 1) % self.r1_every == 0)
        }

    def observe(self, step: int, terms: Mapping[str, float]) -> None:
        """Take the mean logits `real` and `fake` of one step."""
        keep = self.decay if self.observed else 0.0
        self.real = keep * self.real + (1.0 - keep) * terms["real"]
        self.fake = keep * self.fake + (1.0 - keep) * terms["fake"]
        self.observed += 1

    def state(self) -> dict:
        """Return the averages as JSON values."""
        return {"real": self.real, "fake": self.fake, "observed": self.observed}

    def restore(self, state: Mapping) -> None:
        """Go on from what `state` returned."""
        self.real, self.fake, self.observed = float(state["real"]), float(state["fake"]), int(state["observed"])

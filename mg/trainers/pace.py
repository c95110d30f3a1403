"""How fast a training goes once it is warm."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Pace:
    """Means over the steps of this process in which nothing was compiled.

    Attributes:
        steps: number of them.
        seconds: they took, waiting for data included.
        samples: they had.
        counts: how many frames, or tokens, they had, by name; empty where neither is known.
        left_out: number of the steps that were left out, in which graphs were compiled.
    """

    steps: int = 0
    seconds: float = 0.0
    samples: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    left_out: int = 0
    _graphs: int = -1

    def add(self, seconds: float, samples: int, graphs: int, counts: Mapping[str, int] | None = None) -> None:
        """Count a step; `graphs` is the number of those compiled since the process began.

        The first step is always left out: caches are cold also where nothing is compiled.
        """
        if graphs != self._graphs:
            self._graphs = graphs
            self.left_out += 1
            return
        self.steps += 1
        self.seconds += seconds
        self.samples += samples
        self.counts.update(counts or {})

    def summary(self) -> dict[str, float | int | None]:
        """Return seconds per step, samples, frames or tokens per second, numbers of steps; None without a warm step."""
        return {
            "step_time": self.seconds / self.steps if self.steps else None,
            "samples_per_s": self.samples / self.seconds if self.seconds else None,
            **{f"{name}_per_s": count / self.seconds for name, count in self.counts.items()},
            "steps": self.steps,
            "left_out": self.left_out,
        }

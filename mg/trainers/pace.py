"""How fast a training goes once it is warm."""

from dataclasses import dataclass


@dataclass
class Pace:
    """Means over the steps of this process in which nothing was compiled.

    Attributes:
        steps: number of them.
        seconds: they took, waiting for data included.
        samples: they had.
        frames: they had, 0 where the data are no videos.
        left_out: number of the steps that were left out, in which graphs were compiled.
    """

    steps: int = 0
    seconds: float = 0.0
    samples: int = 0
    frames: int = 0
    left_out: int = 0
    _graphs: int = -1

    def add(self, seconds: float, samples: int, graphs: int, frames: int = 0) -> None:
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
        self.frames += frames

    def summary(self) -> dict[str, float | int | None]:
        """Return seconds per step, samples and frames per second (None without a warm step), and numbers of steps."""
        frames = {"frames_per_s": self.frames / self.seconds} if self.frames else {}
        return {
            "step_time": self.seconds / self.steps if self.steps else None,
            "samples_per_s": self.samples / self.seconds if self.seconds else None,
            **frames,
            "steps": self.steps,
            "left_out": self.left_out,
        }

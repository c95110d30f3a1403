"""Mean and spread of latents, collected clip by clip."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float


class LatentMoments:
    """Mean and standard deviation of all values seen so far, per channel and over all, in float64.

    A latent is a distribution: a mean and a deviation per value. What the transformer is trained on is drawn from it,
    so that the spread of the samples belongs to the figures; it is taken from the deviations, nothing is drawn. Every
    value counts alike: a longer or larger video counts for more.
    """

    def __init__(self) -> None:
        self.count = 0
        """Values per channel."""
        self._mean: np.ndarray | float = 0.0  # (c,)
        self._squares: np.ndarray | float = 0.0  # (c,) sum of squared distances from the mean
        self._variance: np.ndarray | float = 0.0  # (c,) sum of the samples' own variances

    def add(self, mean: Float[np.ndarray, "c t h w"], std: Float[np.ndarray, "c t h w"]) -> None:
        """Take the latent of one clip."""
        mean, std = (np.asarray(part, np.float64).reshape(len(part), -1) for part in (mean, std))  # (c, t * h * w)
        count, middle = mean.shape[1], mean.mean(1)
        self._join(count, middle, ((mean - middle[:, None]) ** 2).sum(1), (std**2).sum(1))

    def _join(self, count: int, mean: np.ndarray, squares: np.ndarray, variance: np.ndarray) -> None:
        # Moments of two sets from those of each (Chan et al., 1979): no difference of large sums.
        total, distance = self.count + count, mean - self._mean
        self._squares += squares + distance**2 * (self.count * count / total)
        self._mean += distance * (count / total)
        self._variance += variance
        self.count = total

    def state(self) -> dict[str, int | list[float]]:
        """Return all there is to know, for `join`."""
        parts = {"mean": self._mean, "squares": self._squares, "variance": self._variance}
        return {"count": self.count} | {name: np.asarray(part).tolist() for name, part in parts.items()}

    def join(self, state: Mapping[str, Any]) -> None:
        """Take what another collection has seen, its `state`."""
        if state["count"]:
            self._join(state["count"], *(np.array(state[name]) for name in ("mean", "squares", "variance")))

    @property
    def means(self) -> Float[np.ndarray, " c"]:
        """Mean of each channel."""
        return np.asarray(self._mean)

    def stds(self, samples: bool = True) -> Float[np.ndarray, " c"]:
        """Return the standard deviation of each channel, with the spread of the samples or of the means alone."""
        return np.sqrt((self._squares + samples * self._variance) / max(1, self.count))

    @property
    def mean(self) -> float:
        """Mean of all values."""
        return float(self.means.mean())

    def std(self, samples: bool = True) -> float:
        """Return the standard deviation of all values, see `stds`."""
        return math.sqrt(float((self.stds(samples) ** 2 + (self.means - self.mean) ** 2).mean()))

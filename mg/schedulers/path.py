"""Paths from noise (tau = 0) to data (tau = 1), and what a network is asked to predict on them.

Every path is x = alpha(tau) * x1 + sigma(tau) * x0 with the data x1 and the noise x0 ~ N(0, 1); its velocity is the
derivative with respect to tau. Flow matching uses operators only, so it takes numpy arrays and MindSpore tensors, also
inside a compiled graph; the other paths are for comparisons and take numpy arrays.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np

from mg.errors import UserError

Array = Any
"""A numpy array or a MindSpore tensor."""


class Path(Protocol):
    """What training and sampling need of a path; x1, x0, x have one shape, tau is a number or broadcasts to it."""

    def interpolate(self, x1: Array, x0: Array, tau: Array) -> Array:
        """Return the point x at tau between the noise x0 and the data x1."""

    def velocity(self, x1: Array, x0: Array, tau: Array) -> Array:
        """Return dx / dtau."""

    def target(self, x1: Array, x0: Array, tau: Array) -> Array:
        """Return what the network is trained to predict at tau."""

    def endpoints(self, prediction: Array, x: Array, tau: Array) -> tuple[Array, Array]:
        """Return the estimates (x1, x0) that follow from a prediction at the point x."""


def tau_of(timestep: Array, ndim: int) -> Array:
    """Turn noise levels (b,) in [0, 1000] into tau, shaped (b, 1, ..., 1) with `ndim` axes to broadcast over x."""
    return (1.0 - timestep / 1000.0).reshape((-1,) + (1,) * (ndim - 1))


# Functions besides the class: a compiled graph can call them, but not the methods of a plain object.
def interpolate(x1: Array, x0: Array, tau: Array, sigma_min: float) -> Array:
    """Return tau * x1 + (1 - (1 - sigma_min) * tau) * x0."""
    return tau * x1 + (1.0 - (1.0 - sigma_min) * tau) * x0


def velocity(x1: Array, x0: Array, sigma_min: float) -> Array:
    """Return the derivative of `interpolate` with respect to tau, x1 - (1 - sigma_min) * x0; it does not change."""
    return x1 - (1.0 - sigma_min) * x0


@dataclass(frozen=True)
class FlowMatching:
    """The straight (optimal transport) path; the network predicts the velocity (Lipman et al. 2023; Movie Gen, 3.1.2).

    sigma_min: standard deviation of the noise left at the data, in [0, 1); 0 is rectified flow. Raises UserError.
    """

    sigma_min: float = 1e-5

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min < 1:
            raise UserError(f"sigma_min={self.sigma_min!r} must be in [0, 1), 1e-5 for instance")

    def interpolate(self, x1: Array, x0: Array, tau: Array) -> Array:
        """Return the point at tau between the noise x0 and the data x1."""
        return interpolate(x1, x0, tau, self.sigma_min)

    def velocity(self, x1: Array, x0: Array, tau: Array = None) -> Array:
        """Return dx / dtau, which is the same at every tau."""
        return velocity(x1, x0, self.sigma_min)

    def target(self, x1: Array, x0: Array, tau: Array = None) -> Array:
        """Return what the network is trained to predict: the velocity."""
        return velocity(x1, x0, self.sigma_min)

    def endpoints(self, prediction: Array, x: Array, tau: Array) -> tuple[Array, Array]:
        """Return the estimates (x1, x0) that follow from a predicted velocity at the point x."""
        x0 = x - tau * prediction
        return prediction + (1.0 - self.sigma_min) * x0, x0


# DDPM's variances of the added noise, 1e-4 to 0.02 over 1000 steps (Ho et al. 2020), per unit of time.
_BETA_FIRST, _BETA_LAST = 0.1, 20.0
# The cosine path stops short of its ends at these log signal-to-noise ratios (Kingma et al. 2021), where one of the
# two estimates would be a division by zero. What is left at the data is exp(-10) of noise.
_LOG_SNR_NOISE, _LOG_SNR_DATA = -10.0, 20.0
_ANGLE_NOISE, _ANGLE_DATA = (math.atan(math.exp(-0.5 * ratio)) for ratio in (_LOG_SNR_NOISE, _LOG_SNR_DATA))


@dataclass(frozen=True)
class VariancePreserving:
    """Diffusion's curved paths, alpha^2 + sigma^2 = 1, in float64 numpy; for comparisons with flow matching.

    schedule: "cosine" (Nichol & Dhariwal 2021; ends cut as above) or "linear" (Ho et al. 2020, in continuous time).
    predicts: "v" = alpha * x0 - sigma * x1 (Salimans & Ho 2022) or "epsilon" = the noise x0.
    Raises UserError for others. The linear schedule's velocity is infinite at tau = 1 and must not be asked there.
    """

    schedule: Literal["cosine", "linear"] = "cosine"
    predicts: Literal["v", "epsilon"] = "v"

    def __post_init__(self) -> None:
        if self.schedule not in ("cosine", "linear"):
            raise UserError(f"schedule={self.schedule!r} must be 'cosine' or 'linear'")
        if self.predicts not in ("v", "epsilon"):
            raise UserError(f"predicts={self.predicts!r} must be 'v' or 'epsilon'")

    def coefficients(self, tau: Array) -> tuple[np.ndarray, np.ndarray]:
        """Return alpha and sigma at tau."""
        if self.schedule == "cosine":
            angle = _ANGLE_NOISE + (_ANGLE_DATA - _ANGLE_NOISE) * np.asarray(tau, np.float64)
            return np.cos(angle), np.sin(angle)
        log_signal = _log_signal(tau)
        return np.exp(0.5 * log_signal), np.sqrt(-np.expm1(log_signal))

    def derivatives(self, tau: Array) -> tuple[np.ndarray, np.ndarray]:
        """Return the derivatives of alpha and sigma with respect to tau."""
        alpha, sigma = self.coefficients(tau)
        if self.schedule == "cosine":
            rate = _ANGLE_DATA - _ANGLE_NOISE
            return -rate * sigma, rate * alpha
        half_beta = 0.5 * (_BETA_FIRST + (_BETA_LAST - _BETA_FIRST) * (1.0 - np.asarray(tau, np.float64)))
        return half_beta * alpha, -half_beta * alpha**2 / sigma

    def interpolate(self, x1: Array, x0: Array, tau: Array) -> Array:
        """Return the point at tau between the noise x0 and the data x1."""
        alpha, sigma = self.coefficients(tau)
        return alpha * x1 + sigma * x0

    def velocity(self, x1: Array, x0: Array, tau: Array) -> Array:
        """Return dx / dtau."""
        of_alpha, of_sigma = self.derivatives(tau)
        return of_alpha * x1 + of_sigma * x0

    def target(self, x1: Array, x0: Array, tau: Array) -> Array:
        """Return what the network is trained to predict: v or the noise."""
        if self.predicts == "epsilon":
            return x0
        alpha, sigma = self.coefficients(tau)
        return alpha * x0 - sigma * x1

    def endpoints(self, prediction: Array, x: Array, tau: Array) -> tuple[Array, Array]:
        """Return the estimates (x1, x0) that follow from a predicted v or noise at the point x."""
        alpha, sigma = self.coefficients(tau)
        if self.predicts == "epsilon":
            return (x - sigma * prediction) / alpha, prediction
        return alpha * x - sigma * prediction, sigma * x + alpha * prediction


def _log_signal(tau: Array) -> np.ndarray:
    """Log of alpha^2 on DDPM's linear schedule: minus the integral of beta from the data to the noise level."""
    level = 1.0 - np.asarray(tau, np.float64)
    return -(_BETA_FIRST * level + 0.5 * (_BETA_LAST - _BETA_FIRST) * level**2)


PATHS: Mapping[str, Path] = MappingProxyType(
    {
        "ot": FlowMatching(),
        "rectified": FlowMatching(sigma_min=0.0),
        "vp-cosine": VariancePreserving("cosine", "v"),
        "vp-cosine-epsilon": VariancePreserving("cosine", "epsilon"),
        "vp-linear": VariancePreserving("linear", "v"),
        "vp-linear-epsilon": VariancePreserving("linear", "epsilon"),
    }
)
"""Movie Gen's path and those it is compared with; the diffusion paths predict v unless their name says otherwise."""

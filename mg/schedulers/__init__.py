"""Flow matching as mathematics: paths, timesteps, grids of noise levels, solvers, guidance; knows no model.

A noise level lies in [0, 1000]: 1000 is pure noise, 0 is data; it is what the networks get as `timestep`.
tau = 1 - level / 1000 is the time along the path, 0 at the noise and 1 at the data.
"""

from mg.schedulers.grids import time_grid
from mg.schedulers.guidance import GuidanceConfig, guide, guided
from mg.schedulers.path import PATHS, FlowMatching, Path, VariancePreserving, tau_of
from mg.schedulers.solvers import ddim, solve
from mg.schedulers.timesteps import even_timesteps, sample_timesteps

__all__ = [
    "PATHS",
    "FlowMatching",
    "GuidanceConfig",
    "Path",
    "VariancePreserving",
    "ddim",
    "even_timesteps",
    "guide",
    "guided",
    "sample_timesteps",
    "solve",
    "tau_of",
    "time_grid",
]

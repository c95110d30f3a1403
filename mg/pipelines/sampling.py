"""Noise to latents: what a pipeline's sampling is told, and the loop over one batch."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8
from mindspore import Tensor, nn

from mg.errors import UserError
from mg.pipelines.text_condition import Condition
from mg.rng import stream
from mg.schedulers import GuidanceConfig, guide, solve

WINDOW = 256
"""Prompts whose embeddings are in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """One way to make videos; None takes what the pipeline's scheduler says. Raises UserError for values out of range.

    Attributes:
        num_frames: frames, at least 1; 1 is a picture.
        height: pixels.
        width: pixels.
        fps: frames per second, in front of the prompt where the transformer knows rates.
        num_inference_steps: steps of the solver.
        guidance_scale: strength of the prompt; 1 is no guidance.
        guidance_mode: "batched", or "sequential" for half the memory.
        guidance_schedule: "constant", or rising from 1: "linear", "cosine".
        sample_method: spacing of the steps.
        solver: "euler" or "midpoint".
    """

    num_frames: int = 16
    height: int = 64
    width: int = 64
    fps: float = 16
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_mode: Literal["batched", "sequential"] = "batched"
    guidance_schedule: Literal["constant", "linear", "cosine"] = "constant"
    sample_method: Literal["linear", "linear-quadratic", "linear-quadratic-smooth"] | None = None
    solver: Literal["euler", "midpoint"] | None = None

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.num_frames < 1:
            raise UserError(f"num_frames={self.num_frames}: give at least 1")
        if not (math.isfinite(self.fps) and 0 < self.fps <= 1000):
            raise UserError(f"fps={self.fps}: give a number above 0, up to 1000")


@dataclass(frozen=True)
class Made:
    """One video.

    Attributes:
        number: which prompt of the list it belongs to, from 0.
        seed: the seed that makes it again.
        latent: scaled, as the transformer knows them.
        frames: None where only latents were asked for.
    """

    number: int
    seed: int
    latent: Float[np.ndarray, "c t h w"]
    frames: UInt8[np.ndarray, "t h w 3"] | None


@dataclass(frozen=True)
class Plan:
    """How latents are sampled: guidance, noise levels, "euler" or "midpoint", prompts per call of the network."""

    guidance: GuidanceConfig
    grid: Float[np.ndarray, "n"]
    solver: str
    batch_size: int = 1

    @property
    def window(self) -> int:
        """Prompts whose embeddings are in memory at a time, a multiple of the batch."""
        return max(1, WINDOW // self.batch_size) * self.batch_size

    @property
    def steps(self) -> int:
        """Steps of the solver."""
        return len(self.grid) - 1


def sample(
    network: nn.Cell,
    conditions: Sequence[Condition],
    null: Condition | None,
    noise: Float[np.ndarray, "b c t h w"],
    plan: Plan,
    callback: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "b c t h w"]:
    """Sample a batch of at most `plan.batch_size` latents.

    A smaller batch is filled up with its last prompt, so that one shape is compiled.

    Args:
        network: the transformer.
        conditions: of the prompts.
        null: what guidance leads away from; None without guidance.
        noise: to start from.
        plan: how.
        callback: called after every step.

    Returns:
        Scaled latents, float32.

    Raises:
        NumericalAbort: NaN or infinity.
    """
    count = len(conditions)
    fill = [*range(count), *[count - 1] * (plan.batch_size - count)]
    stacked = _stacked([conditions[row] for row in fill])
    away = None if null is None else _stacked([null] * len(fill))
    tensors: dict[int, Tensor] = {}  # of the texts, which are the same arrays at every step

    def velocity(x: np.ndarray, level: float, *text: np.ndarray) -> np.ndarray:
        for array in text:
            if id(array) not in tensors:
                tensors[id(array)] = Tensor(array)
        timestep = np.full(len(x), level, np.float32)
        return network(Tensor(x), Tensor(timestep), *(tensors[id(array)] for array in text)).asnumpy()

    return solve(guide(velocity, plan.guidance, stacked, away), noise[fill], plan.grid, plan.solver, callback)[:count]


def _stacked(conditions: Sequence[Condition]) -> list[np.ndarray]:
    texts = zip(*(condition.text for condition in conditions), strict=True)
    return [np.stack([condition.mask for condition in conditions]), *map(np.stack, texts)]


class Noise:
    """What prompts start from: a function of the seed alone, whatever the prompt and the list.

    Only when a prompt comes again with the same seed, it gets other noise.

    Args:
        seed: one for all, or one per prompt.
        names: the prompts.
        shape: of the noise of one.

    Attributes:
        seeds: one per prompt.

    Raises:
        UserError: another number of seeds than of prompts, or a negative one.
    """

    def __init__(self, seed: int | Sequence[int], names: Sequence[str], shape: tuple[int, ...]) -> None:
        seeds = [seed] * len(names) if isinstance(seed, int | np.integer) else list(seed)
        if len(seeds) != len(names):
            raise UserError(f"seed: {len(seeds)} seeds for {len(names)} prompts; give one, or one per prompt")
        if any(value < 0 for value in seeds):
            raise UserError(f"seed={min(seeds)}: give at least 0")
        self.seeds = [int(value) for value in seeds]
        self._shape = shape
        counts: Counter[tuple[int, str]] = Counter()
        self._repeats = []
        for pair in zip(self.seeds, names, strict=True):
            self._repeats.append(counts[pair])
            counts[pair] += 1

    def __call__(self, row: int) -> Float[np.ndarray, "c t h w"]:
        """Return the noise of prompt number `row`."""
        draw = stream(self.seeds[row], "generate.noise", self._repeats[row])
        return draw.standard_normal(self._shape, np.float32)

"""Judges every step before anything is updated: NaN and infinity, overflow of FP16, spikes of the gradient."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mg.config.guard import GuardConfig, LossScaleConfig, SpikeConfig

SCALE_LIMIT = 2.0**24
"""The loss scale does not rise above this."""

LEAST_SPREAD = 0.1
"""Standard deviation of the log norm below which the spikes' measure does not go: very even gradients are no alarm."""

JUDGED_FROM = 100
"""Steps before the share of bad ones counts."""


@dataclass(frozen=True)
class Verdict:
    """What to do with a step: `skip` it or not; `reason` is "" for a good one, "nonfinite", "overflow" or "spike"."""

    skip: bool
    reason: str = ""
    where: str = ""
    """The figure that gave the reason."""


class Guard:
    """Counts bad steps, keeps the loss scale and the window of gradient norms; all of it survives a resume."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.steps = self.bad = self.bad_in_a_row = self.overflows = 0
        """Steps judged; bad ones among them; bad ones up to now without a good one between; overflows, not bad."""
        self._scale = LossScale(config.loss_scale)
        self._spikes: dict[str, Spikes] = {}

    @property
    def loss_scale(self) -> float | None:
        """What the next step's loss is multiplied by, None where there is no loss scale."""
        return self._scale.value if self.config.loss_scale.init else None

    def judge(self, figures: Mapping[str, Mapping[str, float]]) -> Verdict:
        """Decide about a step and count it; `figures` has "loss" and "grad_norm" of each player, by its prefix."""
        verdict = self._judge(figures)
        self.steps += 1
        if verdict.reason == "overflow":
            self.overflows += 1
            self._scale.overflowed()
            return verdict
        self._scale.passed()
        if verdict.skip:
            self.bad += 1
            self.bad_in_a_row += 1
            return verdict
        self.bad_in_a_row = 0
        for prefix, found in figures.items():
            self._window(prefix).take(found["grad_norm"])
        return verdict

    def _judge(self, figures: Mapping[str, Mapping[str, float]]) -> Verdict:
        for name in ("loss", "grad_norm"):
            for prefix, found in figures.items():
                if not math.isfinite(found[name]):
                    # Only the gradient is scaled: a loss that is not finite would not be saved by a smaller scale.
                    scaled = name == "grad_norm" and self.loss_scale is not None and self.loss_scale > 1
                    return Verdict(True, "overflow" if scaled else "nonfinite", prefix + name)
        if self.config.spike.action != "off":
            for prefix, found in figures.items():
                if self._window(prefix).is_spike(found["grad_norm"]):
                    return Verdict(self.config.spike.action != "warn", "spike", f"{prefix}grad_norm")
        return Verdict(False)

    def why_abort(self, verdict: Verdict) -> str | None:
        """Return why the run has to end after the step judged last, None if it goes on."""
        config = self.config
        if verdict.reason == "overflow":  # never the reason, whatever the counts have come to before
            return None
        if verdict.reason == "spike" and config.spike.action == "abort":
            return f"the gradient's norm is a spike ({verdict.where}, spike.action=abort)"
        if self.bad_in_a_row > config.max_bad_steps:
            return f"{self.bad_in_a_row} bad steps in a row (max_bad_steps={config.max_bad_steps})"
        if verdict.skip and self.steps >= JUDGED_FROM and self.bad > config.max_bad_fraction * self.steps:
            return f"{self.bad} of {self.steps} steps are bad (max_bad_fraction={config.max_bad_fraction:g})"
        return None

    def _window(self, prefix: str) -> "Spikes":
        return self._spikes.setdefault(prefix, Spikes(self.config.spike))

    def state(self) -> dict:
        """Return what a resumed run needs, as JSON values."""
        counts = {name: getattr(self, name) for name in ("steps", "bad", "bad_in_a_row", "overflows")}
        spikes = {prefix: window.state() for prefix, window in self._spikes.items()}
        return {**counts, "loss_scale": self._scale.state(), "spikes": spikes}

    def restore(self, state: Mapping) -> None:
        """Go on from what `state` returned."""
        for name in ("steps", "bad", "bad_in_a_row", "overflows"):
            setattr(self, name, state[name])
        self._scale.restore(state["loss_scale"])
        for prefix, window in state["spikes"].items():
            self._window(prefix).restore(window)


class LossScale:
    """Falls by a factor on every overflow, at least to 1, and rises by it after a window without any."""

    def __init__(self, config: LossScaleConfig) -> None:
        self._config = config
        self.value = float(config.init)
        self.passed_steps = 0
        """Steps since the last overflow or rise."""

    def overflowed(self) -> None:
        """Take note of a step whose gradient overflowed."""
        self.value = max(self.value / self._config.factor, 1.0)
        self.passed_steps = 0

    def passed(self) -> None:
        """Take note of a step without overflow; a scale that is off counts none."""
        if not self._config.init:
            return
        self.passed_steps += 1
        if self.passed_steps >= self._config.window:
            self.value = min(self.value * self._config.factor, max(SCALE_LIMIT, self.value))
            self.passed_steps = 0

    def state(self) -> dict[str, float]:
        """Return what a resumed run needs, as JSON values."""
        return {"value": self.value, "passed_steps": self.passed_steps}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from what `state` returned; a scale that the run had not yet begins at its first value."""
        if state["value"] and self._config.init:
            self.value, self.passed_steps = state["value"], int(state["passed_steps"])


class Spikes:
    """Window of the applied steps' log gradient norms.

    A norm is a spike when its logarithm lies more than `threshold` standard deviations above the window's median; the
    deviation is 1.4826 times the median absolute deviation, which an outlier in the window does not move.
    """

    def __init__(self, config: SpikeConfig) -> None:
        self._config = config
        self._logs: deque[float] = deque(maxlen=config.window)

    def is_spike(self, norm: float) -> bool:
        """Tell whether a finite norm stands out of the window; never before the warm-up is over."""
        if len(self._logs) < self._config.warmup:
            return False
        logs = np.array(self._logs)
        median = float(np.median(logs))
        spread = max(1.4826 * float(np.median(np.abs(logs - median))), LEAST_SPREAD)
        return _log(norm) > median + self._config.threshold * spread

    def take(self, norm: float) -> None:
        """Take in the norm of a step that was applied."""
        self._logs.append(_log(norm))

    def state(self) -> list[float]:
        """Return what a resumed run needs, as JSON values."""
        return list(self._logs)

    def restore(self, state: list[float]) -> None:
        """Go on from what `state` returned."""
        self._logs = deque(state, maxlen=self._config.window)


def _log(norm: float) -> float:
    return math.log(max(norm, 1e-30))

"""The training loop's settings, the same for every model."""

import math
from dataclasses import dataclass, field
from typing import Literal

from mg.config.durability import DurabilityConfig, check_durability
from mg.config.guard import GuardConfig
from mg.config.logs import LogConfig
from mg.errors import UserError


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise UserError(f"{name}={value!r} must be {rule}")


def _finite(value: float, low: float) -> bool:
    return math.isfinite(value) and value >= low


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer with decoupled weight decay on every trainable parameter; raises UserError for values out of range."""

    name: Literal["adamw", "soap", "sgd"] = "adamw"
    """soap: Adam in the eigenbasis of the gradients' covariances; more memory and host work per step, fewer steps.
    sgd: plain gradient descent."""
    lr: float = 1e-4
    """Peak learning rate, above 0."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the first and the second moment, each in [0, 1)."""
    eps: float = 1e-8
    """Added to the root of the second moment, above 0."""
    momentum: float = 0.0
    """sgd only: share of the last step that the next one keeps, in [0, 1); 0 keeps no tensor for it."""
    weight_decay: float = 0.0
    """Share of each weight taken off per step, times the learning rate; 0 is off."""
    decay_on: Literal["all", "matrices"] = "all"
    """matrices: weights of two or more dimensions decay; the scales of norms and all biases do not."""
    lr_factors: dict[str, float] = field(default_factory=dict)
    """Patterns of parameter names, each with what multiplies the learning rate; the first that fits a name counts."""
    weight_decays: dict[str, float] = field(default_factory=dict)
    """Patterns of parameter names, each with a weight decay in place of the general one; the first that fits counts."""
    clip_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm; 0 is off."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _require(self.name in ("adamw", "soap", "sgd"), "optimizer.name", self.name, "'adamw', 'soap' or 'sgd'")
        _require(_finite(self.lr, 0) and self.lr > 0, "optimizer.lr", self.lr, "a finite number above 0")
        _require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            "optimizer.betas", self.betas, "two numbers in [0, 1)",
        )
        _require(_finite(self.eps, 0) and self.eps > 0, "optimizer.eps", self.eps, "a finite number above 0")
        for name in ("weight_decay", "clip_grad_norm"):
            value = getattr(self, name)
            _require(_finite(value, 0), f"optimizer.{name}", value, "a finite number, 0 (off) or above")
        _require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "in [0, 1)")
        _require(self.momentum == 0 or self.name == "sgd", "optimizer.momentum", self.momentum,
                 "0 unless optimizer.name is 'sgd'; the others have betas")
        _require(self.decay_on in ("all", "matrices"), "optimizer.decay_on", self.decay_on, "'all' or 'matrices'")
        for name in ("lr_factors", "weight_decays"):
            for pattern, value in getattr(self, name).items():
                _require(_finite(value, 0), f"optimizer.{name}[{pattern}]", value, "a finite number, 0 or above")


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over the steps; raises UserError for values out of range."""

    name: Literal["constant", "cosine", "linear"] = "constant"
    """After the warm-up: hold the peak, or fall along half a cosine or a straight line to end_lr at the last step."""
    warmup_steps: int = 0
    """The rate rises in a straight line and reaches the peak at this step; 0 is off."""
    warmup_ratio: float = 0.0
    """The same as a share of all steps, in [0, 1): 0.1 of 1000 steps are 100; 0 is off."""
    end_lr: float = 0.0
    """Learning rate at the last step (cosine and linear)."""

    def __post_init__(self) -> None:
        """Check ranges."""
        names = ("constant", "cosine", "linear")
        _require(self.name in names, "schedule.name", self.name, "'constant', 'cosine' or 'linear'")
        _require(self.warmup_steps >= 0, "schedule.warmup_steps", self.warmup_steps, "0 (off) or above")
        _require(0 <= self.warmup_ratio < 1, "schedule.warmup_ratio", self.warmup_ratio, "in [0, 1)")
        _require(
            not (self.warmup_steps and self.warmup_ratio), "schedule.warmup_ratio", self.warmup_ratio,
            f"0 where schedule.warmup_steps={self.warmup_steps} is set; give one of them",
        )
        _require(_finite(self.end_lr, 0), "schedule.end_lr", self.end_lr, "a finite number, 0 or above")


@dataclass(frozen=True, kw_only=True)
class PlateauConfig:
    """Cut the learning rate when validation stops getting better; raises UserError for values out of range."""

    factor: float = 1.0
    """Multiplies the learning rate, above 0; 1 is off."""
    patience: int = 10
    """Validations without progress before a cut, counted anew after each one."""
    min_delta: float = 1e-4
    """A figure counts as progress when it is better than the best one by more than this."""
    min_lr: float = 0.0
    """No cut goes below this learning rate."""
    monitor: str = "val_loss"
    """Figure of the validation to watch."""
    mode: Literal["min", "max"] = "min"
    """Whether a smaller or a larger figure is better."""

    def __post_init__(self) -> None:
        """Check ranges."""
        section = "lr_reduce_on_plateau"
        _require(0 < self.factor <= 1, f"{section}.factor", self.factor, "above 0 and at most 1 (off)")
        _require(self.patience >= 1, f"{section}.patience", self.patience, "1 or above")
        for name in ("min_delta", "min_lr"):
            value = getattr(self, name)
            _require(_finite(value, 0), f"{section}.{name}", value, "a finite number, 0 or above")
        _require(self.mode in ("min", "max"), f"{section}.mode", self.mode, "'min' or 'max'")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig(GuardConfig, DurabilityConfig):
    """One training run; steps are optimizer steps, not micro-batches; raises UserError for values out of range."""

    steps: int
    """Optimizer steps of the whole run, resumed parts included."""
    epochs: float = 0.0
    """Passes over the training data, in place of steps; the last step may go beyond the end; 0 is off."""
    samples: int = 0
    """Samples of the whole run, in place of steps; the last step may go beyond the number; 0 is off."""
    accumulation: int = 1
    """Micro-batches per step; their gradients are averaged by number of valid elements."""
    global_batch: int = 0
    """Samples per step, a multiple of the batch size, in place of accumulation; 0 is off."""
    freeze: tuple[str, ...] = ()
    """Patterns of the network's parameters that are not trained, such as "encoder.*"; "!encoder.last.*" takes some out
    again. A frozen parameter has no optimizer state and no average."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    lr_reduce_on_plateau: PlateauConfig = field(default_factory=PlateauConfig)
    ema_decay: float = 0.0
    """Decay of the moving average of the weights, in [0, 1), less at first: at most (1 + n) / (10 + n); 0 is off."""
    log_every: int = 10
    """Steps 1, log_every, 2 * log_every, ... and every skipped step go to metrics.jsonl."""
    validate_every: int = 0
    """Steps between validations; the last step is always validated; 0 is off."""
    seed: int = 0
    """Seed of the run; the data source draws from it."""
    log: LogConfig = field(default_factory=LogConfig)

    def __post_init__(self) -> None:
        """Check ranges."""
        GuardConfig.__post_init__(self)
        DurabilityConfig.__post_init__(self)
        for name in ("steps", "accumulation", "log_every"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or above")
        for name in ("validate_every", "seed", "samples", "global_batch"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or above")
        _require(_finite(self.epochs, 0), "epochs", self.epochs, "a finite number, 0 (off) or above")
        _require(not (self.epochs and self.samples), "samples", self.samples, f"0 where epochs={self.epochs:g} is set")
        _require(
            self.accumulation == 1 or not self.global_batch, "accumulation", self.accumulation,
            f"left out where global_batch={self.global_batch} is set",
        )
        _require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "in [0, 1)")
        plateau = self.lr_reduce_on_plateau
        _require(
            plateau.factor == 1 or self.validate_every >= 1,
            "validate_every", self.validate_every, "1 or above where lr_reduce_on_plateau.factor is not 1",
        )
        check_durability(self, self.steps, self.validate_every)

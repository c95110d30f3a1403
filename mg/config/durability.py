"""What a run keeps, where else it keeps it, what it starts from, and when it ends by itself."""

import math
from dataclasses import dataclass
from typing import Literal

from mg.errors import UserError


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise UserError(f"{name}={value!r} must be {rule}")


@dataclass(frozen=True, kw_only=True)
class DurabilityConfig:
    """The part of the training loop's settings that decides whether a run survives; raises UserError out of range."""

    save_every: int = 500
    """Steps between checkpoints; the last step is always saved."""
    keep_last: int = 2
    """Number of newest checkpoints kept; 0 keeps all."""
    keep_every: int = 0
    """Checkpoints at multiples of this step are made and kept for good; 0 is off."""
    num_checkpoints: int = 0
    """This many checkpoints, evenly spread up to the last step, are made and kept; those that keep_last holds back
    meanwhile go when the last one is written; 0 is off."""
    keep_best: int = 0
    """Number of best checkpoints kept, by the figure `monitor` of the validation of their very step; each validation
    that belongs to the best is saved; 0 is off."""
    monitor: str = "val_loss"
    """Figure of the validation that keep_best goes by."""
    monitor_mode: Literal["min", "max"] = "min"
    """Whether a smaller or a larger figure is better."""
    save_shards: bool = False
    """Of many processes each writes what is its own, instead of one that writes everything; a run of any other layout,
    or of one process, can go on from it."""
    max_failed_saves: int = 3
    """Training goes on after a save that the disk refused; this many in a row, or one at the last step, end the run."""
    resume_from: str | None = None
    """Go on with everything of another run: its folder (the newest checkpoint), one of its step folders, or the URL of
    either; what output_path has by itself comes first."""
    allow_changes: tuple[str, ...] = ()
    """Settings in which a resumed run may differ from the one that wrote the checkpoint, by name or section
    (`optimizer.lr`, `data`); any other difference is refused."""
    init_from: str | None = None
    """Begin a new run with the weights of another one, averaged where it has averages, and nothing else of it; its
    folder, one of its step folders, or the URL of either. Weights in a file: model.pretrained."""
    init_strict: bool = True
    """false: weights of init_from that are missing, too many or of another shape are listed and left out."""
    remote: str | None = None
    """URL (file://, s3://, gs://, ...; needs fsspec and the driver) of a folder for copies of the checkpoints and logs,
    made in the background and kept by the same rules; a run that finds nothing in output_path goes on from there."""
    max_minutes: float = 0.0
    """After this time the run stops with a checkpoint and exit code 75, to be started again; 0 is off."""
    step_timeout: float = 3600.0
    """A step that takes longer, in seconds, is a hang: the stacks are written, the run ends with exit code 4; leave
    room for the compilation of a new shape; 0 is off."""
    long_timeout: float = 14400.0
    """The same for the first step, validations and saves; at least step_timeout."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("save_every", "max_failed_saves"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "1 or above")
        for name in ("keep_last", "keep_every", "num_checkpoints", "keep_best"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or above")
        for name in ("max_minutes", "step_timeout"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, name, value, "a finite number, 0 (off) or above")
        _require(
            math.isfinite(self.long_timeout) and self.long_timeout >= self.step_timeout,
            "long_timeout", self.long_timeout, f"a finite number, at least step_timeout={self.step_timeout!r}",
        )
        for name in ("resume_from", "init_from", "remote"):
            _require(getattr(self, name) != "", name, getattr(self, name), "the name of a folder, or left out")
        _require(self.remote is None or "://" in self.remote, "remote", self.remote, "a URL, such as file:///folder")
        _require(
            self.init_from is None or self.resume_from is None,
            "init_from", self.init_from, "left out where resume_from is given: that one brings its weights along",
        )
        _require(self.monitor_mode in ("min", "max"), "monitor_mode", self.monitor_mode, "'min' or 'max'")


def check_durability(config: "DurabilityConfig", steps: int, validate_every: int) -> None:
    """Check what depends on the length of the run and its validations; raises UserError."""
    _require(
        config.num_checkpoints <= steps, "num_checkpoints", config.num_checkpoints, f"at most steps={steps}"
    )
    _require(
        config.keep_best == 0 or validate_every >= 1,
        "validate_every", validate_every, "1 or above where keep_best is not 0",
    )


def check_one_origin(config: "DurabilityConfig", option: str, value: str | None) -> None:
    """Check that the weights to begin with come from one place; raises UserError naming both options."""
    if config.init_from is not None and value is not None:
        raise UserError(
            f"train.init_from={config.init_from} and {option}={value}: both name weights to begin with; give "
            f"{option} for a file of weights, or train.init_from for a run"
        )

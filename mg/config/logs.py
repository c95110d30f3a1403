"""Where else the figures of a training go, besides the files in its output folder."""

from dataclasses import dataclass, field
from typing import Literal

from mg.errors import UserError


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Weights & Biases (the package `wandb`); raises UserError for values out of range."""

    mode: Literal["disabled", "online", "offline"] = "disabled"
    """offline writes below the output folder and needs no network; `wandb sync` sends it later."""
    project: str = "mg"
    """Project that the run belongs to."""
    entity: str | None = None
    """User or team that the project belongs to; none: the default of the account."""
    name: str | None = None
    """What the run is called; none: the name of the output folder."""

    def __post_init__(self) -> None:
        """Check choices."""
        if self.mode not in ("disabled", "online", "offline"):
            raise UserError(f"wandb.mode={self.mode!r} must be 'disabled', 'online' or 'offline'")
        for name in ("project", "entity", "name"):
            if getattr(self, name) == "":
                raise UserError(f"wandb.{name}='' must not be empty; leave it out")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Further places for the figures; metrics.jsonl and its like are always written."""

    tensorboard: bool = False
    """Write event files for TensorBoard into the folder `tensorboard` (needs the package tensorboardX)."""
    wandb: WandbConfig = field(default_factory=WandbConfig)

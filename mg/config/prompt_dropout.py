"""How often training replaces prompts by the empty one."""

from dataclasses import dataclass

from mg.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PromptDropout:
    """Prompt dropout, which teaches a generator the unconditional prediction that guidance needs.

    Attributes:
        all: share of the samples in which every encoder gets the empty prompt, 0 to 1.
        each: in the other samples, share in which an encoder gets it, each by itself, 0 to 1.
        seed: of what is drawn, 0 or greater.

    Raises:
        UserError: a value is out of range.
    """

    all: float = 0.2
    each: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every range."""
        for name in ("all", "each"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"prompt dropout {name}={getattr(self, name)}: give a probability between 0 and 1")
        if self.seed < 0:
            raise UserError(f"prompt dropout seed={self.seed}: give at least 0")

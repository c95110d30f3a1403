"""How training is spread over devices."""

from dataclasses import dataclass

from mg.errors import UserError

AXES = ("data", "zero", "context", "sequence", "tensor")
"""Axes of the mesh, slowest first: neighbouring ranks share a tensor group, copies of the model are far apart."""


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """Degrees of parallelism; their product is the number of devices; raises UserError for values out of range."""

    data: int = -1
    """Copies of the whole model, each with its own rows of the batch; -1: as many as the other degrees leave."""
    zero: int = 1
    """Devices that have their own rows of the batch, too, and divide optimizer state, gradients or weights among them
    (zero_stage). Any one of the five degrees may be -1."""
    context: int = 1
    """Parts of every sequence of tokens whose keys and values are gathered for attention."""
    sequence: int = 1
    """Parts of every sequence of tokens that exchange tokens for heads in attention (Ulysses)."""
    tensor: int = 1
    """Parts of the weights of attention and feed-forward, and of the tokens between them."""
    zero_stage: int = 0
    """What the devices of zero, context and sequence divide among them: 0 nothing, 1 the optimizer's state and the
    averaged weights, 2 the gradients, too, 3 the weights, too."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in AXES:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or (value < 1 and value != -1):
                raise UserError(f"parallel.{name}={value!r} must be 1 or above, or -1 for the devices that are left")
        free = [name for name in AXES if getattr(self, name) == -1]
        if len(free) > 1:
            raise UserError(f"parallel: {' and '.join(free)} are -1; only one can be; set the others")
        if self.zero_stage not in (0, 1, 2, 3):
            raise UserError(f"parallel.zero_stage={self.zero_stage!r} must be 0, 1, 2 or 3")

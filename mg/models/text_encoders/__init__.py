"""The three text encoders: prompts to embeddings, one per token, projected and joined."""

import importlib
from typing import Any

# Modules load when one of their names is first asked for: rules for prompts and the arrays that encoders give are used
# where MindSpore is not, and importing it takes seconds.
_HOMES = {
    "KINDS": "config",
    "LENGTHS": "config",
    "WIDTHS": "config",
    "TextEncoder": "encoder",
    "TextFeatures": "features",
    "TextProjector": "projector",
    "as_inputs": "projector",
    "clean_prompt": "prompts",
    "fps_prefix": "prompts",
    "join_masks": "projector",
    "ones_features": "projector",
    "quoted_text": "prompts",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Load the module that a public name lives in."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

"""What a user calls from Python: generate and reconstruct videos, encode prompts, train a model."""

import importlib
from typing import Any

# Loaded when it is first asked for: it imports MindSpore, which command lines do not do before they are parsed.
_HOMES = {"TextToVideoPipeline": "text_to_video"}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Load the module that a public name lives in."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

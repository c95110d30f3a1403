"""The Movie Gen transformer."""

import importlib
from typing import Any

# Modules load when one of their names is first asked for: configurations are read where MindSpore is not.
_HOMES = {
    "LlamaConfig": "config",
    "LlamaModel": "network",
    "PRESETS": "config",
    "count_parameters": "config",
    "load_llama": "loading",
    "load_weights": "loading",
    "parameter_shapes": "config",
    "read_config": "loading",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Load the module that a public name lives in."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)

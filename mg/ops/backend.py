"""Questions about the backend that a network may ask while it is compiled."""

import mindspore as ms

from mg import device


@ms.ops.constexpr
def on_cpu() -> bool:
    """Tell whether this process runs on the CPU; a constant inside a graph."""
    return device.is_cpu()

"""Movie Gen on MindSpore."""

# First of all, because it sets the environment that MindSpore reads when it loads, and any other module may load it.
from mg import device as device

__version__ = "0.1.0"

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for trainer_toy, which a test also runs as a program


@pytest.fixture(autouse=True)
def graph_mode():
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")

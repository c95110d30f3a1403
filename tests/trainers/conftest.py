import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for trainer_toy, which a test also runs as a program


@pytest.fixture(autouse=True)
def graph_mode():
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    """An uninterrupted run of the toy of 10 steps, all checkpoints kept; not to be written to."""
    from sources_toy import toy

    import mg.device

    mg.device.setup("CPU", "pynative")
    folder = tmp_path_factory.mktemp("runs") / "straight"
    toy(folder, 10, keep_last=0).fit()
    return folder

"""Frames change places with channels, and a chain of cells does not pile up memory."""

import os
import subprocess
import sys

import numpy as np
import pytest
from mindspore import Tensor

from mg.ops.conv import FoldTime, UnfoldTime
from mg.ops.layout import SwapFrames


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 4, 2, 5), (1, 1, 3, 2, 2), (2, 3, 1, 1, 1)])
def test_swap_and_its_gradient(peer, native, shape):
    peer.agrees(SwapFrames(native), lambda x: x.transpose(1, 2), peer.noise(*shape), atol=0.0)


@pytest.mark.parametrize("native", [True, False])
def test_half_precision_is_moved_exactly(peer, native):
    x = peer.noise(2, 3, 4, 2, 2).astype(np.float16)
    got = SwapFrames(native)(Tensor(x)).asnumpy()
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got, x.swapaxes(1, 2))


@pytest.mark.parametrize("frames", [1, 4])
def test_fold_and_unfold(peer, frames):
    x = peer.noise(2, 3, frames, 2, 5)
    folded = FoldTime()(Tensor(x))
    np.testing.assert_array_equal(folded.asnumpy(), x.swapaxes(1, 2).reshape(2 * frames, 3, 2, 5))
    np.testing.assert_array_equal(UnfoldTime()(folded, 2).asnumpy(), x)


PROGRAM = """
import sys
import mg.device
mg.device.setup("CPU", "graph")
import numpy as np
from mindspore import Tensor, nn
from mg.ops import GroupNorm, SpatialConv
from mg.ops.layout import SwapFrames

class Link(nn.Cell):
    def __init__(self):
        super().__init__()
        self.norm, self.conv = GroupNorm(8, 4), SpatialConv(16, 16, 3)
        self.there, self.back = SwapFrames(), SwapFrames()

    def construct(self, x):
        return self.back(self.conv(self.there(self.norm(x))))

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key)) // 1024  # MiB

chain = nn.SequentialCell([Link() for _ in range(int(sys.argv[1]))])
x = Tensor(np.ones((1, 8, 16, 256, 256), np.float32))  # 32 MiB
chain(Tensor(np.ones((1, 8, 16, 8, 8), np.float32))).asnumpy()
before = status("VmRSS")
chain(x).asnumpy()
print(status("VmHWM") - before)
"""


@pytest.mark.slow
def test_a_longer_chain_needs_no_more_memory(root, tmp_path):
    # A fault we had: the CPU's transpose and broadcast sum kept 2 to 4 buffers each until the graph had ended.
    program = tmp_path / "chain.py"  # MindSpore reads the source of what it compiles
    program.write_text(PROGRAM)

    def peak(cells):
        command = [sys.executable, str(program), str(cells)]
        run = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return int(run.stdout.split()[-1])

    short, long = peak(4), peak(12)
    assert short >= 64  # the measurement sees the tensors at all
    assert long <= 1.5 * short

"""LPIPS of clips: every frame once, in the shape the network was compiled for."""

import numpy as np
import pytest
from mindspore import mint

from mg.metrics import lpips, lpips_frames


class Distance:
    """Mean absolute difference, and the shapes it saw."""

    def __init__(self):
        self.shapes = []

    def __call__(self, a, b):
        self.shapes.append(a.shape)
        return mint.abs(a - b).mean((1, 2, 3))


@pytest.mark.parametrize("frames", [1, 3, 4, 9])
def test_every_frame_is_compared_in_one_shape(frames):
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, frames, 5, 7, 3)).astype(np.uint8)
    distance = Distance()
    want = np.abs(a.astype(float) - b).mean((1, 2, 3))
    np.testing.assert_allclose(lpips_frames(a, b, distance), want, rtol=1e-5)
    assert lpips(a, b, distance) == pytest.approx(want.mean(), rel=1e-5)
    assert set(distance.shapes) == {(min(frames, 4), 3, 5, 7)}


def test_what_is_no_pair_of_clips_is_refused():
    for a, b in (((2, 4, 4, 3), (3, 4, 4, 3)), ((2, 4, 4, 1), (2, 4, 4, 1)), ((0, 4, 4, 3), (0, 4, 4, 3))):
        with pytest.raises(ValueError, match="give two clips"):
            lpips(np.zeros(a), np.zeros(b), Distance())

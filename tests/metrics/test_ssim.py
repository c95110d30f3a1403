"""SSIM against scikit-image."""

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from mg.metrics import ssim


def peer(a, b, data_range):
    return structural_similarity(
        a, b, data_range=data_range, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=-1
    )


def pair(shape, seed):
    rng = np.random.default_rng(seed)
    a = rng.random(shape).cumsum(axis=0).cumsum(axis=1) % 1.0  # structure, not only noise
    return a, np.clip(a + 0.1 * rng.standard_normal(shape), 0, 1)


@pytest.mark.parametrize("shape", [(11, 11, 3), (24, 37, 3), (40, 16, 1)])
def test_frame_equals_peer(shape):
    a, b = pair(shape, 0)
    assert ssim(a, b, 1.0) == pytest.approx(peer(a, b, 1.0), abs=1e-9)
    assert ssim(2 * a - 1, 2 * b - 1, 2.0) == pytest.approx(peer(2 * a - 1, 2 * b - 1, 2.0), abs=1e-9)


def test_bytes_equal_peer():
    a, b = ((x * 255).astype(np.uint8) for x in pair((32, 32, 3), 1))
    assert ssim(a, b, 255) == pytest.approx(peer(a, b, 255), abs=1e-9)


def test_clip_is_the_mean_of_its_frames():
    a, b = pair((5, 20, 22, 3), 2)
    assert ssim(a, b, 1.0) == pytest.approx(np.mean([peer(x, y, 1.0) for x, y in zip(a, b, strict=True)]), abs=1e-9)


def test_equal_is_one_and_noise_is_less():
    a, b = pair((2, 16, 16, 3), 3)
    assert ssim(a, a, 1.0) == pytest.approx(1.0, abs=1e-12)
    assert ssim(a, b, 1.0) < 0.99


@pytest.mark.parametrize(
    ("a", "b", "data_range", "text"),
    [
        ((16, 16, 3), (16, 17, 3), 1.0, "differ"),
        ((16, 10, 3), (16, 10, 3), 1.0, "16x10"),
        ((16, 16), (16, 16), 1.0, "neither"),
        ((16, 16, 3), (16, 16, 3), -1.0, "data_range"),
    ],
)
def test_nonsense_is_refused(a, b, data_range, text):
    with pytest.raises(ValueError, match=text):
        ssim(np.zeros(a), np.zeros(b), data_range)

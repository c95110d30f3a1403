"""PSNR against its formula."""

import math

import numpy as np
import pytest

from mg.metrics import psnr, psnr_frames


def test_known_values():
    a = np.zeros((2, 4, 4, 3), dtype=np.uint8)
    b = np.full_like(a, 5)
    assert psnr(a, b, 255) == pytest.approx(20 * math.log10(255 / 5), abs=1e-9)
    x = np.zeros((3, 2, 8, 8), dtype=np.float32)
    assert psnr(x, x + 0.02, 2.0) == pytest.approx(40.0, abs=1e-5)


def test_bytes_do_not_wrap_around():
    black, white = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    assert psnr(black, white, 255) == psnr(white, black, 255) == 0.0


def test_equal_clips_are_infinitely_close():
    a = np.random.default_rng(0).random((2, 4, 4, 3))
    assert psnr(a, a, 1.0) == math.inf


def test_clip_averages_the_error_before_the_logarithm():
    a = np.zeros((2, 4, 4, 3))
    b = a.copy()
    b[0] += 0.1
    b[1] += 0.3
    assert psnr(a, b, 2.0) == pytest.approx(10 * math.log10(4 / ((0.01 + 0.09) / 2)), abs=1e-9)
    assert psnr_frames(a, b, 2.0) == pytest.approx([20 * math.log10(2 / 0.1), 20 * math.log10(2 / 0.3)], abs=1e-9)


def test_range_does_not_depend_on_the_encoding():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8)
    assert psnr(a / 127.5 - 1, b / 127.5 - 1, 2.0) == pytest.approx(psnr(a, b, 255), abs=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "data_range", "text"),
    [((2, 3), (2, 4), 1.0, "differ"), ((0, 3), (0, 3), 1.0, "nothing"), ((2, 3), (2, 3), 0.0, "data_range 0.0")],
)
def test_nonsense_is_refused(a, b, data_range, text):
    with pytest.raises(ValueError, match=text):
        psnr_frames(np.zeros(a), np.zeros(b), data_range)

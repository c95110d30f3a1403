"""Scaling, cropping and the change of value range."""

import cv2
import numpy as np
import pytest

from mg.dataset.transforms import crop_resize, resize, resize_cover_crop, shrink_short_side, to_frames, to_tensor


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def ramp(h, w):
    """A picture whose red is the row and whose green is the column."""
    frame = np.zeros((1, h, w, 3), np.uint8)
    frame[..., 0], frame[..., 1] = np.mgrid[:h, :w]
    return frame


def test_to_tensor_is_the_formula_and_to_frames_its_inverse():
    frames = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1).repeat(2, axis=0)
    x = to_tensor(frames)
    assert x.shape == (3, 2, 16, 16) and x.dtype == np.float32
    np.testing.assert_allclose(x, frames.transpose(3, 0, 1, 2) / 127.5 - 1, atol=1e-7)
    assert (x.min(), x.max()) == (-1.0, 1.0)
    np.testing.assert_array_equal(to_frames(x), frames)


def test_to_frames_rounds_and_clips():
    x = np.array([-9.0, -1.0, 0.6 / 127.5 - 1, 0.4 / 127.5 - 1, 1.0, 1.7], np.float32).reshape(1, 1, 1, 6).repeat(3, 0)
    np.testing.assert_array_equal(to_frames(x)[0, 0, :, 0], [0, 0, 1, 0, 255, 255])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_to_frames_refuses_broken_numbers(value):
    x = np.zeros((3, 1, 2, 2), np.float32)
    x[1, 0, 1, 1] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        to_frames(x)


def test_shrinking_averages_areas():
    frames = noise(3, 32, 48, 3)
    blocks = frames.reshape(3, 8, 4, 12, 4, 3).mean(axis=(2, 4))  # (3, 8, 12, 3)
    np.testing.assert_allclose(resize(frames, (8, 12)), blocks, atol=0.51)


def test_enlarging_is_cubic():
    frames = noise(1, 10, 12, 3)
    expected = cv2.resize(frames[0], (24, 20), interpolation=cv2.INTER_CUBIC)
    np.testing.assert_array_equal(resize(frames, (20, 24))[0], expected)


def test_cover_crop_cuts_only_the_longer_side():
    frames = ramp(40, 80)
    centre = resize_cover_crop(frames, (40, 40))
    np.testing.assert_array_equal(centre, frames[:, :, 20:60])
    np.testing.assert_array_equal(resize_cover_crop(frames, (40, 40), (0.5, 0.0)), frames[:, :, :40])
    np.testing.assert_array_equal(resize_cover_crop(frames, (40, 40), (0.0, 1.0)), frames[:, :, 40:])


@pytest.mark.parametrize("source", [(33, 47), (47, 33), (20, 90), (5, 7)])
@pytest.mark.parametrize("size", [(32, 32), (16, 40)])
def test_any_source_gives_the_size(source, size):
    frames = noise(2, *source, 3)
    assert resize_cover_crop(frames, size).shape == (2, *size, 3)
    assert crop_resize(frames, size, 0.7, (1.0, 1.0)).shape == (2, *size, 3)


def test_crop_resize_agrees_with_cover_crop():
    frames = noise(2, 64, 128, 3)
    np.testing.assert_array_equal(crop_resize(frames, (32, 32)), resize_cover_crop(frames, (32, 32)))


def test_crop_resize_window_is_the_share_asked_for():
    frames = ramp(64, 64)
    np.testing.assert_array_equal(crop_resize(frames, (32, 32), 0.5, (0.0, 1.0)), frames[:, :32, 32:])


def test_shrink_short_side():
    assert shrink_short_side(noise(2, 60, 120, 3), 30).shape == (2, 30, 60, 3)
    small = noise(2, 20, 40, 3)
    np.testing.assert_array_equal(shrink_short_side(small, 30), small)

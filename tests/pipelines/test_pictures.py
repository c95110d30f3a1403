"""Contact sheets and side-by-side videos, pixel by pixel."""

import cv2
import numpy as np
import pytest

from mg.pipelines.pictures import LABEL_HEIGHT, contact_sheet, difference, side_by_side, write_png


def noise(t, h, w, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (t, h, w, 3), dtype=np.uint8)


def test_side_by_side_has_the_first_video_left():
    left, right = noise(3, 4, 6), noise(3, 4, 6, seed=1)
    both = side_by_side(left, right)
    np.testing.assert_array_equal(both[:, :, :6], left)
    np.testing.assert_array_equal(both[:, :, 6:], right)


def test_sheet_shows_evenly_spaced_frames_from_the_first_to_the_last_row_by_row():
    a, b = noise(15, 16, 20), noise(15, 16, 20, seed=1)
    sheet = contact_sheet([("a", a), ("b", b)], columns=8, height=128)
    band = LABEL_HEIGHT + 16
    assert sheet.shape == (2 * band, 8 * 20, 3)
    for row, frames in enumerate((a, b)):
        pictures = sheet[row * band + LABEL_HEIGHT : (row + 1) * band]
        for column in range(8):
            np.testing.assert_array_equal(pictures[:, column * 20 : (column + 1) * 20], frames[2 * column])
        assert sheet[row * band : row * band + LABEL_HEIGHT].max() > 200  # the label


@pytest.mark.parametrize("frames", [1, 3])
def test_sheet_of_a_short_clip_shows_every_frame_once(frames):
    assert contact_sheet([("a", noise(frames, 16, 20))]).shape == (LABEL_HEIGHT + 16, frames * 20, 3)


def test_large_frames_are_shrunk_to_area_means():
    frames = noise(1, 64, 96)
    sheet = contact_sheet([("a", frames)], height=32)
    means = frames[0].reshape(32, 2, 48, 2, 3).mean((1, 3))
    assert np.abs(sheet[LABEL_HEIGHT:] - means).max() <= 0.5 + 1e-6


def test_difference_is_amplified_and_does_not_wrap():
    a = np.array([0, 10, 200, 255, 7], np.uint8)
    b = np.array([3, 4, 100, 0, 7], np.uint8)
    assert difference(a, b, gain=4).tolist() == [12, 24, 255, 255, 0]


def test_png_keeps_every_pixel_in_rgb(tmp_path):
    picture = noise(1, 9, 7)[0]
    write_png(tmp_path / "ä b.png", picture)
    data = np.frombuffer((tmp_path / "ä b.png").read_bytes(), np.uint8)
    np.testing.assert_array_equal(cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1], picture)

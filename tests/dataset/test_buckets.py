"""Sizes of buckets, and which one a video belongs to."""

import math

import pytest

from mg.dataset.buckets import Bucket, bucket_sizes, nearest_bucket, nearest_frames, nearest_size, parse_size
from mg.errors import UserError

# (height, width) of the reference's table, wide ones; tall ones are the same turned around.
WIDE = {
    256: [(224, 272), (208, 288), (192, 320), (192, 336), (176, 352), (160, 384)],
    768: [(672, 848), (656, 880), (592, 960), (576, 1024), (528, 1072), (496, 1168)],
}


@pytest.mark.parametrize("side", [256, 768])
def test_the_reference_table(side):
    wanted = {(side, side), *WIDE[side], *((w, h) for h, w in WIDE[side])}
    assert len(wanted) == 13 and set(bucket_sizes(side)) == wanted and len(bucket_sizes(side)) == 13


@pytest.mark.parametrize("side", [25, 64, 100, 256, 512, 768, 1080])
def test_sides_are_multiples_of_16_and_areas_within_the_square(side):
    for height, width in bucket_sizes(side):
        assert height % 16 == width % 16 == 0 and height * width <= side * side
    assert {(w, h) for h, w in bucket_sizes(side)} == set(bucket_sizes(side))


def test_too_small_an_area():
    with pytest.raises(UserError, match="24px is too small"):
        bucket_sizes(24)


def test_a_video_goes_to_the_nearest_ratio():
    assert nearest_bucket(1080, 1920, 100) == Bucket(64, 192, 336)
    assert nearest_bucket(1920, 1080, 256) == Bucket(256, 336, 192)
    assert nearest_bucket(480, 640, 1) == Bucket(1, 208, 288)
    assert nearest_bucket(720, 720, 300, side=768) == Bucket(256, 768, 768)
    assert nearest_bucket(100, 1000, 1) == Bucket(1, 160, 384)  # wider than the widest
    assert nearest_bucket(64, 64, 40, side=64, counts=(1, 16, 32)) == Bucket(32, 64, 64)
    assert nearest_bucket(64, 64, 15, counts=(16, 32)) is None
    assert str(Bucket(64, 192, 336)) == "64x192x336"


@pytest.mark.parametrize("height, width", [(300, 400), (333, 777), (1000, 999), (512, 301)])
def test_no_other_size_is_nearer(height, width):
    chosen = nearest_size(height, width, bucket_sizes(256))
    distance = [abs(math.log(h / w) - math.log(height / width)) for h, w in bucket_sizes(256)]
    assert abs(math.log(chosen[0] / chosen[1]) - math.log(height / width)) == pytest.approx(min(distance), abs=1e-9)


def test_frames_are_those_that_the_video_fills():
    assert [nearest_frames(n, (1, 64, 128)) for n in (0, 1, 63, 64, 127, 128, 500)] == [None, 1, 1, 64, 64, 128, 128]


def test_size_options():
    assert parse_size("64") == parse_size((64, 64)) == ((64, 64),)
    assert parse_size((256, 455)) == ((256, 448),)  # as in the reference's commands: rounded down to 16
    assert parse_size("256px") == bucket_sizes(256) and parse_size("source") is None
    for wrong in ("large", "", "8", (8, 64), (64, 64, 64), "-64", "64 px wide"):
        with pytest.raises(UserError, match="size="):
            parse_size(wrong)

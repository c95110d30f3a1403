from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mg.dataset.fps import pretraining_decision, read_at_rate, resample_times
from mg.dataset.video import probe, read_video
from mg.dataset.video_writer import write_video
from mg.errors import BadClip, UserError

CLIPS = Path(__file__).parents[2] / "assets" / "clips"


def clock(times):
    """Frames whose brightness tells their time: 60 grey levels a second, from 20."""
    levels = np.rint(20 + 60 * np.asarray(times, float)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (len(levels), 32, 32, 3))


def read_clock(frames):
    return (frames.mean(axis=(1, 2, 3)) - 20) / 60


def write_variable(path, frames, milliseconds):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "5"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for frame, tick in zip(frames, milliseconds, strict=True):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            picture.pts, picture.time_base = int(tick), Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("fps", "keep", "reason"),
    [
        (16, True, "16 frames per second: kept as it is, as FPS-16"),
        (Fraction(30000, 1001), True, "29.97 frames per second: kept as it is, as FPS-30"),
        (60, True, "60 frames per second: kept as it is, as FPS-60"),
        (15.98, True, "15.98 frames per second: kept as it is, as FPS-16"),
        (Fraction(15000, 1001), False, "14.99 frames per second: dropped, below 16"),
        (15.4, False, "15.4 frames per second: dropped, below 16"),
        (0.5, False, "0.5 frames per second: dropped, below 16"),
    ],
)
def test_pretraining_keeps_sixteen_and_more(fps, keep, reason):
    decision = pretraining_decision(fps)
    assert (decision.keep, decision.reason) == (keep, reason)


@pytest.mark.parametrize("source", [10, 12, 15, 16, 24, 25, Fraction(30000, 1001), 30, 50, 60, 120])
@pytest.mark.parametrize("target", [16, 24, Fraction(24000, 1001), 60])
@pytest.mark.parametrize("count", [1, 2, 3, 31, 300])
def test_by_time(source, target, count):
    times = 7.25 + np.arange(count) / float(source)  # a file need not start at 0
    indices = resample_times(times, target)
    wanted = np.arange(len(indices)) / float(target)
    half = 0.5 / float(source) + 1e-5
    assert np.abs(times[indices] - times[0] - wanted).max() <= half
    assert wanted[-1] < count / float(source) or count == 1
    assert (np.diff(indices) >= 0).all()
    if count > 1:
        frame = max(1 / float(source), 1 / float(target))
        assert abs(len(indices) / float(target) - count / float(source)) <= frame + 1e-5


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (24, 24, [0, 1, 2, 3, 4, 5]),
        (60, 24, [0, 2, 5]),  # 2.5 is a tie, the earlier one
        (30, 24, [0, 1, 2, 4, 5]),
        (12, 24, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
        (16, 24, [0, 1, 1, 2, 3, 3, 4, 5, 5]),
        (32, 16, [0, 2, 4]),
    ],
)
def test_six_frames_by_hand(source, target, expected):
    assert resample_times([k / source for k in range(6)], target).tolist() == expected


def test_the_same_rate_is_the_same_clip():
    for times in (probe(CLIPS / "flower_open.mp4").times, tuple(np.round(np.arange(500) / 24, 3))):
        rate = (len(times) - 1) / (times[-1] - times[0])
        assert resample_times(times, rate).tolist() == list(range(len(times)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("target", [16, 24])
def test_uneven_times_against_brute_force(seed, target):
    gaps = np.random.default_rng(seed).uniform(0.005, 0.1, 200)
    times = 3 + np.cumsum(gaps)
    indices = resample_times(times, target)
    for number, index in enumerate(indices):
        distance = np.abs(times - times[0] - number / target)
        assert distance[index] == pytest.approx(distance.min(), abs=3e-6)
    end = times[-1] - times[0]
    assert end - 1 / target < (len(indices) - 1) / target <= end + np.median(gaps[1:]) / 2


def test_a_pause_repeats_the_frame_shown():
    times = [0, 0.04, 0.08, 1.08, 1.12]
    indices = resample_times(times, 16)
    # 0.58 is the middle of the pause: up to k = 9 its beginning is nearer, from k = 10 its end.
    assert indices.tolist() == [0, *[2] * 9, *[3] * 8, 4]


@pytest.mark.parametrize("times", [[], [0.0, 0.0], [0.0, 1.0, 0.5], [0.0, float("nan")], [float("inf")]])
def test_times_that_are_none(times):
    with pytest.raises(ValueError, match="strictly increasing"):
        resample_times(times, 24)


@pytest.mark.parametrize("target", [0, -16, float("nan"), float("inf")])
def test_rates_that_are_none(target):
    with pytest.raises(UserError, match="^target_fps: .* is not a frame rate"):
        resample_times([0.0, 1.0], target)


@pytest.mark.parametrize("target", [16, 24])
def test_a_file_and_its_reencoding_at_half_the_rate(tmp_path, target):
    times = np.arange(61) / 30
    write_video(tmp_path / "30.mp4", clock(times), 30, crf=5)
    write_video(tmp_path / "15.mp4", clock(times[:60:2]), 15, crf=5)
    clips = {rate: read_at_rate(tmp_path / f"{rate}.mp4", target) for rate in (30, 15)}
    lengths = {rate: len(clip.frames) for rate, clip in clips.items()}
    assert abs(lengths[30] - lengths[15]) <= 1
    for rate, clip in clips.items():
        assert clip.fps == target
        assert abs(lengths[rate] / target - 2) <= 1 / target + 1 / 30
        error = read_clock(clip.frames) - np.arange(lengths[rate]) / target
        assert np.abs(error).max() < 0.5 / rate + 2 / 60  # two grey levels for the codec


def test_sixty_to_twenty_four(tmp_path):
    write_video(tmp_path / "60.mp4", clock(np.arange(120) / 60), 60, crf=5)
    clip = read_at_rate(tmp_path / "60.mp4", 24)
    times = np.array(probe(tmp_path / "60.mp4").times)[clip.indices]
    assert len(clip.frames) == 48
    assert np.abs(times - np.arange(48) / 24).max() <= 0.5 / 60 + 1e-6


def test_frames_are_those_of_the_file():
    path = CLIPS / "flower_open.mp4"
    clip = read_at_rate(path, 16, start=3, num_frames=5, short_side=64)
    whole = resample_times(probe(path).times, 16)
    assert clip.indices.tolist() == whole[3:8].tolist()
    np.testing.assert_array_equal(clip.frames, read_video(path, short_side=64)[whole[3:8]])


def test_own_rate():
    clip = read_at_rate(CLIPS / "flower_open.mp4", None, start=60, num_frames=10, short_side=32)
    assert clip.fps == Fraction(30000, 1001)
    assert clip.indices.tolist() == [60, 61, 62, 63, 64]


def test_uneven_file_plays_at_its_own_speed(tmp_path):
    ticks = np.cumsum([0, *np.random.default_rng(0).integers(10, 90, 40)])
    path = write_variable(tmp_path / "uneven.mkv", clock(ticks / 1000), ticks)
    clip = read_at_rate(path, 24)
    wanted = np.arange(len(clip.frames)) / 24
    nearest = np.abs(ticks[:, None] / 1000 - wanted).min(axis=0)
    assert (np.abs(read_clock(clip.frames) - wanted) < nearest + 2 / 60).all()
    by_number = ticks[np.rint(np.linspace(0, 40, len(wanted))).astype(int)] / 1000
    assert (np.abs(by_number - wanted) > nearest + 2 / 60).any()  # which is what this clip would show


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(BadClip, match="file not found"):
        read_at_rate(tmp_path / "no.mp4", 24)
    with pytest.raises(BadClip, match="is a picture, which has no frame rate"):
        read_at_rate(tmp_path / "a.png", 24)
    with pytest.raises(BadClip, match="has 52 frames at this rate, frame 52 was asked for"):
        read_at_rate(CLIPS / "flower_open.mp4", 24, start=52)
    with pytest.raises(UserError, match="start=-1"):
        read_at_rate(CLIPS / "flower_open.mp4", 24, start=-1)
    with pytest.raises(UserError, match="num_frames=0"):
        read_at_rate(CLIPS / "flower_open.mp4", 24, num_frames=0)

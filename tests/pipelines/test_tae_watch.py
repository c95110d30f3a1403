"""The videos that a training of the autoencoder shows of its validation."""

from fractions import Fraction

import mindspore  # noqa: F401 - must be loaded before decord
import numpy as np
import pytest

from mg.config.tae_train import TaeTrainConfig, TaeValidationConfig
from mg.config.trainer import TrainerConfig
from mg.dataset.manifest import scan_folder
from mg.dataset.video import probe, read_image, read_video
from mg.errors import UserError
from mg.metrics import psnr
from mg.pipelines.pictures import LABEL_HEIGHT
from mg.pipelines.reconstruct import read_clip
from mg.pipelines.tae_watch import ComparisonVideos, validator


class Darker:
    """In the place of the autoencoder: gives half of the brightness, in three latent channels."""

    def set_train(self, mode):
        self.training = mode

    def encode(self, x):
        return None, x, None

    def decode(self, z, num_target_frames):
        return (z + 1) * 0.5 - 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clip):
    folder = tmp_path_factory.mktemp("clips")
    clip(folder / "a clip.mp4", 9, 32, 48, rate=Fraction(24))
    clip(folder / "b.mp4", 5, 40, 40, rate=Fraction(25), seed=2)
    from mg.pipelines.pictures import write_png

    write_png(folder / "c.png", np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    return folder


def test_original_and_reconstruction_stand_side_by_side(folder, tmp_path):
    items = scan_folder(folder)
    validate = validator(Darker(), items, 32, 9, ComparisonVideos(tmp_path, 3))
    figures = validate(7)
    out = tmp_path / "step-00000007"
    assert sorted(path.name for path in out.iterdir()) == ["0-a-clip.mp4", "1-b.mp4", "2-c.png", "sheet.png"]
    scores = []
    for name, item, length, rate in (("0-a-clip.mp4", items[0], 9, 24), ("1-b.mp4", items[1], 5, 25)):
        shown = read_video(out / name, range(length)).astype(float)
        clip = read_clip(item, 9, 32).frames
        assert probe(out / name).fps == rate and shown.shape == (length, 32, 64, 3)
        assert np.abs(shown[:, :, :32] - clip).mean() < 6  # what the video's compression leaves
        assert np.abs(shown[:, :, 32:] - clip / 2).mean() < 6
        scores.append(psnr(clip, np.clip(np.round(clip / 2), 0, 255).astype(np.uint8), 255.0))
    (pair,) = read_image(out / "2-c.png")
    picture = read_clip(items[2], 9, 32).frames[0]
    np.testing.assert_array_equal(pair[:, :32], picture)
    assert np.abs(pair[:, 32:] - picture / 2).max() <= 0.5
    scores.append(psnr(picture[None], pair[None, :, 32:], 255.0))
    assert figures["val_psnr"] == pytest.approx(np.mean(scores), abs=0.02)


def test_the_sheet_has_three_rows_per_clip_and_the_first_and_last_frame(folder, tmp_path):
    items = scan_folder(folder)
    validator(Darker(), items, 32, 9, ComparisonVideos(tmp_path, 2))(1)
    (sheet,) = read_image(tmp_path / "step-00000001" / "sheet.png")
    band = 32 + LABEL_HEIGHT
    assert sheet.shape == (2 * 3 * band, 8 * 32, 3)
    clip = read_clip(items[0], 9, 32).frames
    np.testing.assert_array_equal(sheet[LABEL_HEIGHT:band, :32], clip[0])
    np.testing.assert_array_equal(sheet[LABEL_HEIGHT:band, -32:], clip[-1])
    below = sheet[band + LABEL_HEIGHT : 2 * band, :32].astype(float)
    assert np.abs(below - clip[0] / 2).max() <= 0.5
    assert sheet[:LABEL_HEIGHT].max() > 200  # a label
    second = sheet[3 * band + LABEL_HEIGHT : 4 * band]
    np.testing.assert_array_equal(second[:, : 5 * 32].reshape(32, 5, 32, 3)[:, 4], read_clip(items[1], 9, 32).frames[4])
    assert (second[:, 5 * 32 :] == 0).all()


@pytest.mark.parametrize(
    "options, want",
    [((2, 0, None), {4, 8, 12, 13}), ((2, 8, 13), {8, 13}), ((2, 8, None), {8}), ((0, 0, 13), set())],
)
def test_when_they_are_due(tmp_path, options, want):
    videos = ComparisonVideos(tmp_path, *options)
    assert {step for step in (4, 8, 12, 13) if videos.is_due(step)} == want


def test_a_network_that_gives_nan_shows_nothing_and_none_are_written_unasked(folder, tmp_path):
    class Broken(Darker):
        def decode(self, z, num_target_frames):
            return z * np.nan

    validator(Broken(), scan_folder(folder), 32, 9, ComparisonVideos(tmp_path, 2))(1)
    validator(Darker(), scan_folder(folder), 32, 9, ComparisonVideos(tmp_path, 0))(1)
    validator(Darker(), scan_folder(folder), 32, 9, ComparisonVideos(tmp_path, 2, every=5))(1)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_refuses_the_videos_does_not_end_the_training(folder, tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    items = scan_folder(folder)
    assert validator(Darker(), items, 32, 9, ComparisonVideos(tmp_path / "taken", 3))(7) == validator(
        Darker(), items, 32, 9
    )(7)
    assert "WARNING step 7: no validation videos: " in capsys.readouterr().err


def test_wrong_numbers_are_named():
    with pytest.raises(UserError, match=r"videos=-1 must be at least 0"):
        TaeValidationConfig(videos=-1)
    train = TrainerConfig(steps=10, validate_every=4)
    with pytest.raises(UserError, match=r"valid\.videos_every=6 must be a multiple of train\.validate_every=4"):
        TaeTrainConfig(train=train, valid=TaeValidationConfig(videos_every=6))
    TaeTrainConfig(train=train, valid=TaeValidationConfig(videos_every=8))

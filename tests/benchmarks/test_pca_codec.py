"""The linear codec against its definition: exact on its own subspace, optimal beyond it, flat in memory."""

import importlib.util
import json
import sys

import numpy as np
import pytest

from mg.errors import UserError


@pytest.fixture(scope="module")
def pca(root):
    """The benchmark as a module (benchmarks/ is a folder of scripts, not a package)."""
    spec = importlib.util.spec_from_file_location("pca_codec", root / "benchmarks" / "pca_codec.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["pca_codec"] = module  # the option parser reads the source of the settings' class
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def rows():
    rng = np.random.default_rng(3)
    mixing = rng.standard_normal((12, 12)) * np.linspace(3, 0.1, 12)
    return (rng.standard_normal((400, 12)) @ mixing.T + 5.0).astype(np.float32)


def test_blocks_are_cut_where_the_definition_says(pca):
    frames = np.random.default_rng(0).integers(0, 256, (16, 24, 32, 3), np.uint8)
    blocks = pca.to_blocks(frames)
    assert blocks.shape == (2 * 3 * 4, 1536)
    second_in_time_last_row_first_column = frames[8:16, 16:24, 0:8].reshape(-1) / 127.5 - 1
    np.testing.assert_allclose(blocks[1 * 12 + 2 * 4 + 0], second_in_time_last_row_first_column, atol=1e-6)
    np.testing.assert_array_equal(pca.from_blocks(blocks, frames.shape), frames)


def test_pixels_out_of_range_are_clipped(pca):
    blocks = np.full((1, 1536), 1.5, np.float32)
    blocks[0, :3] = -1.5
    frames = pca.from_blocks(blocks, (8, 8, 8, 3))
    assert frames[0, 0, 0].tolist() == [0, 0, 0] and frames[7, 7, 7].tolist() == [255, 255, 255]


def test_components_are_those_of_the_singular_value_decomposition(pca, rows):
    codec = pca.fit(np.array_split(rows, 7), 4)
    np.testing.assert_allclose(codec.mean, rows.mean(0), rtol=1e-5)
    _, _, expected = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    # Components are unique up to their sign.
    np.testing.assert_allclose(np.abs(codec.components @ expected[:4].T), np.eye(4), atol=1e-3)


def test_error_is_the_energy_of_the_discarded_components(pca, rows):
    codec = pca.fit([rows], 5)
    error = ((codec.decode(codec.encode(rows)) - rows) ** 2).sum()
    singular = np.linalg.svd(rows - rows.mean(0), compute_uv=False)
    assert error == pytest.approx((singular[5:] ** 2).sum(), rel=1e-3)


def test_clips_in_the_span_of_the_components_come_back_exactly(pca):
    rng = np.random.default_rng(1)
    patterns = rng.integers(-30, 31, (16, 1536))
    grey_levels = 128 + rng.uniform(-0.5, 0.5, (500, 16)) @ patterns
    codec = pca.fit([(grey_levels / 127.5 - 1).astype(np.float32)], 16)
    blocks = (128 + patterns[:4] - patterns[4:8]) / 127.5 - 1
    frames = pca.from_blocks(blocks, (8, 16, 16, 3))
    assert frames.std() > 10
    np.testing.assert_array_equal(codec.reconstruct(frames), frames)
    outside = frames[:, :, ::-1].copy()
    assert np.abs(codec.reconstruct(outside).astype(int) - outside).mean() > 5


def test_nothing_to_fit_on_is_an_error(pca):
    with pytest.raises(ValueError, match="no blocks"):
        pca.fit([], 4)


@pytest.mark.parametrize(
    ("option", "value"), [("image_size", 100), ("num_frames", 0), ("num_components", 0), ("num_components", 1537)]
)
def test_impossible_settings_are_named(pca, option, value):
    with pytest.raises(UserError, match=f"--{option} {value}"):
        pca.Settings(train_csv="a", test_csv="b", video_folder="c", **{option: value})


def test_command_measures_clips_and_skips_broken_ones(pca, root, tmp_path, capsys):
    clip = root / "assets" / "clips" / "flower_bud.mp4"
    (tmp_path / "clip.mp4").symlink_to(clip)
    (tmp_path / "broken.mp4").write_bytes(clip.read_bytes()[:2000])
    (tmp_path / "list.csv").write_text("video\nclip.mp4\nbroken.mp4\n")
    out = tmp_path / "out.json"
    csv = str(tmp_path / "list.csv")
    flags = ["--video_folder", str(tmp_path), "--image_size", "64", "--num_frames", "16", "--output_path", str(out)]
    pca.main(["--train_csv", csv, "--test_csv", csv, *flags])
    result = json.loads(out.read_text())
    assert list(result["clips"]) == ["clip.mp4"]
    assert result["psnr"] == result["clips"]["clip.mp4"]

    from mg.dataset.transforms import resize_cover_crop
    from mg.dataset.video import read_video

    frames = resize_cover_crop(read_video(clip), (64, 64))
    fitted = pca.to_blocks(frames[: len(frames) // 8 * 8]).astype(np.float64)
    mean = fitted.mean(0)
    _, _, basis = np.linalg.svd(fitted - mean, full_matrices=False)
    shown = pca.to_blocks(frames[:16]) - mean
    restored = pca.from_blocks(shown @ basis[:16].T @ basis[:16] + mean, frames[:16].shape)
    expected = 10 * np.log10(255**2 / np.mean((restored.astype(float) - frames[:16]) ** 2))
    assert result["psnr"] == pytest.approx(expected, abs=0.02)
    figure = f"{result['psnr']:6.2f} dB  "
    shown = capsys.readouterr().out.splitlines()
    assert shown == [figure + "clip.mp4", figure + "mean of 1 clips at 64 px, 16 numbers per block"]


def test_no_readable_clip_is_one_clear_error(pca, tmp_path):
    (tmp_path / "broken.mp4").write_text("not a video")
    (tmp_path / "list.csv").write_text("video\nbroken.mp4\n")
    csv = str(tmp_path / "list.csv")
    with pytest.raises(UserError, match="list.csv.*none of its clips"):
        pca.main(["--train_csv", csv, "--test_csv", csv, "--video_folder", str(tmp_path)])

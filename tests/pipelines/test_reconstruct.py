"""`reconstruct`: what it writes, and that its figures are those of the network's output."""

import csv
import errno
import json
import math
import os
import re
import shutil
from fractions import Fraction
from pathlib import Path

import mindspore  # noqa: F401 - must be loaded before decord
import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image
from skimage.metrics import structural_similarity

from mg.config.reconstruct import ReconstructConfig
from mg.dataset.video import probe, read_image, read_video
from mg.errors import BadClip, NoGoodClip, UserError
from mg.metrics import psnr
from mg.pipelines import reconstruct as room
from mg.pipelines.reconstruct import clips_of, read_clip, reconstruct

FILM = Fraction(24000, 1001)
# name -> (frames, height, width, rate, seed): one shape that fills batches, broken up by odd ones
VIDEOS = {
    "a.mp4": (9, 32, 32, FILM, 0),
    "ünï cödé/my clip.mp4": (9, 32, 32, Fraction(25), 1),
    "sub/a.mp4": (9, 32, 32, Fraction(30), 2),
    "odd.mp4": (1, 31, 45, Fraction(25), 3),
}
NAMES = [*VIDEOS, "odd.png", "photo.JPG", "a.mp4"]  # the last one is listed twice
STEMS = ["a", "ünï cödé__my clip", "sub__a", "odd", "odd-2", "photo", "a-2"]


def config(weights, output, **options):
    return ReconstructConfig(ckpt_path=str(weights), output_path=str(output), device="CPU", **options)


def write_csv(path, names, column="video"):
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([[column], *([name] for name in names)])
    return str(path)


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def leftovers(folder):
    return [path.name for path in folder.rglob("*") if ".tmp" in path.name or path.name.startswith(".")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clip):
    folder = tmp_path_factory.mktemp("with a space")
    for name, (t, h, w, rate, seed) in VIDEOS.items():
        clip(folder / name, t, h, w, rate, seed)
    still = read_video(folder / "odd.mp4")[0]
    Image.fromarray(still).save(folder / "odd.png")
    Image.fromarray(still[::-1]).save(folder / "photo.JPG", quality=95)
    write_csv(folder / "clips.csv", NAMES)
    return folder


@pytest.fixture
def run(folder, weights, tmp_path):
    """Reconstruct `NAMES` (or `names`): run(**options) -> (report, output folder)."""

    def call(names=NAMES, out="out", **options):
        csv_path = write_csv(tmp_path / "list.csv", names)
        return reconstruct(config(weights, tmp_path / out, csv_path=csv_path, video_folder=str(folder), **options)), (
            tmp_path / out
        )

    return call


def expected(networks, weights, frames):
    """The network's answer to one clip, by its public methods."""
    network = next(network for key, network in networks.items() if key[0] == str(weights) and not network.use_tile)
    x = (frames.astype(np.float64) / 127.5 - 1).astype(np.float32).transpose(3, 0, 1, 2)[None]
    _, mean, _ = network.encode(Tensor(np.ascontiguousarray(x)))
    y = network.decode(mean, num_target_frames=len(frames)).asnumpy()[0]
    return np.clip(np.rint((y + 1) * 127.5), 0, 255).astype(np.uint8).transpose(1, 2, 3, 0)


def peak_ratio(a, b):
    return 10 * math.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2))


def similarity(a, b):
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": -1}
    return np.mean([structural_similarity(x, y, data_range=255, **options) for x, y in zip(a, b, strict=True)])


def test_every_clip_gets_its_files_and_its_figures(run, folder, weights, networks):
    report, out = run()
    videos = {"a", "ünï cödé__my clip", "sub__a", "odd", "a-2"}
    wanted = {"metrics.json", "metrics.csv"}
    for stem in STEMS:
        wanted |= {f"{stem}.mp4", f"{stem}_compare.mp4"} if stem in videos else {f"{stem}.png"}
        wanted.add(f"{stem}_sheet.png")
    assert {path.name for path in out.iterdir()} == wanted
    assert json.loads((out / "metrics.json").read_text("utf-8")) == json.loads(json.dumps(report))
    assert (report["value_range"], report["bad"]) == (255.0, [])
    assert [row["video"] for row in report["clips"]] == NAMES
    for name, stem, row in zip(NAMES, STEMS, report["clips"], strict=True):
        frames = read_video(folder / name)
        result = expected(networks, weights, frames)
        assert (row["frames"], row["height"], row["width"]) == frames.shape[:3]
        assert row["psnr"] == pytest.approx(peak_ratio(frames, result), abs=1e-3)
        assert row["ssim"] == pytest.approx(similarity(frames, result), abs=1e-4)
        if stem in videos:
            check_videos(out, stem, folder / name, frames, result)
            assert row["fps"] == pytest.approx(float(VIDEOS[name][3]), abs=1e-4)
        else:
            assert np.abs(read_image(out / f"{stem}.png").astype(int) - result).max() <= 1
            assert row["fps"] is None
    for key in ("psnr", "ssim"):
        assert report["mean"][key] == pytest.approx(np.mean([row[key] for row in report["clips"]]), abs=1e-4)


def check_videos(out, stem, source, frames, result):
    """Both videos have the source's frames, rate and size (H.264 has even ones only) and show what they should."""
    t, h, w, _ = frames.shape
    given, alone, both = probe(source), probe(out / f"{stem}.mp4"), probe(out / f"{stem}_compare.mp4")
    assert (alone.num_frames, alone.height, alone.width) == (t, h + h % 2, w + w % 2)
    assert (both.num_frames, both.height, both.width) == (t, h + h % 2, 2 * w)
    assert alone.fps == both.fps == given.fps
    pair = read_video(out / f"{stem}_compare.mp4")[:, :h]
    left, right = pair[:, :, :w], pair[:, :, w:]
    assert psnr(left, frames, 255) > 27 > 15 > psnr(right, frames, 255)  # random weights: the result differs much
    assert psnr(right, result, 255) > 22 < psnr(read_video(out / f"{stem}.mp4")[:, :h, :w], result, 255)


def test_csv_says_what_the_json_says_and_the_mean(run):
    report, out = run()
    with (out / "metrics.csv").open(encoding="utf-8", newline="") as file:
        *rows, mean = csv.DictReader(file)
    for row, clip in zip(rows, report["clips"], strict=True):
        assert (row["video"], int(row["frames"]), float(row["psnr"]), float(row["ssim"])) == (
            clip["video"], clip["frames"], clip["psnr"], clip["ssim"]
        )  # fmt: skip
        assert (float(row["value_range"]), row["error"]) == (255, "")
    assert mean["video"] == "mean"
    assert (float(mean["psnr"]), float(mean["ssim"])) == (report["mean"]["psnr"], report["mean"]["ssim"])


def test_figures_do_not_depend_on_the_batch_size(run):
    one, _ = run(out="one", save_vis=False)
    three, out = run(out="three", batch_size=3, save_vis=False)
    assert [row["video"] for row in three["clips"]] == NAMES
    for a, b in zip(one["clips"], three["clips"], strict=True):
        assert a == {**b, "psnr": pytest.approx(b["psnr"], abs=2e-4), "ssim": pytest.approx(b["ssim"], abs=1e-5)}
    assert {path.suffix for path in out.iterdir()} == {".mp4", ".png", ".json", ".csv"}
    assert not [path for path in out.iterdir() if path.stem.endswith(("_compare", "_sheet"))]


def test_tiles_are_used_and_a_clip_smaller_than_a_tile_has_the_same_figures(run, networks):
    plain, _ = run(["a.mp4"], out="plain", save_vis=False)
    tiled, _ = run(["a.mp4"], out="tiled", save_vis=False, enable_tile=True)
    assert any(network.use_tile for network in networks.values())
    assert tiled["clips"][0]["psnr"] == pytest.approx(plain["clips"][0]["psnr"], abs=1e-3)


def test_first_frames_of_a_centred_square(tmp_path, clip, weights, networks):
    path = clip(tmp_path / "wide.mp4", 12, 64, 96, FILM)
    options = {"video_path": str(path), "image_size": 32, "num_frames": 9}
    row = reconstruct(config(weights, tmp_path / "out", **options))["clips"][0]
    half = read_video(path)[:9].reshape(9, 32, 2, 48, 2, 3).mean((2, 4))  # scaled to cover 32x32 ...
    frames = np.rint(half[:, :, 8:40]).astype(np.uint8)  # ... and cut from the middle
    assert (row["video"], row["frames"], row["height"], row["width"]) == ("wide.mp4", 9, 32, 32)
    assert row["psnr"] == pytest.approx(peak_ratio(frames, expected(networks, weights, frames)), abs=0.02)
    made = probe(tmp_path / "out" / "wide.mp4")
    assert (made.num_frames, made.height, made.width, made.fps) == (9, 32, 32, FILM)


@pytest.mark.parametrize("num_frames", [None, 20])
def test_whole_video_and_more_frames_than_there_are(folder, num_frames):
    item = clips_of(ReconstructConfig(ckpt_path="x", video_path=str(folder / "a.mp4")))[0]
    clip = read_clip(item, num_frames, None)
    assert clip.fps == FILM
    np.testing.assert_array_equal(clip.frames, read_video(folder / "a.mp4"))


def test_folder_without_csv_is_searched_but_not_the_output_in_it(folder, weights, tmp_path):
    clips = tmp_path / "clips"
    (clips / "deep").mkdir(parents=True)
    shutil.copy(folder / "odd.png", clips / "one.png")
    shutil.copy(folder / "odd.mp4", clips / "deep" / "two.mp4")
    for _ in range(2):  # the second time, the results of the first lie there
        report = reconstruct(config(weights, clips / "out", video_folder=str(clips)))
        assert [row["video"] for row in report["clips"]] == ["deep/two.mp4", "one.png"]
    assert {"deep__two.mp4", "one.png"} <= {path.name for path in (clips / "out").iterdir()}


def test_folder_that_holds_only_results_is_refused(tmp_path, folder):
    (tmp_path / "out").mkdir()
    shutil.copy(folder / "odd.png", tmp_path / "out")
    with pytest.raises(UserError, match="holds no video outside of --output_path"):
        clips_of(ReconstructConfig(ckpt_path="x", video_folder=str(tmp_path), output_path=str(tmp_path / "out")))


def test_originals_are_never_overwritten(folder, weights, tmp_path):
    for name in ("a.mp4", "a_compare.mp4"):
        shutil.copy(folder / "odd.mp4", tmp_path / name)
    for name in ("b.png", "b_sheet.png", "elsewhere.png"):
        shutil.copy(folder / "odd.png", tmp_path / name)
    (tmp_path / "link.png").symlink_to(tmp_path / "elsewhere.png")
    names = ["a.mp4", "a_compare.mp4", "b.png", "b_sheet.png", "link.png"]
    before = snapshot(tmp_path)
    csv_path = write_csv(tmp_path / "list.csv", names)
    for _ in range(2):
        report = reconstruct(config(weights, tmp_path, csv_path=csv_path))  # the CSV's folder is that of the clips
        assert len(report["clips"]) == len(names)
        after = snapshot(tmp_path)
        assert {name: after[name] for name in before} == before
        assert (tmp_path / "link.png").is_symlink()
    videos = {"a-2.mp4", "a-2_compare.mp4", "a_compare-2.mp4", "a_compare-2_compare.mp4"}
    pictures = {"b-2.png", "b_sheet-2.png", "link-2.png"}
    sheets = {f"{stem}_sheet.png" for stem in ("a-2", "a_compare-2", "b-2", "b_sheet-2", "link-2")}
    assert after.keys() - before.keys() == videos | pictures | sheets | {"metrics.json", "metrics.csv", "list.csv"}


def test_bad_clips_are_listed_with_their_reasons_and_the_good_ones_done(run, folder, tmp_path):
    (folder / "text.mp4").write_text("not a video")
    (folder / "empty.mp4").touch()
    (folder / "cut.mp4").write_bytes((folder / "a.mp4").read_bytes()[:-900])
    (folder / "cut.png").write_bytes((folder / "odd.png").read_bytes()[:200])
    (folder / "folder.mp4").mkdir()
    (folder / "loop.mp4").symlink_to("loop.mp4")
    os.mkfifo(folder / "pipe.mp4")  # opening it would wait for ever
    names = ["text.mp4", "empty.mp4", "odd.png", "cut.mp4", "cut.png", "folder.mp4", "loop.mp4", "pipe.mp4", "no.mp4"]
    names += ["x" * 300, "/", "."]
    report, out = run(names)
    assert [row["video"] for row in report["clips"]] == ["odd.png"]
    assert [row["video"] for row in report["bad"]] == [name for name in names if name != "odd.png"]
    assert all(re.fullmatch(r"[^\n]{5,150}", row["error"]) for row in report["bad"])
    assert report["mean"]["psnr"] == report["clips"][0]["psnr"]
    assert {path.name for path in out.iterdir()} == {"odd.png", "odd_sheet.png", "metrics.json", "metrics.csv"}


def test_no_good_clip_still_leaves_the_reasons(run, tmp_path):
    with pytest.raises(NoGoodClip, match=r"none of the 2 clips could be read \(x.mp4: no such file\); see .*\.json"):
        run(["x.mp4", "y.mp4"])
    report = json.loads((tmp_path / "out" / "metrics.json").read_text("utf-8"))
    assert report["bad"] == [{"video": name, "error": "no such file"} for name in ("x.mp4", "y.mp4")]
    assert (report["clips"], report["mean"]) == ([], {"psnr": None, "ssim": None})


def test_a_name_that_is_not_utf8_and_one_of_240_bytes(folder, weights, tmp_path):
    raw = tmp_path / os.fsdecode(b"caf\xe9.png")
    long = tmp_path / ("l" * 240 + ".png")
    for path in (raw, long):
        shutil.copy(folder / "odd.png", path)
    report = reconstruct(config(weights, tmp_path / "out", video_folder=str(tmp_path)))
    assert [row["video"] for row in report["clips"]] == ["caf\\udce9.png", long.name]
    assert (tmp_path / "out" / "caf?.png").is_file() and (tmp_path / "out" / f"{'l' * 200}_sheet.png").is_file()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text("utf-8")) == json.loads(json.dumps(report))


def test_frame_rates_that_cannot_be_written_make_a_bad_clip(folder, monkeypatch):
    real = probe(folder / "a.mp4")
    monkeypatch.setattr(room, "probe", lambda path: type(real)(**{**vars(real), "fps": Fraction(90000)}))
    with pytest.raises(BadClip, match="90000 frames per second"):
        read_clip(clips_of(ReconstructConfig(ckpt_path="x", video_path=str(folder / "a.mp4")))[0], None, None)


def test_frames_smaller_than_the_window_have_no_ssim(folder):
    frames = read_video(folder / "a.mp4")[:, :10]
    item = clips_of(ReconstructConfig(ckpt_path="x", video_path=str(folder / "a.mp4")))[0]
    row = room._row(room.Clip(item, frames, FILM), frames[::-1])
    assert row["ssim"] is None and row["psnr"] == pytest.approx(peak_ratio(frames, frames[::-1]), abs=1e-3)
    assert room._row(room.Clip(item, frames, FILM), frames)["psnr"] is None  # equal clips: JSON has no infinity


def test_network_that_gives_nan_ends_in_one_line(run, folder, networks, monkeypatch):
    run(["odd.png"], out="warm")
    network = next(iter(networks.values()))
    monkeypatch.setattr(type(network), "decode", lambda self, z, **options: Tensor(np.full((1, 3, 1, 31, 45), np.nan)))
    with pytest.raises(UserError, match="NaN or infinity"):
        run(["odd.png"])


def test_full_disk_is_told_and_leaves_nothing_half_written(run, tmp_path, monkeypatch):
    write = Path.write_bytes

    def full(self, data):
        if len(data) < 1000:
            return write(self, data)
        write(self, data[:500])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"cannot write .*out/odd\.png: the disk is full; free space"):
        run(["odd.png"])
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_in_the_way_of_an_output(run, tmp_path):
    (tmp_path / "out" / "odd.png").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot write .*odd\.png: there is a folder of that name"):
        run(["odd.png"])
    assert leftovers(tmp_path / "out") == []

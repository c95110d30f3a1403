"""Encoding videos into latents and back: values, what is done once, what is refused."""

import json
from fractions import Fraction

import mindspore as ms  # must be loaded before decord
import numpy as np
import pytest
from mindspore import Tensor
from PIL import Image

from mg import device
from mg.config.encode_latents import EncodeLatentsConfig, LatentOptions, LoaderOptions, TaeOptions, VideoOptions
from mg.dataset.latents import LatentRecord, read_latent
from mg.dataset.transforms import resize_cover_crop, to_frames, to_tensor
from mg.dataset.video import read_image, read_video
from mg.errors import NoGoodClip, UserError
from mg.models.tae import PRESETS, TemporalAutoencoder
from mg.models.tae.loading import fingerprint, from_checkpoint
from mg.pipelines.decode_latents import decode_latents
from mg.pipelines.encode_latents import encode_videos

SIDE = 32
NAMES = ["a.mp4", "sub/b.mp4", "c.mp4", "short.mp4", "d.png", "a.mp4", "cut.mp4", "none.mp4", "../up.mp4", "d.mp4"]


@pytest.fixture(scope="module", autouse=True)
def pynative():
    """Compile nothing: there are many shapes. The script's tests run in graph mode."""
    device.setup("CPU", "pynative")


@pytest.fixture(autouse=True)
def still_pynative(cpu_graph_mode):
    device.setup("CPU", "pynative")


@pytest.fixture(scope="module")
def network(weights, pynative):
    network = from_checkpoint(str(weights), sample_deterministic=True)
    network.set_train(False)
    return network


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clip):
    folder = tmp_path_factory.mktemp("videos")
    for seed, (name, frames) in enumerate({"a.mp4": 12, "sub/b.mp4": 12, "c.mp4": 9, "short.mp4": 5}.items()):
        clip(folder / name, frames, 40, 48, Fraction(24000, 1001), seed)
    still = read_video(folder / "a.mp4")[0]
    Image.fromarray(still).save(folder / "d.png")
    (folder / "cut.mp4").write_bytes((folder / "a.mp4").read_bytes()[:900])
    clip(folder / "d.mp4", 12, 40, 48, seed=7)  # would have the file of d.png
    (folder / "list.csv").write_text("\n".join(["video", *NAMES]) + "\n")
    return folder


def config(weights, output, folder=None, latents=None, **options):
    names = ("size", "sample_n_frames", "sample_stride", "csv_path")
    video = {key: options.pop(key) for key in names if key in options}
    loader = LoaderOptions(batch_size=options.pop("batch_size", 2))
    if folder is not None:
        options["video_data"] = VideoOptions(folder=str(folder), **{"size": str(SIDE), "sample_n_frames": 9, **video})
    if latents is not None:
        options["latent_data"] = LatentOptions(folder=str(latents))
    tae = TaeOptions(pretrained=str(weights))
    return EncodeLatentsConfig(output_path=str(output), tae=tae, dataloader=loader, device="CPU", **options)


@pytest.fixture(scope="module")
def encoded(weights, network, folder, tmp_path_factory):
    """Report and folder of all of NAMES, in batches of two."""
    out = tmp_path_factory.mktemp("latents")
    return encode_videos(config(weights, out, folder, csv_path=str(folder / "list.csv")), network), out


def expected(network, frames):
    x = to_tensor(resize_cover_crop(frames, (SIDE, SIDE)))[None]
    _, mean, logvar = network.encode(Tensor(np.ascontiguousarray(x)))
    return mean.asnumpy()[0], np.exp(0.5 * logvar.asnumpy()[0])


def test_latents_are_those_of_each_clip_alone(encoded, network, folder):
    _, out = encoded
    wanted = {"a": (9, read_video(folder / "a.mp4")[:9]), "sub/b": (9, read_video(folder / "sub/b.mp4")[:9])}
    wanted |= {"short": (5, read_video(folder / "short.mp4")), "d": (1, read_image(folder / "d.png"))}
    for name, (frames, pixels) in wanted.items():
        latent = read_latent(out / f"{name}.npz")
        mean, std = expected(network, pixels)
        np.testing.assert_allclose(latent.mean, mean, atol=2e-5)
        np.testing.assert_allclose(latent.std, std, atol=2e-5)
        assert latent.mean.shape == (16, -(-frames // 8), 4, 4)
        assert (latent.origin.frames, latent.origin.height, latent.origin.width) == (frames, SIDE, SIDE)
        assert latent.origin.fps == (0 if name == "d" else pytest.approx(23.976, abs=1e-3))


def test_the_summary_lists_what_was_done(encoded, network, folder):
    report, out = encoded
    counts = {name: report[name] for name in ("rows", "encoded", "duplicates", "reused", "skipped")}
    assert counts == {"rows": 10, "encoded": 5, "duplicates": 1, "reused": 0, "skipped": 4}
    bad = {entry["video"]: entry["error"] for entry in report["bad"]}
    assert list(sorted(bad)) == ["../up.mp4", "cut.mp4", "d.mp4", "none.mp4"]
    assert "in common with d.png" in bad["d.mp4"] and "leaves" in bad["../up.mp4"]
    assert bad["none.mp4"] == "no such file"
    assert report["shapes"] == {"1x32x32": 1, "5x32x32": 1, "9x32x32": 3}
    assert json.loads((out / "summary.json").read_text()) == json.loads(json.dumps(report))
    record = LatentRecord.read(out)
    assert record == LatentRecord(fingerprint(network), network.scale_factor, network.shift_factor, 16, 8, 8)
    files = [read_latent(path) for path in out.rglob("*.npz")]
    assert len(files) == 5
    means, stds = (np.concatenate([getattr(f, key).ravel() for f in files]).astype(float) for key in ("mean", "std"))
    assert report["statistics"]["mean"] == pytest.approx(means.mean(), abs=1e-6)
    assert report["statistics"]["std"] == pytest.approx(np.sqrt(means.var() + (stds**2).mean()), rel=1e-6)


def test_good_files_are_kept_and_bad_ones_made_again(encoded, weights, network, folder, tmp_path):
    _, out = encoded
    mine = tmp_path / "l"
    mine.mkdir()
    for path in out.rglob("*"):
        if path.is_file():
            (mine / path.relative_to(out)).parent.mkdir(exist_ok=True)
            (mine / path.relative_to(out)).write_bytes(path.read_bytes())
    good = (mine / "a.npz").stat().st_mtime_ns
    whole = (mine / "c.npz").read_bytes()
    (mine / "c.npz").write_bytes(whole[:-50])
    (mine / "sub/b.npz").unlink()
    options = {"csv_path": str(folder / "list.csv")}
    report = encode_videos(config(weights, mine, folder, **options), network)
    assert (report["encoded"], report["reused"], report["duplicates"]) == (2, 3, 1)
    assert (mine / "a.npz").stat().st_mtime_ns == good
    np.testing.assert_allclose(read_latent(mine / "c.npz").mean, read_latent(out / "c.npz").mean, atol=2e-5)
    other = encode_videos(config(weights, mine, folder, **options, sample_n_frames=5), network)
    assert (other["encoded"], other["reused"]) == (5, 0)  # they are to be cut in another way


def test_processes_share_the_list(weights, network, folder, tmp_path):
    options = {"csv_path": str(folder / "list.csv")}
    parts = [encode_videos(config(weights, tmp_path, folder, shard=f"{i}/2", **options), network) for i in (0, 1)]
    assert [part["rows"] for part in parts] == [5, 5] and sum(part["encoded"] for part in parts) == 5
    assert {path.stem for path in tmp_path.rglob("*.npz")} == {"a", "b", "c", "short", "d"}
    assert (tmp_path / "summary-0of2.json").is_file() and (tmp_path / "summary-1of2.json").is_file()


def test_every_size_is_compiled_once(weights, network, folder, tmp_path, monkeypatch):
    shapes = []
    encode = network.encode
    monkeypatch.setattr(network, "encode", lambda x: shapes.append(tuple(x.shape)) or encode(x))
    report = encode_videos(config(weights, tmp_path, folder, csv_path=str(folder / "list.csv"), batch_size=2), network)
    assert report["encoded"] == 5
    assert shapes.count((2, 3, 9, SIDE, SIDE)) == 2  # three clips: the last batch is filled up
    assert len(set(shapes)) == 3


def test_own_sizes_and_strides(weights, network, folder, tmp_path):
    encode_videos(config(weights, tmp_path, folder, size="source", sample_n_frames=4, sample_stride=2), network)
    latent = read_latent(tmp_path / "a.npz")
    pixels = read_video(folder / "a.mp4")[0:8:2, 4:36]  # 40 x 48: rows cut to 32, the centre
    _, mean, _ = network.encode(Tensor(to_tensor(pixels)[None]))
    np.testing.assert_allclose(latent.mean, mean.asnumpy()[0], atol=2e-5)
    assert (latent.origin.frames, latent.origin.height, latent.origin.width) == (4, 32, 48)
    assert latent.origin.fps == pytest.approx(11.988, abs=1e-3)


def test_folders_of_others_are_refused(encoded, weights, network, folder, tmp_path):
    _, out = encoded
    other = TemporalAutoencoder(PRESETS["tiny"], seed=2, sample_deterministic=True)
    with pytest.raises(UserError, match=f"--output_path .*{fingerprint(network)}, not of {fingerprint(other)}"):
        encode_videos(config(weights, out, folder), other)
    np.savez(tmp_path / "mine.npz", x=1)
    with pytest.raises(UserError, match=r"mine\.npz, which this program did not write"):
        encode_videos(config(weights, tmp_path, folder), network)
    with pytest.raises(UserError, match=r"--latent_data\.folder .*" + fingerprint(network)):
        decode_latents(config(weights, tmp_path / "v", latents=out), other)


def test_nothing_but_bad_videos(weights, network, folder, tmp_path):
    (tmp_path / "bad.csv").write_text("video\ncut.mp4\nnone.mp4\n")
    with pytest.raises(NoGoodClip, match="none of the 2 videos could be read"):
        encode_videos(config(weights, tmp_path / "o", folder, csv_path=str(tmp_path / "bad.csv")), network)
    assert json.loads((tmp_path / "o/summary.json").read_text())["skipped"] == 2


def test_a_network_that_gives_nan(weights, folder, tmp_path):
    broken = TemporalAutoencoder(PRESETS["tiny"], seed=1, sample_deterministic=True)
    bias = broken.encoder.conv_out.conv_spat.bias
    bias.set_data(Tensor(np.full(bias.shape, np.nan, np.float32)))
    with pytest.raises(UserError, match="NaN or infinity"):
        encode_videos(config(weights, tmp_path, folder), broken)
    assert not list(tmp_path.rglob("*.npz"))


def test_the_fingerprint_is_of_weights_and_configuration(network, weights):
    again = from_checkpoint(str(weights), use_tile=True)
    assert fingerprint(again) == fingerprint(network) and len(fingerprint(network)) == 16
    name, param = next(iter(sorted(again.parameters_and_names())))
    value = param.asnumpy().copy()
    value.flat[0] = np.nextafter(value.flat[0], np.float32(9))  # the last bit of one weight
    param.set_data(Tensor(value))
    assert fingerprint(again) != fingerprint(network), name
    scaled = from_checkpoint(str(weights), {**PRESETS["tiny"], "scaling_factor": 1.25})
    assert fingerprint(scaled) != fingerprint(network)


def test_decoding_gives_the_frames_back(encoded, weights, network, tmp_path):
    _, out = encoded
    report = decode_latents(config(weights, tmp_path, latents=out, save_format="png", batch_size=2), network)
    assert (report["rows"], report["decoded"], report["skipped"]) == (5, 5, 0)
    assert [len(report["videos"][f"{name}.npz"]) for name in ("a", "short", "d", "sub/b")] == [9, 5, 1, 9]
    for name, frames in (("a", 9), ("sub/b", 9), ("short", 5)):
        mean = read_latent(out / f"{name}.npz").mean
        wanted = to_frames(network.decode(Tensor(mean[None]), num_target_frames=frames).asnumpy()[0])
        found = np.concatenate([read_image(tmp_path / f"{name}-{i:04d}.png") for i in range(frames)])
        assert np.abs(found.astype(int) - wanted).max() <= 1  # batches of two round otherwise


def test_scaled_npy_latents_are_unscaled(weights, tmp_path, clip):
    config_ = {**PRESETS["tiny"], "scaling_factor": 2.0, "shift_factor": 0.5}
    network = from_checkpoint(str(weights), config_, sample_deterministic=True)
    network.set_train(False)
    source = tmp_path / "latents"
    source.mkdir()
    z = np.random.default_rng(0).standard_normal((2, 16, 4, 4)).astype(np.float32)  # (t, c, h, w), scaled
    np.save(source / "one.npy", z)
    np.save(source / "two.npy", z[:, :3])
    np.save(source / "nan.npy", z * np.nan)
    np.save(source / "objects.npy", np.array([{}]), allow_pickle=True)
    (source / "empty.npy").touch()
    out = tmp_path / "videos"
    report = decode_latents(config(weights, out, latents=source, num_frames=11, save_format="png"), network)
    assert (report["rows"], report["decoded"], report["skipped"]) == (5, 1, 4)
    words = {entry["latents"]: entry["error"] for entry in report["bad"]}
    assert "3 channels" in words["two.npy"] and "NaN" in words["nan.npy"]
    assert "damaged" in words["objects.npy"] and "damaged" in words["empty.npy"]
    plain = ms.Tensor((z / 2 + 0.5).transpose(1, 0, 2, 3)[None].copy())
    wanted = to_frames(network.decode(plain, num_target_frames=11).asnumpy()[0])
    found = np.concatenate([read_image(out / f"one-{i:04d}.png") for i in range(11)])
    assert not (out / "one-0011.png").exists() and np.abs(found.astype(int) - wanted).max() <= 1
    decode_latents(config(weights, tmp_path / "gif", latents=source, save_format="gif", fps=10), network)
    with Image.open(tmp_path / "gif/one.gif") as gif:
        assert gif.n_frames == 16 and gif.size == (SIDE, SIDE) and gif.info["duration"] == 100

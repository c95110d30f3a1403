"""scripts/inference_vae.py as a person meets it: endings, exit codes, one line for every mistake."""

import json
import signal
import time

import av
import mindspore  # noqa: F401 - must be loaded before decord
import numpy as np
import pytest
from PIL import Image

from mg.weights import write_weights

SCRIPT = "inference_vae.py"


@pytest.fixture(scope="module")
def clips(tmp_path_factory, root):
    """good.png (16x16) and every kind of bad clip, with CSVs of all and of the bad ones."""
    folder = tmp_path_factory.mktemp("clips and more")
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "good.png")
    real = (root / "assets/clips/bbb_bird_waits.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(real[: len(real) // 2])
    (folder / "text.mp4").write_text("I am no video\n")
    (folder / "empty.mp4").touch()
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        for frame in (av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono") for _ in range(20)):
            frame.sample_rate = 44100
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    bad = ["cut.mp4", "text.mp4", "empty.mp4", "sound.mp4", "missing.mp4"]
    (folder / "all.csv").write_text("\n".join(["video", *bad[:3], "good.png", *bad[3:]]) + "\n")
    (folder / "bad.csv").write_text("\n".join(["video", *bad]) + "\n")
    (folder / "many.csv").write_text("\n".join(["video", *["good.png"] * 3000]) + "\n")
    return folder


def test_bad_clips_are_skipped_listed_and_the_rest_done(run, weights, clips, tmp_path):
    result = run(SCRIPT, "--ckpt_path", weights, "--csv_path", clips / "all.csv", "--output_path", tmp_path / "o")
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "o/metrics.json").read_text("utf-8"))
    assert [row["video"] for row in report["clips"]] == ["good.png"]
    listed = {row["video"]: row["error"] for row in report["bad"]}
    assert list(listed) == ["cut.mp4", "text.mp4", "empty.mp4", "sound.mp4", "missing.mp4"]
    for name, words in (("text", "not a video"), ("sound", "no video stream"), ("missing", "no such file")):
        assert words in listed[f"{name}.mp4"]
    *rows, mean, ending = result.out.splitlines()
    assert [line.split()[0] for line in rows] == ["good.png", *listed]
    assert f"PSNR {report['clips'][0]['psnr']:.2f} dB" in rows[0] and "skipped: " in rows[1]
    assert mean.startswith("mean") and ending == f"videos, pictures and metrics are in {tmp_path / 'o'}"
    assert "Traceback" not in result.err and "\r" not in result.err  # no torn bar where nobody watches
    assert "clip 4 of 6: good.png done" in result.err


def test_nothing_but_bad_clips(here, error_line, weights, clips, tmp_path):
    result = here(SCRIPT, "--ckpt_path", weights, "--csv_path", clips / "bad.csv", "--output_path", tmp_path / "o")
    line = error_line(result, code=5)
    assert "none of the 5 clips could be read" in line and "metrics.json" in line
    assert len(json.loads((tmp_path / "o/metrics.json").read_text("utf-8"))["bad"]) == 5
    assert {path.name for path in (tmp_path / "o").iterdir()} == {"metrics.json", "metrics.csv"}


# Graph mode for Ctrl-C: while a graph runs, MindSpore answers it in its own way.
@pytest.mark.parametrize("number, mode", [(signal.SIGINT, "graph"), (signal.SIGTERM, "pynative")])
def test_a_signal_leaves_only_complete_files(start, weights, clips, tmp_path, number, mode):
    out = tmp_path / "o"
    args = ("--ckpt_path", weights, "--csv_path", clips / "many.csv", "--output_path", out, "--mode", mode)
    process = start(SCRIPT, *args)
    while not (out / "good-3.png").is_file():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.splitlines()[-1] == "error: interrupted"
    files = list(out.iterdir())
    assert len(files) < 6000 and {path.suffix for path in files} == {".png"}
    assert not [path.name for path in files if path.name.startswith(".")]
    for path in files:
        Image.open(path).load()


def test_ctrl_c_while_libraries_load(start, weights, clips, tmp_path):
    process = start(SCRIPT, "--ckpt_path", weights, "--csv_path", clips / "all.csv", "--output_path", tmp_path / "o")
    maps = f"/proc/{process.pid}/maps"
    while "libmindspore" not in open(maps).read():  # the import of MindSpore has begun
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.splitlines()[-1]) == (130, "error: interrupted"), err
    assert "Traceback" not in err


def broken(kind, network, path):
    """Write a checkpoint with one fault and return its path and what the message must say."""
    tensors, metadata = network
    if kind == "missing":
        return path / "none.safetensors", "there is no such file"
    if kind == "pickle":
        (path / "w.pt").write_bytes(b"PK\x03\x04")
        return path / "w.pt", "pickle"
    if kind == "long name":
        return path / ("x" * 300 + ".safetensors"), "not usable"
    file = path / "w.safetensors"
    if kind == "other shapes":
        name = "encoder.conv_in.conv_spat.weight"
        write_weights(file, {**tensors, name: tensors[name][:, :2]}, metadata)
        return file, name
    if kind == "another model":
        write_weights(file, {"transformer.weight": np.zeros((2, 2), np.float32)})
        return file, "not the weights of a temporal autoencoder"
    if kind == "foreign metadata":
        write_weights(file, tensors, {"mg.tae_config": '{"colour": 1}'})
        return file, "colour"
    if kind == "nan":
        name = "decoder.conv_out.conv_spat.weight"
        write_weights(file, {**tensors, name: np.full_like(tensors[name], np.nan)}, metadata)
        return file, f"NaN or infinity in {name}"
    write_weights(file, tensors, metadata)
    file.write_bytes(file.read_bytes()[:-1000])
    return file, "damaged or incomplete"


KINDS = "missing", "pickle", "long name", "other shapes", "another model", "foreign metadata", "nan", "truncated"


@pytest.mark.parametrize("kind", KINDS)
def test_bad_checkpoint(here, error_line, network, clips, tmp_path, kind):
    path, words = broken(kind, network, tmp_path)
    result = here(SCRIPT, "--ckpt_path", path, "--csv_path", clips / "all.csv", "--output_path", tmp_path / "o")
    line = error_line(result)
    assert line.startswith(f"error: --ckpt_path {path}: ") and words in line
    assert list((tmp_path / "o").iterdir()) == []


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "list.csv is not a file"),
        ("", "list.csv is empty"),
        ("film,caption\na.mp4,b\n", "no column 'video', only film, caption"),
        ("video\n", "lists no clips"),
    ],
)
def test_bad_csv(here, error_line, weights, tmp_path, content, words):
    if content is not None:
        (tmp_path / "list.csv").write_text(content)
    line = error_line(here(SCRIPT, "--ckpt_path", weights, "--csv_path", tmp_path / "list.csv",
                           "--output_path", tmp_path / "o"))  # fmt: skip
    assert "csv_path" in line and words in line
    assert not (tmp_path / "o").exists()


def test_bad_input_in_a_process_of_its_own(run, error_line, clips, tmp_path):
    line = error_line(run(SCRIPT, "--ckpt_path", "w.pt", "--csv_path", tmp_path / "n.csv", "--video_folder", clips))
    assert line == f"error: csv_path: {tmp_path / 'n.csv'} is not a file; give a CSV with the columns video,caption"


@pytest.mark.parametrize(
    "args, words",
    [
        (["--video_folder", "{0}/none"], "{0}/none is not a folder"),
        (["--video_folder", "{0}"], "holds no video"),
        (["--video_path", "{0}/none.mp4"], "--video_path {0}/none.mp4: no such file"),
        ([], "nothing to reconstruct"),
        (["--video_path", "a", "--csv_path", "b"], "choose one"),
        (["--video_path", "a", "--num_frame", "3"], "did you mean --num_frames?"),
        (["--video_path", "a", "--num_frames", "0"], "num_frames=0: give at least 1"),
        (["--video_path", "a", "--image_size", "-8"], "image_size=-8"),
        (["--video_path", "a", "--batch_size", "two"], "batch_size"),
        (["--video_path", "a", "--preset", "huge"], "preset"),
        (["--video_path", "a", "--device", "TPU"], "device"),
    ],
)
def test_bad_options(here, error_line, tmp_path, args, words):
    args = [arg.format(tmp_path) for arg in args]
    line = error_line(here(SCRIPT, "--ckpt_path", "w.safetensors", "--output_path", tmp_path / "o", *args))
    assert words.format(tmp_path) in line
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("place", ["{0}/file", "{0}/file/below", "/proc/none", "/dev/full"])
def test_output_that_cannot_be_written(here, error_line, weights, clips, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    place = place.format(tmp_path)
    line = error_line(here(SCRIPT, "--ckpt_path", weights, "--video_path", clips / "good.png", "--output_path", place))
    assert line.startswith(f"error: --output_path: cannot write {place}: ")
    assert (tmp_path / "file").read_text() == "mine"

"""scripts/inference.py as a person meets it: lists of prompts, files, endings, one line for every mistake."""

import json

import numpy as np
import pytest
from PIL import Image

from mg.config.generate import join_prompts
from mg.dataset.text_npz import write_text_npz
from mg.dataset.video import probe, read_video
from mg.rng import stream
from tests.generation_fakes import Encoder, pipeline, said

SCRIPT = "inference.py"
SMALL = ("--image_size", 16, 32, "--num_sampling_steps", 2, "--guidance_scale", 1)


@pytest.fixture
def fake(monkeypatch):
    """Let the script load a pipeline of stand-ins: fake(rule, ...) as `pipeline`."""
    import mg.pipelines.generate as module

    def use(*args, **options):
        made = pipeline(*args, **options)
        monkeypatch.setattr(module, "load_pipeline", lambda config: made)
        return made

    return use


def report_of(folder):
    return json.loads((folder / "videos.json").read_text("utf-8"))


def test_prompts_become_videos_with_a_list_and_a_sheet(here, fake, tmp_path):
    fake(lambda x, level, text: (text - x) * 1000.0 / level)
    out = tmp_path / "o"
    prompts = ("--prompt", "red, [blue]: a", "--prompt", "-c", "--prompt=red, [blue]: a")
    result = here(SCRIPT, "--pipeline", "p", *prompts, *SMALL, "--num_frames", 9, "--fps", 24, "--output_path", out)
    assert result.code == 0, result.err
    rows = report_of(out)["videos"]
    assert [row["file"] for row in rows] == ["red-blue-a.mp4", "c.mp4", "red-blue-a-2.mp4"]
    assert [row["prompt"] for row in rows] == ["red, [blue]: a", "-c", "red, [blue]: a"]
    assert {path.name for path in out.iterdir()} == {*(row["file"] for row in rows), "videos.json", "sheet.png"}
    for row in rows:
        assert (row["seed"], row["frames"], row["height"], row["width"], row["fps"]) == (0, 9, 16, 32, 24)
        assert probe(out / row["file"]).fps == 24
        pixel = round((np.clip(said(row["prompt"]) / 2 + 0.25, -1, 1) + 1) * 127.5)
        assert np.abs(read_video(out / row["file"]).astype(int) - pixel).max() <= 3
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.size == (8 * 32, 3 * (16 + 18))
    *lines, last = result.out.splitlines()
    assert lines[1] == "c.mp4  seed 0  -c" and last.startswith("3 made in ") and last.endswith(str(out))


def test_latents_as_the_reference_has_them(here, fake, tmp_path):
    fake()
    out = tmp_path / "o"
    args = ("--pipeline", "p", "--prompt", "a", *SMALL, "--save_latent", "--seed", 3)
    result = here(SCRIPT, *args, "--output_path", out)
    assert result.code == 0, result.err
    (row,) = report_of(out)["videos"]
    latent = np.load(out / row["latent"])
    noise = stream(3, "generate.noise", 0).standard_normal((16, 2, 2, 4), np.float32)
    assert row["latent"] == "denoised_latents/a.npy" and latent.shape == (2, 16, 2, 4)
    np.testing.assert_allclose(latent, noise.transpose(1, 0, 2, 3) + said("a"), atol=1e-5)


def test_latents_alone_where_there_is_no_autoencoder(here, error_line, fake, tmp_path):
    fake(tae=False)
    args = ("--pipeline", "p", "--prompt", "a", *SMALL, "--output_path", tmp_path / "o")
    assert "give --tae.pretrained, or --save_latent" in error_line(here(SCRIPT, *args))
    assert here(SCRIPT, *args, "--save_latent").code == 0
    assert report_of(tmp_path / "o")["videos"][0]["file"] == "denoised_latents/a.npy"


@pytest.mark.parametrize("kind, names", [("gif", ["a.gif"]), ("png", ["a-0000.png", "a-0001.png"])])
def test_other_formats(here, fake, tmp_path, kind, names):
    fake()
    args = ("--pipeline", "p", "--prompt", "a", *SMALL, "--num_frames", 2, "--save_format", kind)
    assert here(SCRIPT, *args, "--output_path", tmp_path).code == 0
    assert {path.name for path in tmp_path.iterdir()} == {*names, "videos.json", "sheet.png"}
    assert report_of(tmp_path)["videos"][0]["files"] == len(names)


def test_one_frame_is_a_picture_and_the_folder_may_be_named_by_time(here, fake, tmp_path):
    fake()
    args = ("--pipeline", "p", "--prompt", "a", *SMALL, "--num_frames", 1, "--append_timestamp")
    assert here(SCRIPT, *args, "--output_path", tmp_path).code == 0
    (folder,) = tmp_path.iterdir()
    assert (folder / "a.png").is_file() and folder.name[:2] == "20" and "T" in folder.name


def test_lists_of_prompts(here, fake, tmp_path):
    fake()
    (tmp_path / "p.txt").write_text("a cat\n\na dog\n", "utf-8")
    rows = ["video,caption", 'x/one.mp4,"a cat, black"', "../two.mp4,a dog", "three.mp4,a cow"]
    (tmp_path / "p.csv").write_text("\n".join(rows), "utf-8")
    (tmp_path / "q.csv").write_text("words,other\na cat,1\n", "utf-8")
    expected = {
        "p.txt": (["a-cat.mp4", "a-dog.mp4"], ["a cat", "a dog"], {2: "is empty"}, (0, 1)),
        "p.csv": (["x__one.mp4", "three.mp4"], ["a cat, black", "a cow"], {2: "leaves the output folder"}, (0, 1)),
        "q.csv": (["a-cat.mp4"], ["a cat"], {}, (0,)),
    }
    for name, (files, prompts, bad, seeds) in expected.items():
        out = tmp_path / f"o-{name}"
        more = ("--column_names", "words") if name == "q.csv" else ()
        args = ("--prompts_file", tmp_path / name, "--seed_per_prompt", "--num_frames", 1, *more)
        result = here(SCRIPT, "--pipeline", "p", *args, *SMALL, "--output_path", out)
        assert result.code == 0, result.err
        report = report_of(out)
        assert [row["file"] for row in report["videos"]] == [file.replace("mp4", "png") for file in files]
        assert [row["prompt"] for row in report["videos"]] == prompts
        assert tuple(row["seed"] for row in report["videos"]) == seeds
        assert {row["row"] for row in report["bad"]} == set(bad)
        assert all(bad[row["row"]] in row["error"] for row in report["bad"])


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("none.txt", None, "none.txt is not a file"),
        ("p.txt", "", "lists no prompts"),
        ("p.txt", "\n \n", "lists no prompts; write one per line"),
        ("p.csv", "", "is empty"),
        ("p.csv", "film,caption\n", "no column 'video', only film, caption; give --column_names caption"),
        ("p.csv", "film,text\n", "no column 'video', only film, text; see --column_names"),
        ("p.md", "a\n", "neither .csv nor .txt"),
    ],
)
def test_bad_lists(here, error_line, fake, tmp_path, name, content, words):
    pipe = fake()
    if content is not None:
        (tmp_path / name).write_text(content)
    result = here(SCRIPT, "--pipeline", "p", "--prompts_file", tmp_path / name, "--output_path", tmp_path / "o")
    assert words in error_line(result) and not (tmp_path / "o").exists()
    assert not pipe.transformer.calls


def test_nothing_but_bad_rows(here, error_line, fake, tmp_path):
    fake()
    (tmp_path / "p.csv").write_text("video,caption\n../a.mp4,cat\n")
    args = ("--pipeline", "p", "--prompts_file", tmp_path / "p.csv", "--output_path", tmp_path / "o")
    assert "none of the 1 rows could be used (row 1 " in error_line(here(SCRIPT, *args), code=5)
    assert len(report_of(tmp_path / "o")["bad"]) == 1


def test_embeddings_as_the_references_command_line_takes_them(here, error_line, fake, tmp_path):
    fake(encoders=())
    for kind, width in (("ul2", 3), ("byt5", 2)):
        for name in ("000-a-cat", "001-dog"):
            text = name[4:].replace("-", " ")
            write_text_npz(tmp_path / kind / f"{name}.npz", Encoder(kind, width).encode([text]), "")
    folders = ("--text_emb.ul2_dir", tmp_path / "ul2", "--text_emb.byt5_dir", tmp_path / "byt5")
    args = ("--model.pretrained_model_path", "m", *folders, *SMALL, "--save_latent", "--output_path", tmp_path / "o")
    assert here(SCRIPT, *args).code == 0
    rows = report_of(tmp_path / "o")["videos"]
    assert [row["file"] for row in rows] == ["000-a-cat.mp4", "001-dog.mp4"]
    noise = stream(0, "generate.noise", 0).standard_normal((16, 2, 2, 4), np.float32).transpose(1, 0, 2, 3)
    for row, text in zip(rows, ("a cat", "dog"), strict=True):
        np.testing.assert_allclose(np.load(tmp_path / "o" / row["latent"]), noise + said(text), atol=1e-5)
    (tmp_path / "ul2/001-dog.npz").unlink()
    assert "differ: 001-dog.npz is in one of them only" in error_line(here(SCRIPT, *args))
    assert "is not a folder" in error_line(here(SCRIPT, *args, "--text_emb.ul2_dir", tmp_path / "none"))


@pytest.mark.parametrize(
    "args, words",
    [
        ((), "nothing to make; give one of --prompt, --prompts_file"),
        (("--prompt", "a", "--prompts_file", "p.txt"), "--prompt and --prompts_file are both given"),
        (("--prompt",), "--prompt: the text is missing"),
        (("--prompt", "--seed", "1"), "--prompt: the text is missing"),
        (("--prompt", "a", "large", "circle"), "--prompt a large: put quotes around the text"),
        (("--prompt=a", "circle", "--seed", "1"), "--prompt a circle: put quotes around the text"),
        (("--prompt", "a", "--prompts_file", "p.txt", "--text_emb.ul2_dir", "u"), "--text_emb are all given"),
        (("--prompt", "a", "--solver", "heun"), "solver: heun is not one of 'euler', 'midpoint'"),
        (("--prompt", "a", "--model.name", "tiny"), "model.name=tiny: is for a weights file, the config.json of"),
        (("--prompt", "a", "--model.reference"), "model.reference=True: is for a weights file"),
        (("--prompt", "a", "--model.max_length", "0", "4", "4"), "model.max_length=[0, 4, 4]: give at least 1"),
        (("--prompt", "a", "--image_size", "60", "64"), "image_size=[60, 64]: give multiples of 16"),
        (("--prompt", "a", "--image_size", "0"), "image_size=[0, 0]"),
        (("--prompt", "a", "--num_frames", "0"), "num_frames=0"),
        (("--prompt", "a", "--fps", "0"), "fps=0"),
        (("--prompt", "a", "--seed", "-1"), "seed=-1"),
        (("--prompt", "a", "--save_format", "avi"), "avi"),
        (("--prompt", "a", "--promt_file", "x"), "did you mean --prompts_file?"),
        (("--prompt", "a", "--pipeline", "/none/such"), "pipeline /none/such: there is no such folder"),
        (("--prompt", "a", "--model.pretrained_model_path", "/none/x"), "/none/x: there is no such file or folder"),
    ],
)
def test_mistakes_on_the_command_line(here, error_line, tmp_path, args, words):
    model = () if {"--pipeline", "--model.pretrained_model_path"} & set(args) else ("--pipeline", "p")
    assert words in error_line(here(SCRIPT, "--output_path", tmp_path / "o", *model, *args))


def test_no_model_and_sizes_beyond_it(here, error_line, fake, tmp_path):
    assert "no model: give --pipeline FOLDER" in error_line(here(SCRIPT, "--prompt", "a"))
    pipe = fake()
    args = ("--pipeline", "p", "--prompt", "a", "--num_frames", 40, "--output_path", tmp_path / "o")
    assert "num_frames=40: the transformer's position table ends at 32" in error_line(here(SCRIPT, *args))
    assert not pipe.transformer.calls


def test_nan_ends_with_its_own_code_and_lists_what_was_made(here, error_line, fake, tmp_path):
    fake(lambda x, level, text: x / (text - said("bad")))
    args = ("--pipeline", "p", "--prompt", "a", "--prompt", "bad", *SMALL, "--output_path", tmp_path / "o")
    with np.errstate(divide="ignore", invalid="ignore"):
        assert "NaN or Inf in the latent" in error_line(here(SCRIPT, *args), code=3)
    assert [row["prompt"] for row in report_of(tmp_path / "o")["videos"]] == ["a"]


def test_prompts_are_joined_to_one_argument():
    assert join_prompts(["--seed", "1", "--prompt", "a, b", "--prompt=c"]) == ["--seed", "1", '--prompt=["a, b", "c"]']
    assert join_prompts(["--prompt=--a", "--prompt", "-b"]) == ['--prompt=["--a", "-b"]']
    assert join_prompts(["--prompts_file", "x"]) == ["--prompts_file", "x"]


def test_a_yaml_file_may_hold_the_options(here, fake, tmp_path):
    fake()
    (tmp_path / "c.yaml").write_text(
        "pipeline: p\nprompt: a, b\nimage_size: [16, 32]\nnum_sampling_steps: 1\nguidance_scale: 1.0\nnum_frames: 1\n"
    )
    assert here(SCRIPT, "-c", tmp_path / "c.yaml", "--output_path", tmp_path / "o").code == 0
    assert [row["prompt"] for row in report_of(tmp_path / "o")["videos"]] == ["a, b"]

"""Options of the transformer's training data."""

import pytest

from mg.config import cli
from mg.config.generation import GenerationSettings
from mg.config.train import TrainConfig
from mg.errors import UserError


@pytest.mark.parametrize(
    "option, words",
    [
        ({"batch_sizes": {16: 0}}, "batch_sizes"),
        ({"frames": ()}, "frames"),
        ({"fps": 0.0}, "fps"),
        ({"max_bad": 1.0}, "max_bad"),
        ({"image_ratio": 1.5}, "image_ratio"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"timestep_std": 0.0}, "timestep_std"),
    ],
)
def test_options_out_of_range(option, words):
    with pytest.raises(UserError, match=words):
        GenerationSettings(**option)


def test_options_on_the_command_line(tmp_path):
    words = ["--text.byt5", "e", "--text_lengths.byt5", "9", "--frames", "1", "64", "--batch_sizes", "{1: 25, 64: 2}"]
    parsed = cli.parse(GenerationSettings, words)
    assert parsed.text.by_kind == {"byt5": "e"} and parsed.text_lengths.byt5 == 9
    assert parsed.frames == (1, 64) and parsed.batch_sizes == {1: 25, 64: 2}
    (tmp_path / "c.yaml").write_text("batch_sizes: {1: 25, 64: 2}\nframes: [1, 64]\nfps: video\n")
    assert cli.load(GenerationSettings, tmp_path / "c.yaml").batch_sizes == {1: 25, 64: 2}


def test_help_says_of_each_path_per_encoder_what_it_is(capsys):
    with pytest.raises(SystemExit):
        cli.parse(TrainConfig, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for option, words in {
        "--data.text.ul2 UL2": "folder of .npz files, or of text caches",
        "--data.empty_text.ul2 UL2": ".npz file that scripts/inference_text_enc.py wrote for an empty line",
        "--online.text_encoders.ul2 UL2": "Hugging Face folder of the encoder",
        "--valid.text.ul2 UL2": "folder of .npz files, or of text caches",
    }.items():
        assert text.partition(f"{option} ")[2].startswith(words), option

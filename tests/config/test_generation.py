"""Options of the transformer's training data."""

import pytest

from mg.config import cli
from mg.config.generation import GenerationSettings
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

"""The command line of text encoding: spellings that work, and mistakes that are told."""

import pytest

from mg.config import cli
from mg.config.encode_text import EncodeTextConfig
from mg.errors import UserError

NEEDED = ["--prompts_file", "list.csv", "--output_path", "out"]


def parse(*args):
    return cli.parse(EncodeTextConfig, [*NEEDED, *map(str, args)])


def test_the_references_flags_and_defaults():
    config = parse()
    assert (config.model_name, config.batch_size, config.dtype) == ("google/byt5-small", 10, "fp32")
    assert (config.columns, config.model_max_length, config.part) == (("video", "caption"), None, (0, 1))
    config = parse("--model_name", "m", "--model_max_length", 300, "--batch_size", 4, "--dtype", "bf16")
    assert (config.model_name, config.model_max_length, config.batch_size, config.dtype) == ("m", 300, 4, "bf16")


@pytest.mark.parametrize("words", [["clip,text"], ["clip", "text"], ["[clip, text]"], ["clip , text"]])
def test_spellings_of_the_columns(words):
    assert parse("--column_names", *words).columns == ("clip", "text")


def test_yaml(tmp_path):
    (tmp_path / "a.yaml").write_text("column_names: [clip, text]\nfps: 24\nshard: 1/2\n")
    config = parse("--config", tmp_path / "a.yaml")
    assert (config.columns, config.fps, config.part) == (("clip", "text"), 24, (1, 2))
    assert cli.load(EncodeTextConfig, write(tmp_path, cli.dump(config))) == config


def write(tmp_path, text):
    (tmp_path / "dump.yaml").write_text(text)
    return tmp_path / "dump.yaml"


@pytest.mark.parametrize("word, value", [("none", "none"), ("23.976", 23.976), ("24", 24), ("video", "video")])
def test_rates(word, value):
    assert parse("--fps", word, "--video_folder", "v").fps == value


@pytest.mark.parametrize(
    "args, words",
    [
        (["--batch_size", 0], "batch_size=0: give at least 1"),
        (["--model_max_length", 1], "model_max_length=1: give at least 2"),
        (["--num_layers", 0], "num_layers=0"),
        (["--fps", "fast"], "fps"),
        (["--fps", 0], "fps=0.0: give a number above 0"),
        (["--fps", "nan"], "fps: nan is not of type float"),
        (["--fps", "video"], "give a .csv and --video_folder"),
        (["--fps", "video", "--video_folder", "v", "--prompts_file", "a.txt"], "give a .csv and --video_folder"),
        (["--shard", "2/2"], "shard=2/2: give i/n"),
        (["--shard=-1/2"], "shard=-1/2"),
        (["--shard", "1"], "shard=1"),
        (["--shard", "0/0"], "shard=0/0"),
        (["--column_names", "caption"], "column_names=caption: give two names"),
        (["--column_names", "a,b,c"], "column_names=a,b,c"),
        (["--column_names", "a,"], "column_names=a,"),
        (["--format", "cache", "--overwrite"], "overwrite is for --format npz"),
        (["--format", "pickle"], "format"),
        (["--kind", "t5"], "kind"),
        (["--text", "quotes"], "text"),
        (["--prompt_file", "x"], "did you mean --prompts_file?"),
    ],
)
def test_mistakes(args, words):
    with pytest.raises(UserError) as error:
        parse(*args)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("left", [NEEDED[:2], NEEDED[2:]])
def test_what_is_needed(left):
    with pytest.raises(UserError, match="prompts_file|output_path"):
        cli.parse(EncodeTextConfig, left)

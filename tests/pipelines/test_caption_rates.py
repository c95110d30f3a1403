"""A model that was trained on captions with a frame rate in front knows it, wherever the embeddings come from."""

import json
from types import SimpleNamespace

import pytest

from mg.config.encode_text import EncodeTextConfig
from mg.config.generation import GenerationSettings, TextFolders
from mg.config.train import TrainConfig, TransformerConfig
from mg.dataset.text_sources import open_texts
from mg.errors import UserError
from mg.pipelines.encode_text import encode_prompts
from mg.pipelines.train import conditioning
from tests.pipelines.test_encode_text import Fake


@pytest.fixture
def encoded(tmp_path):
    """Encode captions by a stand-in: encoded("ul2", fps) -> folder."""
    (tmp_path / "list.txt").write_text("a cat\na dog\n")

    def encode(kind, fps="none", format="npz", text="all"):
        encoder = Fake()
        encoder.kind, encoder.processor = kind, SimpleNamespace(config=SimpleNamespace(text=text))
        folder = tmp_path / f"{kind}-{fps}-{format}"
        options = {"prompts_file": str(tmp_path / "list.txt"), "output_path": str(folder), "format": format}
        encode_prompts(EncodeTextConfig(**options, fps=fps), encoder)
        return str(folder)

    return encode


def known(folders, fps="none"):
    """What the trained model's config.json says of frame rates."""
    settings = GenerationSettings(text=TextFolders(**folders), fps=fps)
    config = TrainConfig(model=TransformerConfig(preset="tiny"), data=settings)
    source = SimpleNamespace(texts=open_texts(settings), null_prompts={kind: True for kind in folders})
    return conditioning(config, SimpleNamespace(source=source, made_by={})).fps


def test_folders_of_npz_say_it_themselves(encoded):
    assert known({"ul2": encoded("ul2", 24.0)}) is True
    assert known({"ul2": encoded("ul2")}) is False
    assert known({"ul2": encoded("ul2", 24.0)}, fps=24.0) is True
    with pytest.raises(UserError, match=r"text\.ul2: .*ul2-24\.0-npz: .*with --fps 24\.0, not with fps=video; drop"):
        known({"ul2": encoded("ul2", 24.0)}, fps="video")


@pytest.mark.parametrize("silent", ["no record", "no rate"])
def test_folders_that_do_not_say_it_are_believed(encoded, tmp_path, silent):
    folder = encoded("ul2", 24.0)
    record = tmp_path / "ul2-24.0-npz/encoder.json"
    if silent == "no record":
        record.unlink()
    else:
        values = json.loads(record.read_text())
        del values["fps"]
        record.write_text(json.dumps(values))
    assert known({"ul2": folder}, fps="video") is True
    assert known({"ul2": folder}) is False


def test_caches_find_captions_by_their_rates(encoded):
    folder = encoded("ul2", 24.0, "cache")
    assert known({"ul2": folder}, fps=24.0) is True
    assert known({"ul2": folder}) is False


def test_encoders_that_disagree_are_told_before_the_training(encoded):
    folders = {"ul2": encoded("ul2", 24.0), "metaclip": encoded("metaclip")}
    with pytest.raises(UserError, match=r"text\.ul2: its captions.*with a frame rate.*those of text\.metaclip without"):
        known(folders)
    # No embedding of quoted text depends on what stands before it.
    assert known({"ul2": folders["ul2"], "byt5": encoded("byt5", text="quoted")}) is True
    assert known({"byt5": encoded("byt5", text="quoted"), "metaclip": folders["metaclip"]}) is False

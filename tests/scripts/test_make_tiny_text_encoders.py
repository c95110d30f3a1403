"""The shipped tiny text encoders: made again to the byte, and usable by transformers as they stand."""

import csv
import json

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel

TOOL = "../tools/make_tiny_text_encoders.py"
KINDS = ("ul2", "metaclip", "byt5")
ODD = [
    "A \U0001f438 \u2014 na\u00efve \u65e5\u672c\u8a9e \U0001f469\u200d\U0001f680",  # frog, Japanese, joined emoji
    'don\'t say "OPEN"',
    "a  b\tc\nd",
    "<0x41>",
]


@pytest.fixture(scope="module")
def captions(root):
    with open(root / "assets/clips/videos.csv", encoding="utf-8", newline="") as file:
        return [row["caption"] for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def tokenizers(root):
    return {kind: AutoTokenizer.from_pretrained(root / "assets/text" / kind, local_files_only=True) for kind in KINDS}


@pytest.fixture(scope="module")
def encoders(root):
    """Load each encoder; fails on any tensor too many or too few."""
    loaded = {}
    for kind in KINDS:
        network = CLIPTextModelWithProjection if kind == "metaclip" else T5EncoderModel
        loaded[kind], info = network.from_pretrained(root / "assets/text" / kind, output_loading_info=True)
        assert not any(info.values()), info
    return loaded


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def mean_features(encoder, tokenizer, texts):
    """Unit vectors (texts, width): the embeddings' mean over the real tokens."""
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        embeddings = encoder(**batch).last_hidden_state
    mask = batch.attention_mask[..., None]
    features = ((embeddings * mask).sum(1) / mask.sum(1)).numpy()
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_the_shipped_folders_are_what_the_tool_makes(here, root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    result = here(TOOL, "--output_path", tmp_path)
    assert result.code == 0, result.err
    made, shipped = contents(tmp_path), contents(root / "assets/text")
    assert sorted(made) == sorted(shipped)
    assert [name for name in made if made[name] != shipped[name]] == []
    assert sum(map(len, shipped.values())) < 2_000_000


def test_another_seed_gives_other_weights_and_the_same_tokens(here, root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    assert here(TOOL, "--output_path", tmp_path, "--seed", 1).code == 0
    made, shipped = contents(tmp_path), contents(root / "assets/text")
    assert {name.split("/")[1] for name in made if made[name] != shipped[name]} == {"model.safetensors", "README.md"}
    assert b"make_tiny_text_encoders.py --seed 1\n" in made["ul2/README.md"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--seed", -1), "seed=-1: must be 0 or greater"),
        (("--csv_path", "none.csv"), "none.csv is not a file"),
        (("--csv_path", "list.csv"), "list.csv has no captions"),
    ],
)
def test_mistakes_are_one_line(here, error_line, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.csv").write_text("video\na.mp4\n")
    assert expected in error_line(here(TOOL, "--output_path", "out", *arguments))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["ul2", "byt5"])
def test_t5_tokens_give_back_any_text(tokenizers, captions, kind):
    tokenizer = tokenizers[kind]
    for text in [*captions, *ODD]:
        ids = tokenizer(text).input_ids
        assert ids[-1] == 1 and not {0, 2} & set(ids)
        assert tokenizer.decode(ids[:-1]) == text


def test_ul2_pieces_are_learnt_and_hold_spaces(tokenizers, captions):
    tokenizer = tokenizers["ul2"]
    assert sum(len(tokenizer(text).input_ids) for text in captions) < 0.5 * sum(map(len, captions))
    assert tokenizer.tokenize("a flower") == ["\u2581a", "\u2581flower"]
    assert tokenizer.tokenize("\u00e9") == ["\u2581", "<0xC3>", "<0xA9>"]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer("").input_ids == [1]


def test_byt5_tokens_are_bytes(tokenizers):
    tokenizer = tokenizers["byt5"]
    assert tokenizer("a\u00e9").input_ids == [ord("a") + 3, 0xC3 + 3, 0xA9 + 3, 1]
    assert len(tokenizer) == 384


def test_metaclip_tokens_give_back_lower_case_words(tokenizers, captions):
    tokenizer = tokenizers["metaclip"]
    for text in [*captions, *ODD]:
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id == 766 and ids[-1] == tokenizer.eos_token_id == 767
        assert "".join(tokenizer.decode(ids[1:-1]).split()) == "".join(text.lower().split())
        assert tokenizer("  ".join(text.upper().split(" "))).input_ids == ids  # neither case nor spaces count
    assert tokenizer.pad_token_id == 767
    assert tokenizer.tokenize("Flower flowers") == ["flower</w>", "flowers</w>"]
    assert max(len(tokenizer(f"FPS-24 {text}").input_ids) for text in captions) <= 77


def test_metaclip_vocabulary_and_merges_agree_with_the_fast_tokenizer(root, tokenizers, captions):
    folder = root / "assets/text/metaclip"
    slow = CLIPTokenizer(folder / "vocab.json", folder / "merges.txt")
    for text in captions:
        assert slow(text).input_ids == tokenizers["metaclip"](text).input_ids
    vocabulary = json.loads((folder / "vocab.json").read_text("utf-8"))
    assert sorted(vocabulary.values()) == list(range(768))
    # As CLIP has them: bytes, bytes that close a word, merges.
    assert (vocabulary["!"], vocabulary["!</w>"], vocabulary["a"], vocabulary["a</w>"]) == (0, 256, 64, 320)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_fit_the_encoder(tokenizers, encoders, kind):
    assert len(tokenizers[kind]) <= encoders[kind].config.vocab_size
    for name in ("pad_token_id", "eos_token_id"):
        assert getattr(encoders[kind].config, name) == getattr(tokenizers[kind], name)


@pytest.mark.parametrize("kind", KINDS)
def test_initialisation_is_the_original_one(encoders, kind):
    encoder = encoders[kind]
    torch.manual_seed(0)
    drawn = encoder.state_dict()
    for name, expected in type(encoder)(encoder.config).state_dict().items():
        values = drawn[name]
        if expected.std() == 0:
            assert torch.equal(values, expected), name
        else:
            # Both are samples of one normal distribution: 5 standard errors, and the rounding to FP16.
            tolerance = 5 * (1 / expected.numel()) ** 0.5
            assert abs(values.std() / expected.std() - 1) < tolerance + 1e-3, name
            assert abs(values.mean()) < 5 * expected.std() / expected.numel() ** 0.5, name
            assert not torch.equal(values, expected)


@pytest.mark.parametrize(("kind", "nearest"), [("ul2", 0.85), ("metaclip", 0.98), ("byt5", 0.985)])
def test_captions_are_told_apart(tokenizers, encoders, captions, kind, nearest):
    features = mean_features(encoders[kind], tokenizers[kind], captions)
    cosines = (features @ features.T)[np.triu_indices(len(captions), 1)]
    assert cosines.max() < nearest and cosines.mean() < 0.95


def test_signs_to_be_drawn_are_told_apart(tokenizers, encoders):
    features = mean_features(encoders["byt5"], tokenizers["byt5"], ["OPEN", "CLOSED", "24"])
    assert (features @ features.T)[np.triu_indices(3, 1)].max() < 0.9

"""The text encoders give the values of PyTorch's transformers, from the same folders."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mg import device
from mg.errors import UserError
from mg.models.text_encoders import TextEncoder

TINY = Path("assets/text")
KINDS = ("ul2", "metaclip", "byt5")
PROMPTS = ['A dog in the snow, a sign saying "HELLO"', "", "🙂 «Привет»\nand\x00more", "a " * 5000, '"x"']


def torch_model(folder, kind, **options):
    from transformers import CLIPTextModelWithProjection, T5EncoderModel

    return (CLIPTextModelWithProjection if kind == "metaclip" else T5EncoderModel).from_pretrained(
        folder, dtype=torch.float32, **options
    ).eval()


def torch_values(model, tokens, mask):
    with torch.no_grad():
        out = model(input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long())
    return out.last_hidden_state.numpy(), getattr(out, "text_embeds", None)


@pytest.fixture(scope="module", params=KINDS)
def pair(request):
    """Our encoder at a length that compiles quickly, and PyTorch's model of the same folder."""
    device.setup("CPU", "graph")
    length = 77 if request.param == "metaclip" else 48
    folder = TINY / request.param
    return TextEncoder.from_pretrained(folder, max_length=length, text="all"), torch_model(folder, request.param)


def test_embeddings_are_torchs_on_a_padded_batch_in_graph_mode(pair):
    encoder, model = pair
    tokens, mask = encoder.tokenize(PROMPTS)
    assert 1 <= mask[1].sum() <= 2 < mask[0].sum() < mask[3].sum() == encoder.max_length
    got = encoder.encode_tokens(tokens, mask)
    expected, pooled = torch_values(model, tokens, mask)
    np.testing.assert_allclose(got.embeddings, expected, atol=1e-4)
    assert np.abs(expected).mean() > 0.1
    if encoder.kind == "metaclip":
        np.testing.assert_allclose(encoder.pooled(tokens, mask), pooled.numpy(), atol=1e-4)


def test_in_pynative_the_embeddings_are_the_same(pair):
    encoder, _ = pair
    device.setup("CPU", "graph")
    expected = encoder.encode(PROMPTS[:2]).embeddings
    device.setup("CPU", "pynative")
    np.testing.assert_allclose(encoder.encode(PROMPTS[:2]).embeddings, expected, atol=1e-5)


def test_tokens_are_those_of_the_folders_tokenizer(pair):
    from transformers import AutoTokenizer

    encoder, _ = pair
    tokenizer = AutoTokenizer.from_pretrained(TINY / encoder.kind)
    texts = ["A dog in the snow", "x", "a " * 5000]
    expected = tokenizer(texts, max_length=encoder.max_length, padding="max_length", truncation=True)
    tokens, mask = encoder.tokenize(texts)
    np.testing.assert_array_equal(tokens, expected["input_ids"])
    np.testing.assert_array_equal(mask, expected["attention_mask"])
    closing = tokenizer.eos_token_id
    assert all(row[length - 1] == closing for row, length in zip(tokens, mask.sum(1), strict=True))  # also where cut


def test_padding_has_no_part_and_batches_do_not_matter(pair):
    encoder, _ = pair
    whole = encoder.encode(PROMPTS)
    trimmed = encoder.encode(PROMPTS, trim=True)
    real = whole.mask[..., None]
    np.testing.assert_allclose(trimmed.embeddings, np.where(real, whole.embeddings, 0), atol=2e-5)
    single = encoder.encode(PROMPTS[:1])
    np.testing.assert_allclose(single.embeddings[0], whole.embeddings[0], atol=2e-5)
    tokens = np.where(whole.mask, whole.tokens, 5)
    other = encoder.encode_tokens(tokens, whole.mask)
    np.testing.assert_allclose(np.where(real, other.embeddings, 0), np.where(real, whole.embeddings, 0), atol=2e-5)


def test_more_prompts_than_fit_at_once_come_in_order(pair, monkeypatch):
    encoder, _ = pair
    monkeypatch.setattr("mg.models.text_encoders.encoder.MAX_BATCH", len(PROMPTS))
    many = encoder.encode([*PROMPTS, *PROMPTS[::-1], PROMPTS[0]])
    once = encoder.encode(PROMPTS).embeddings
    np.testing.assert_allclose(many.embeddings, np.concatenate([once, once[::-1], once[:1]]), atol=2e-5)
    assert {rows for rows, _ in encoder._shapes} <= {len(PROMPTS), 1}  # the odd rest compiled nothing new


def test_saved_and_loaded_again_it_is_bit_equal(pair, tmp_path):
    encoder, _ = pair
    encoder.save_pretrained(tmp_path / "copy")
    again = TextEncoder.from_pretrained(tmp_path / "copy")
    assert again.processor.config == encoder.processor.config and again.kind == encoder.kind
    assert again.fingerprint == encoder.fingerprint
    np.testing.assert_array_equal(again.encode(PROMPTS[:1]).embeddings, encoder.encode(PROMPTS[:1]).embeddings)
    model = torch_model(tmp_path / "copy", encoder.kind)  # and others can read it
    tokens, mask = encoder.tokenize(PROMPTS[:1])
    np.testing.assert_allclose(again.encode(PROMPTS[:1]).embeddings, torch_values(model, tokens, mask)[0], atol=1e-4)


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_save_that_is_killed_leaves_no_mixed_folder(tmp_path, monkeypatch, after):
    device.setup("CPU", "graph")
    encoder = TextEncoder.from_pretrained(TINY / "ul2", max_length=16)
    encoder.save_pretrained(tmp_path / "copy")
    moves, move = [], shutil.move

    def killed(source, target):
        if len(moves) == after:
            raise KeyboardInterrupt
        moves.append(target)
        move(source, target)

    monkeypatch.setattr("mg.models.text_encoders.encoder.shutil.move", killed)
    with pytest.raises(KeyboardInterrupt):
        encoder.save_pretrained(tmp_path / "copy")
    with pytest.raises(UserError, match=r"config\.json"):
        TextEncoder.from_pretrained(tmp_path / "copy")
    monkeypatch.undo()
    encoder.save_pretrained(tmp_path / "copy")
    assert TextEncoder.from_pretrained(tmp_path / "copy").fingerprint == encoder.fingerprint


@pytest.mark.parametrize("kind", ["ul2", "metaclip"])
def test_fewer_layers_are_the_truncated_encoder(kind):
    device.setup("CPU", "graph")
    length = 77 if kind == "metaclip" else 16
    encoder = TextEncoder.from_pretrained(TINY / kind, num_layers=1, max_length=length)
    model = torch_model(TINY / kind, kind)
    stack = model.text_model.encoder.layers if kind == "metaclip" else model.encoder.block
    del stack[1:]
    tokens, mask = encoder.tokenize(PROMPTS[:1])
    np.testing.assert_allclose(encoder.encode_tokens(tokens, mask).embeddings, torch_values(model, tokens, mask)[0],
                               atol=1e-4)  # fmt: skip
    with pytest.raises(UserError, match="num_layers=3: the encoder has 2 layers"):
        TextEncoder.from_pretrained(TINY / kind, num_layers=3)


@pytest.fixture(scope="module")
def long_clip():
    device.setup("CPU", "graph")
    return TextEncoder.from_pretrained(TINY / "metaclip")


def test_a_caption_within_77_tokens_keeps_its_embedding_at_256(long_clip):
    short = TextEncoder.from_pretrained(TINY / "metaclip", max_length=77)
    texts = ["a dog", "a bird sings on a branch " * 9]
    assert long_clip.max_length == 256 and 60 < short.tokenize(texts)[1][1].sum() <= 77
    old, new = short.encode(texts), long_clip.encode(texts)
    np.testing.assert_array_equal(new.tokens[:, :77][old.mask], old.tokens[old.mask])
    np.testing.assert_allclose(new.embeddings[:, :77][old.mask], old.embeddings[old.mask], atol=2e-5)
    np.testing.assert_allclose(
        long_clip.pooled(new.tokens, new.mask), short.pooled(old.tokens, old.mask), atol=2e-5
    )


def test_captions_that_differ_after_token_77_have_different_embeddings(long_clip):
    start = "a bird sings on a branch " * 14
    texts = [f"{start}and a dog", f"{start}and a cat"]
    tokens, mask = long_clip.tokenize(texts)
    assert np.array_equal(tokens[0, :77], tokens[1, :77]) and mask[:, 78].all()
    pooled = long_clip.pooled(tokens, mask)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    assert pooled[0] @ pooled[1] < 0.9999


def test_256_tokens_look_backwards_only(long_clip):
    tokens, mask = long_clip.tokenize(["a bird sings on a branch " * 60])
    assert mask.all()
    changed = tokens.copy()
    changed[:, 200] = 3
    a, b = (long_clip.encode_tokens(ids, mask).embeddings[0] for ids in (tokens, changed))
    np.testing.assert_array_equal(a[:200], b[:200])
    assert np.abs(a[200:] - b[200:]).max(1).min() > 0


def test_quoted_text_alone_reaches_byt5():
    device.setup("CPU", "graph")
    encoder = TextEncoder.from_pretrained(TINY / "byt5", max_length=16)
    out = encoder.encode(['a sign saying "HELLO"', "no quotes", "“it’s” and “ü”", 'a "lost end'])

    def read(row):
        return bytes((out.tokens[row][out.mask[row]][:-1] - 3).tolist()).decode()  # 3 special tokens before the bytes

    assert read(0) == "HELLO" and read(2) == "it’s ü"
    assert not out.mask[[1, 3]].any() and np.all(out.embeddings[[1, 3]] == 0)
    assert np.abs(out.embeddings[0]).max() > 0


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (32, 64), (64, 256)])
def test_buckets_of_relative_positions_are_transformers(buckets, distance):
    # A fault we met: 16 and 32 tokens fell into the bucket before theirs, which only longer prompts showed.
    from transformers.models.t5.modeling_t5 import T5Attention

    from mg.models.text_encoders.network import position_buckets

    place = torch.arange(520)
    expected = T5Attention._relative_position_bucket(
        place[None] - place[:, None], bidirectional=True, num_buckets=buckets, max_distance=distance
    )
    np.testing.assert_array_equal(position_buckets(520, buckets, distance), expected.numpy())


def copy(kind, target):
    shutil.copytree(TINY / kind, target)
    return target


@pytest.mark.parametrize("layout", ["sharded", "bf16", "whole model", "alias"])
def test_other_layouts_of_the_same_weights(tmp_path, layout):
    device.setup("CPU", "graph")
    kind = "metaclip" if layout == "whole model" else "ul2"
    folder = copy(kind, tmp_path / "it")
    tensors = load_file(folder / "model.safetensors")
    if layout == "sharded":
        (folder / "model.safetensors").unlink()
        names = sorted(tensors)
        shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for shard, part in shards.items():
            save_file({name: tensors[name] for name in part}, folder / shard)
        index = {"weight_map": {name: shard for shard, part in shards.items() for name in part}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif layout == "bf16":
        tensors = {name: value.bfloat16() for name, value in tensors.items()}
        save_file(tensors, folder / "model.safetensors")
    elif layout == "alias":
        tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
        tensors["decoder.block.0.layer.0.SelfAttention.q.weight"] = torch.zeros(3)
        tensors["lm_head.weight"] = torch.zeros(3)
        save_file(tensors, folder / "model.safetensors")
    else:
        tensors |= {"vision_model.x": torch.zeros(1), "visual_projection.weight": torch.ones(1)}
        tensors |= {"logit_scale": torch.ones(()), "text_model.embeddings.position_ids": torch.arange(77)[None]}
        save_file(tensors, folder / "model.safetensors")
        text = json.loads((folder / "config.json").read_text())
        whole = {"model_type": "clip", "text_config": text, "projection_dim": text["projection_dim"]}
        (folder / "config.json").write_text(json.dumps(whole))
    length = 77 if kind == "metaclip" else 16
    encoder = TextEncoder.from_pretrained(folder, max_length=length)
    model = torch_model(TINY / kind, kind)
    if layout == "bf16":
        model.load_state_dict({name: value.float() for name, value in tensors.items()}, strict=False)
    tokens, mask = encoder.tokenize(PROMPTS[:2])
    np.testing.assert_allclose(encoder.encode_tokens(tokens, mask).embeddings, torch_values(model, tokens, mask)[0],
                               atol=1e-4)  # fmt: skip


def test_gated_silu_as_in_ul2(tmp_path):
    device.setup("CPU", "graph")
    folder = copy("ul2", tmp_path / "it")
    values = json.loads((folder / "config.json").read_text())
    for name in ("dense_act_fn", "is_gated_act"):
        values.pop(name, None)
    (folder / "config.json").write_text(json.dumps({**values, "feed_forward_proj": "gated-silu"}))
    encoder, model = TextEncoder.from_pretrained(folder, max_length=16), torch_model(folder, "ul2")
    tokens, mask = encoder.tokenize(PROMPTS[:1])
    np.testing.assert_allclose(encoder.encode_tokens(tokens, mask).embeddings, torch_values(model, tokens, mask)[0],
                               atol=1e-4)  # fmt: skip


def test_fp16_is_near_fp32():
    device.setup("CPU", "graph")
    full, half = (TextEncoder.from_pretrained(TINY / "ul2", max_length=16, dtype=name) for name in ("fp32", "fp16"))
    a, b = (encoder.encode(PROMPTS[:1]) for encoder in (full, half))
    np.testing.assert_allclose(b.embeddings, a.embeddings, atol=0.02 * np.abs(a.embeddings).max())
    assert np.abs(a.embeddings - b.embeddings).max() > 0 and full.fingerprint != half.fingerprint


def test_the_fingerprint_knows_weights_tokenizer_and_rules(tmp_path):
    folder = copy("byt5", tmp_path / "it")
    first = TextEncoder.from_pretrained(folder).fingerprint
    assert TextEncoder.from_pretrained(folder).fingerprint == first
    others = [{"max_length": 64}, {"text": "all"}, {"num_layers": 1}]
    seen = {first, *(TextEncoder.from_pretrained(folder, **options).fingerprint for options in others)}
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.final_layer_norm.weight"][0] += 0.5
    save_file(tensors, folder / "model.safetensors")
    assert len({*seen, TextEncoder.from_pretrained(folder).fingerprint}) == 5


def spoil(folder, how):
    if how == "no config":
        (folder / "config.json").unlink()
    elif how == "damaged config":
        (folder / "config.json").write_text("{")
    elif how == "another model":
        (folder / "config.json").write_text('{"model_type": "bert"}')
    elif how == "truncated":
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[:-100])
    elif how == "no weights":
        (folder / "model.safetensors").unlink()
    elif how == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif how == "no tokenizer":
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink()
    elif how in ("missing", "shape", "nan"):
        tensors = load_file(folder / "model.safetensors")
        name = "encoder.final_layer_norm.weight"
        value = tensors.pop(name)
        if how != "missing":
            tensors[name] = value[:3] if how == "shape" else value * float("nan")
        save_file({key: entry.contiguous() for key, entry in tensors.items()}, folder / "model.safetensors")
    else:
        (folder / "mg_processor.json").write_text('{"max_lenght": 3}')


FAULTS = {
    "no config": "config.json: there is no such file; give a Hugging Face folder",
    "damaged config": "config.json: cannot be read",
    "another model": "model_type is 'bert'",
    "truncated": "damaged or incomplete",
    "no weights": "a folder without weights",
    "pickle": "convert them first: python tools/download_convert_st.py",
    "no tokenizer": "no usable tokenizer files",
    "missing": "1 missing: encoder.final_layer_norm.weight",
    "shape": "encoder.final_layer_norm.weight .* instead of",
    "nan": "NaN or infinity in model.encoder.final_layer_norm.weight",
    "processor": "unknown option max_lenght",
}


@pytest.mark.parametrize("how", FAULTS)
def test_a_wrong_folder_is_one_clear_line(tmp_path, how):
    folder = copy("ul2", tmp_path / "it")
    spoil(folder, how)
    with pytest.raises(UserError, match=FAULTS[how]) as caught:
        TextEncoder.from_pretrained(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_wrong_options_are_named(tmp_path):
    for options, text in [
        ({"kind": "t5"}, "kind=t5: choose ul2, metaclip, byt5"),
        ({"kind": "metaclip"}, "kind=metaclip does not fit"),
        ({"max_length": 1}, "max_length=1"),
        ({"text": "none"}, "text=none"),
    ]:
        with pytest.raises(UserError, match=text):
            TextEncoder.from_pretrained(TINY / "ul2", **options)
    with pytest.raises(UserError, match="there is no such folder"):
        TextEncoder.from_pretrained(tmp_path / "absent")


def test_options_of_the_processor_are_configured_alone_and_old_folders_load(tmp_path):
    folder = copy("byt5", tmp_path / "it")
    assert not (folder / "mg_processor.json").exists()
    default = TextEncoder.from_pretrained(folder).processor.config
    assert (default.max_length, default.text) == (128, "quoted")
    (folder / "mg_processor.json").write_text('{"max_length": 32}')
    stored = TextEncoder.from_pretrained(folder).processor.config
    assert (stored.max_length, stored.text) == (32, "quoted")
    assert TextEncoder.from_pretrained(folder, max_length=24).max_length == 24

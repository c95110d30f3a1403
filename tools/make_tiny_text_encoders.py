"""Make the tiny text encoders of assets/text: tokenizers of our own on a list's captions, and random weights."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mg.config import cli
from mg.errors import UserError
from mg.files import write_json, write_text
from mg.rng import stream

T5 = {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "dropout_rate": 0.0,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
CLIP = {
    "architectures": ["CLIPTextModelWithProjection"],
    "model_type": "clip_text_model",
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "projection_dim": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
}
T5_SPECIALS = ("<pad>", "</s>", "<unk>")
CLIP_SPECIALS = ("<|startoftext|>", "<|endoftext|>")
UL2_VOCABULARY = 512
CLIP_VOCABULARY = 768  # with 600 the longest caption would leave no room among 77 tokens for "FPS-24 "
TITLES = {"ul2": "UL2 (T5 encoder)", "metaclip": "MetaCLIP (CLIP text tower)", "byt5": "ByT5 (T5 encoder)"}

CARD = """# Tiny {title}

Random weights: it has **not been trained** and its embeddings mean nothing, though they differ from caption to
caption. It has the structure and the file layout of the full-size encoder, so that demos, tests and the tiny generator
run without a download.

{parameters:,} parameters, stored in FP16. {tokenizer}
Tensor names are those of `transformers`, which loads this folder as `{architecture}`.

Made, to the byte, by:

```bash
.venv/bin/python tools/make_tiny_text_encoders.py{options}
```
"""

Spec = tuple[str, tuple[int, ...], float | None]
"""A tensor's name, shape and standard deviation; None: a norm's weight, all ones. 0: a bias, all zeros."""


@dataclass(frozen=True)
class TinyTextConfig:
    """Tiny text encoders."""

    csv_path: str = "assets/clips/videos.csv"
    """CSV with a column `caption`, on which the tokenizers of UL2 and MetaCLIP are trained"""
    output_path: str = "assets/text"
    """folder for ul2, metaclip and byt5; files of these names in it are overwritten"""
    seed: int = 0
    """of the weights, 0 or greater"""

    def __post_init__(self) -> None:
        """Check the seed."""
        if self.seed < 0:
            raise UserError(f"seed={self.seed}: must be 0 or greater")


def ul2_tokenizer(captions: Sequence[str]) -> dict[str, Any]:
    """Train T5's kind of tokenizer, a unigram model whose pieces carry the space before them.

    Ids: <pad> 0, </s> 1, <unk> 2, the 256 bytes for what has no piece (T5 itself has <unk> there), the pieces.

    Returns:
        The content of tokenizer.json.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    spaces = pre_tokenizers.Metaspace()  # "a cat" is "▁a▁cat"
    learner = Tokenizer(models.Unigram())
    learner.pre_tokenizer = spaces
    learner.train_from_iterator(captions, trainers.UnigramTrainer(vocab_size=256, show_progress=False))
    # The trainer sums in parallel and orders rare pieces at random: two digits and our own order give equal bytes.
    scores = {piece: round(score, 2) for piece, score in json.loads(learner.to_str())["model"]["vocab"]}
    rarest = min(scores.values()) - 1
    scores |= {chr(code): rarest for code in range(33, 127) if chr(code) not in scores}
    # A byte's score is so low that the text "<0x41>" is never taken for the byte.
    vocabulary = [*((name, 0.0) for name in T5_SPECIALS), *((f"<0x{byte:02X}>", -1000.0) for byte in range(256))]
    vocabulary += sorted(scores.items(), key=lambda entry: (-entry[1], entry[0]))
    if len(vocabulary) > UL2_VOCABULARY:
        raise UserError(f"csv_path: {len(vocabulary)} pieces for UL2 instead of {UL2_VOCABULARY}; give fewer captions")
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=True))
    tokenizer.pre_tokenizer = spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(list(T5_SPECIALS))
    return json.loads(tokenizer.to_str())


def metaclip_tokenizer(captions: Sequence[str]) -> tuple[dict[str, Any], dict[str, int], list[str]]:
    """Train CLIP's kind of tokenizer: lower case, byte pairs within words, the last one of a word marked "</w>".

    Ids, as in CLIP: 256 bytes, the same closing a word, merges, start of text, end of text.

    Returns:
        The contents of tokenizer.json and vocab.json, and the lines of merges.txt.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    steps = [pre_tokenizers.Split(words, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]

    def tokenizer_of(model: models.BPE) -> Tokenizer:
        tokenizer = Tokenizer(model)
        spaces = normalizers.Replace(Regex(r"\s+"), " ")
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
        return tokenizer

    learner = tokenizer_of(models.BPE(end_of_word_suffix="</w>"))
    letters = byte_letters()
    trainer = trainers.BpeTrainer(
        vocab_size=CLIP_VOCABULARY - len(CLIP_SPECIALS),
        # Named as special tokens they get the first ids, in this order; the trainer's own order is random.
        special_tokens=[*letters, *(f"{letter}</w>" for letter in letters)],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    trained = json.loads(learner.to_str())["model"]
    order = sorted(trained["vocab"], key=trained["vocab"].get)
    vocabulary = {token: number for number, token in enumerate([*order, *CLIP_SPECIALS])}
    merges = [tuple(pair) for pair in trained["merges"]]
    bos, eos = CLIP_SPECIALS
    model = models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=eos)
    tokenizer = tokenizer_of(model)
    tokenizer.decoder = decoders.ByteLevel()
    ends = {"sep": (eos, vocabulary[eos]), "cls": (bos, vocabulary[bos])}
    tokenizer.post_processor = processors.RobertaProcessing(**ends, add_prefix_space=False, trim_offsets=False)
    tokenizer.add_special_tokens([bos, eos])
    return json.loads(tokenizer.to_str()), vocabulary, ["#version: 0.2", *map(" ".join, merges)]


def byte_letters() -> list[str]:
    """Return the letter that byte-level vocabularies write for each byte, in CLIP's order.

    Printable bytes, which stand for themselves in Latin-1, come first; the others are the letters from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [*map(chr, printable), *(chr(256 + number) for number in range(256 - len(printable)))]


def t5_tensors(config: dict[str, Any]) -> Iterator[Spec]:
    """Yield the tensors of a T5 encoder with gated activation, and T5's own initialisation (Mesh TensorFlow)."""
    d, inner, wide = config["d_model"], config["num_heads"] * config["d_kv"], config["d_ff"]
    yield "shared.weight", (config["vocab_size"], d), 1.0
    for block in range(config["num_layers"]):
        name = f"encoder.block.{block}.layer"
        yield f"{name}.0.SelfAttention.q.weight", (inner, d), (d * config["d_kv"]) ** -0.5
        yield f"{name}.0.SelfAttention.k.weight", (inner, d), d**-0.5
        yield f"{name}.0.SelfAttention.v.weight", (inner, d), d**-0.5
        yield f"{name}.0.SelfAttention.o.weight", (d, inner), inner**-0.5
        if block == 0:  # the other blocks use the first one's table
            table = (config["relative_attention_num_buckets"], config["num_heads"])
            yield f"{name}.0.SelfAttention.relative_attention_bias.weight", table, d**-0.5
        yield f"{name}.0.layer_norm.weight", (d,), None
        yield f"{name}.1.DenseReluDense.wi_0.weight", (wide, d), d**-0.5
        yield f"{name}.1.DenseReluDense.wi_1.weight", (wide, d), d**-0.5
        yield f"{name}.1.DenseReluDense.wo.weight", (d, wide), wide**-0.5
        yield f"{name}.1.layer_norm.weight", (d,), None
    yield "encoder.final_layer_norm.weight", (d,), None


def clip_tensors(config: dict[str, Any]) -> Iterator[Spec]:
    """Yield the tensors of CLIP's text tower, and CLIP's own initialisation."""
    d, wide, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    narrow = (2 * layers * d) ** -0.5  # what enters the residual stream shrinks with the depth
    yield "text_model.embeddings.token_embedding.weight", (config["vocab_size"], d), 0.02
    yield "text_model.embeddings.position_embedding.weight", (config["max_position_embeddings"], d), 0.02
    for layer in range(layers):
        name = f"text_model.encoder.layers.{layer}"
        for part, std in (("q_proj", narrow), ("k_proj", narrow), ("v_proj", narrow), ("out_proj", d**-0.5)):
            yield f"{name}.self_attn.{part}.weight", (d, d), std
            yield f"{name}.self_attn.{part}.bias", (d,), 0
        yield f"{name}.mlp.fc1.weight", (wide, d), (2 * d) ** -0.5
        yield f"{name}.mlp.fc1.bias", (wide,), 0
        yield f"{name}.mlp.fc2.weight", (d, wide), narrow
        yield f"{name}.mlp.fc2.bias", (d,), 0
        for norm in ("layer_norm1", "layer_norm2"):
            yield f"{name}.{norm}.weight", (d,), None
            yield f"{name}.{norm}.bias", (d,), 0
    yield "text_model.final_layer_norm.weight", (d,), None
    yield "text_model.final_layer_norm.bias", (d,), 0
    yield "text_projection.weight", (config["projection_dim"], d), d**-0.5


def draw(specs: Iterator[Spec], seed: int, kind: str) -> dict[str, np.ndarray]:
    """Draw the tensors, each from a stream of its own name."""
    tensors = {}
    for name, shape, std in specs:
        if std is None:
            tensors[name] = np.ones(shape, np.float32)
        else:
            noise = stream(seed, f"text_encoders.{kind}.{name}").standard_normal(shape)
            tensors[name] = (noise * std).astype(np.float32)
    return tensors


def write_tokenizers(folder: Path, captions: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Write the tokenizers' files; return the configurations of the encoders that fit them."""
    pad, eos, unk = T5_SPECIALS
    plain = {"model_max_length": 512, "clean_up_tokenization_spaces": False}
    plain |= {"pad_token": pad, "eos_token": eos, "unk_token": unk}
    # T5's class adds a hundred tokens for masked pre-training unless told otherwise.
    options = {"tokenizer_class": "T5Tokenizer", **plain, "extra_ids": 0, "additional_special_tokens": []}
    write_json(folder / "ul2" / "tokenizer_config.json", options)
    write_json(folder / "ul2" / "tokenizer.json", ul2_tokenizer(captions))

    description, vocabulary, merges = metaclip_tokenizer(captions)
    bos, eos = CLIP_SPECIALS
    options = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CLIP["max_position_embeddings"]}
    options |= {"bos_token": bos, "eos_token": eos, "unk_token": eos, "pad_token": eos}
    write_json(folder / "metaclip" / "tokenizer_config.json", options)
    write_json(folder / "metaclip" / "tokenizer.json", description)
    write_json(folder / "metaclip" / "vocab.json", vocabulary)
    write_text(folder / "metaclip" / "merges.txt", "\n".join(merges) + "\n")

    # 3 special tokens, 256 bytes, 125 tokens for masked pre-training: nothing to learn and nothing to store.
    options = {"tokenizer_class": "ByT5Tokenizer", **plain, "extra_ids": 125}
    write_json(folder / "byt5" / "tokenizer_config.json", options)
    ids = {"bos_token_id": vocabulary[bos], "eos_token_id": vocabulary[eos], "pad_token_id": vocabulary[eos]}
    return {
        "ul2": {**T5, "vocab_size": UL2_VOCABULARY, "tokenizer_class": "T5Tokenizer"},
        "metaclip": {**CLIP, "vocab_size": len(vocabulary), **ids},
        "byt5": {**T5, "vocab_size": 3 + 256 + 125, "tokenizer_class": "ByT5Tokenizer"},
    }


def main(argv: list[str]) -> None:
    """Train the tokenizers, draw the weights, write three folders and print what is in them."""
    args = cli.parse(TinyTextConfig, argv, description=__doc__)
    from mg.dataset.manifest import read_manifest
    from mg.weights import write_weights

    captions = [item.caption for item in read_manifest(args.csv_path, Path(args.csv_path).parent) if item.caption]
    if not captions:
        raise UserError(f"csv_path: {args.csv_path} has no captions; fill its column caption")
    folder = Path(args.output_path)
    learnt = f"Its tokenizer was trained on the captions of `{args.csv_path}`."
    given = {"csv_path": args.csv_path, "seed": args.seed}
    options = "".join(f" --{name} {value}" for name, value in given.items() if value != getattr(TinyTextConfig, name))
    for kind, config in write_tokenizers(folder, captions).items():
        specs = clip_tensors(config) if kind == "metaclip" else t5_tensors(config)
        tensors = draw(specs, args.seed, kind)
        # transformers refuses a file that does not say whose layout it has.
        write_weights(folder / kind / "model.safetensors", tensors, {"format": "pt"}, dtype="fp16")
        write_json(folder / kind / "config.json", config)
        parameters = sum(array.size for array in tensors.values())
        tokenizer = learnt if kind != "byt5" else "Its tokens are bytes."
        card = {"title": TITLES[kind], "architecture": config["architectures"][0], "tokenizer": tokenizer}
        write_text(folder / kind / "README.md", CARD.format(parameters=parameters, options=options, **card))
        print(f"{folder / kind}: {parameters:,} parameters, {config['vocab_size']} tokens")


if __name__ == "__main__":
    cli.run(main)

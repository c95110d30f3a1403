"""Latents, texts and settings for a training of the transformer that takes a second."""

import json
from dataclasses import replace

import numpy as np

from mg.config.generation import EmptyTexts, GenerationSettings, TextFolders, TextLengths
from mg.config.prompt_dropout import PromptDropout
from mg.config.train import TrainConfig, TransformerConfig
from mg.config.trainer import OptimizerConfig, TrainerConfig
from mg.dataset.latents import Latent, LatentRecord, write_latent
from mg.dataset.text_cache import EncoderRecord
from mg.dataset.text_npz import write_text_npz
from mg.models.llama import PRESETS
from mg.models.text_encoders.features import TextFeatures

RECORD = LatentRecord("tae0", 2.0, 0.5, 4, 8, 8)
WIDTHS = {"ul2": 6, "byt5": 5}
VIDEOS = [(f"v{i}.mp4", (4, 1 + (i == 2), 4, 4)) for i in range(5)]  # the third is longer: a bucket of its own
IMAGES = [(f"p{i}.png", (4, 1, 4, 4)) for i in range(2)]


def write_data(folder, items, seed=0, tae="tae0", encoder="enc0"):
    """Latents, embeddings of two encoders and the list of them."""
    rng = np.random.default_rng(seed)
    replace(RECORD, tae=tae).write(folder / "latents")
    for name, shape in items:
        mean = rng.standard_normal(shape).astype(np.float32)
        write_latent((folder / "latents" / name).with_suffix(".npz"), Latent(mean, np.full(shape, 0.01, np.float32)))
    for kind, width in WIDTHS.items():
        mark = f"{kind}-{encoder}"
        (folder / kind).mkdir(parents=True, exist_ok=True)
        EncoderRecord(kind, mark, width, 8, "fp32", "all").write(folder / kind)
        for name, length in [*((name, 3) for name, _ in items), ("empty", 1)]:
            embeddings = rng.standard_normal((1, 8, width)).astype(np.float32)
            features = TextFeatures(embeddings, np.arange(8)[None] < length, np.zeros((1, 8), int))
            parent = folder / kind if name != "empty" else folder / f"{kind}-empty"
            write_text_npz((parent / name).with_suffix(".npz"), features, mark)
    rows = "".join(f"{name},caption of {name}\n" for name, _ in items)
    (folder / "list.csv").write_text(f"video,caption\n{rows}")
    return folder


def settings(folder, **changes):
    given = dict(
        tae_latent_folder=str(folder / "latents"),
        text=TextFolders(**{kind: str(folder / kind) for kind in WIDTHS}),
        empty_text=EmptyTexts(**{kind: str(folder / f"{kind}-empty" / "empty.npz") for kind in WIDTHS}),
        text_lengths=TextLengths(ul2=4, byt5=3), batch_size=2, dropout=PromptDropout(all=0.25),
    )  # fmt: skip
    return GenerationSettings(**{**given, **changes})


TINY = TransformerConfig(
    preset="tiny", max_length=(2, 2, 2), hidden_size=16, intermediate_size=24, num_hidden_layers=1,
    num_attention_heads=2,
)  # fmt: skip


def four_channels(monkeypatch):
    """Give the preset the latents of these tests."""
    monkeypatch.setitem(PRESETS, "tiny", replace(PRESETS["tiny"], in_channels=4))


def tiny_config(folder, output):
    """A run of 4 steps."""
    return TrainConfig(
        csv_path=str(folder / "list.csv"), output_path=str(output), device="CPU", mode="pynative",
        model=TINY, data=settings(folder),
        train=TrainerConfig(
            steps=4, log_every=1, save_every=2, ema_decay=0.5, optimizer=OptimizerConfig(lr=1e-2), accumulation=2
        ),
    )  # fmt: skip


def rows(output, name="metrics"):
    return [json.loads(line) for line in (output / f"{name}.jsonl").read_text().splitlines()]

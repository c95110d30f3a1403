"""Small caches of latents and texts, and what batches of them should be."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from mg.config.generation import GenerationSettings, TextLengths
from mg.config.prompt_dropout import PromptDropout
from mg.dataset.latents import Latent, LatentRecord, Origin, write_latent
from mg.dataset.manifest import Item
from mg.dataset.text_cache import EncoderRecord
from mg.models.text_encoders.features import TextFeatures

RECORD = LatentRecord("0123456789abcdef", 2.0, 0.25, 4, 8, 8)
BYT5 = EncoderRecord("byt5", "b5", 6, 32, "fp32", "quoted")
UL2 = EncoderRecord("ul2", "u2", 5, 32, "fp32", "all")
NO_DROPOUT = PromptDropout(all=0.0)
WIDE, TALL = (2, 2, 4), (2, 4, 2)


def item(name, row=1, caption="a caption"):
    return Item(Path("/videos") / name, name, caption, row)


def embedding(text, width):
    """(n, width), n = number of words + 1: what the encoders of these tests give."""
    rows = [np.full(width, len(word) + 0.125 * width, np.float32) for word in [*text.split(), ""]]
    return np.stack(rows)


def features(text, width, padded_to=None):
    one = embedding(text, width)
    n = padded_to or len(one)
    padded = np.full((n, width), 99.0, np.float32)
    padded[: len(one)] = one
    mask = np.arange(n) < len(one)
    return TextFeatures(padded[None], mask[None], np.arange(n, dtype=np.int32)[None])


def store(folder, name, size=WIDE, frames=16, fps=16.0, seed=None, tae=RECORD.tae, std=0.5):
    draw = np.random.default_rng(abs(hash(name)) % 1000 if seed is None else seed)
    mean = draw.standard_normal((RECORD.channels, *size), np.float32)
    origin = Origin(tae, name, frames, size[1] * 8, size[2] * 8, fps)
    write_latent(folder / Path(name).with_suffix(".npz"), Latent(mean, np.full_like(mean, std), origin))
    return mean


NAMES = [f"wide{i}.mp4" for i in range(7)] + [f"tall{i}.mp4" for i in range(4)] + [f"picture{i}.png" for i in range(5)]
ITEMS = [item(name, row) for row, name in enumerate(NAMES, 1)]


def settings(folder, **options):
    options = {"batch_size": 3, "dropout": NO_DROPOUT, "tae_latent_folder": str(folder), **options}
    return GenerationSettings(**options)


def equal(a, b):
    return a.keys() == b.keys() and all(
        np.array_equal(a[key], b[key]) if isinstance(a[key], np.ndarray) else a[key] == b[key] for key in a
    )


CAPTIONS = [["a red circle", "one large blue cross moves left slowly", "fog"][i % 3] for i in range(len(NAMES))]
CAPTIONED = [replace(one, caption=text) for one, text in zip(ITEMS, CAPTIONS, strict=True)]
LENGTHS = TextLengths(ul2=6, byt5=5)


def expected(text, width, length):
    one = embedding(text, width)[:length]
    padded = np.zeros((length, width), np.float32)
    padded[: len(one)] = one
    return padded, (np.arange(length) < len(one)).astype(np.float32)

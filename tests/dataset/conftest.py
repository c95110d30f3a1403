"""Caches that several tests of this folder read."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for generation_toy

from generation_toy import BYT5, CAPTIONS, NAMES, RECORD, TALL, UL2, WIDE, features, store

from mg.config.generation import EmptyTexts, TextFolders
from mg.dataset.text_cache import TextCacheWriter
from mg.dataset.text_npz import write_text_npz


@pytest.fixture
def folder(tmp_path):
    """Latents of 7 wide and 4 tall videos of 16 frames, and 5 pictures."""
    folder = tmp_path / "latents"
    folder.mkdir()
    RECORD.write(folder)
    for i in range(7):
        store(folder, f"wide{i}.mp4", WIDE, seed=i)
    for i in range(4):
        store(folder, f"tall{i}.mp4", TALL, seed=10 + i)
    for i in range(5):
        store(folder, f"picture{i}.png", (1, 2, 4), frames=1, fps=0.0, seed=20 + i)
    return folder


@pytest.fixture
def texts(tmp_path):
    """Embeddings of the captions of `captioned`: ByT5 as a cache with "", UL2 as files with an empty prompt's file."""
    byt5, ul2 = tmp_path / "byt5", tmp_path / "ul2"
    with TextCacheWriter(byt5, BYT5) as writer:
        for text in dict.fromkeys([*CAPTIONS, ""]):
            writer.append([text], features(text, 6))
    ul2.mkdir()
    UL2.write(ul2)
    for name, text in zip(NAMES, CAPTIONS, strict=True):
        write_text_npz(ul2 / Path(name).with_suffix(".npz"), features(text, 5, padded_to=8), UL2.fingerprint)
    write_text_npz(tmp_path / "empty.npz", features("", 5, padded_to=8), UL2.fingerprint)
    return TextFolders(byt5=str(byt5), ul2=str(ul2)), EmptyTexts(ul2=str(tmp_path / "empty.npz"))

"""Where text embeddings go: a file per row, or the cache of an encoder."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from mg.dataset.prompt_list import SUFFIX, PromptRow
from mg.dataset.text_cache import EncoderRecord, TextCache, TextCacheWriter, caption_key
from mg.dataset.text_npz import read_text_npz, write_text_npz
from mg.errors import UserError
from mg.files import atomic_path, writable_folder
from mg.models.text_encoders.features import TextFeatures


@dataclass
class Job:
    """A text to encode, and the rows that wait for it.

    Attributes:
        tokens: token ids.
        mask: True where there is a token.
        rows: those with these tokens (files) or this caption (cache).
    """

    tokens: Int[np.ndarray, "n"]
    mask: Bool[np.ndarray, "n"]
    rows: list[PromptRow] = field(default_factory=list)


class NpzFiles:
    """Writes a file per row, which is what the reference's data sets read.

    Args:
        folder: claimed for one encoder and one rule of frame rates: its `encoder.json` says which.
        record: the encoder.
        half: store float16 instead of float32.
        overwrite: reuse nothing, and take a folder over from another encoder.

    Raises:
        UserError: the folder belongs to another encoder, has other frame rates, or cannot be written.
    """

    trim = False  # the reference's generator sees the embeddings of padding

    def __init__(self, folder: Path, record: EncoderRecord, half: bool, overwrite: bool) -> None:
        self._folder, self._fingerprint, self._half = writable_folder(folder, "--output_path"), record.fingerprint, half
        self._overwrite = overwrite
        # Files are looked for before the record: another process of the same run writes the record first.
        foreign = next((path for path in folder.rglob(f"*{SUFFIX}") if not path.name.startswith(".")), None)
        found = None if overwrite else EncoderRecord.read(folder)
        silent = found is not None and found.fps is None  # a record of before rates were noted
        fault = None
        if found is not None and replace(found, fps=record.fps) != record:
            fault = f"another encoder wrote it, {found.name} and not {record.name}"
        elif found is not None and not silent and found.fps != record.fps:
            fault = f"its captions were encoded with --fps {found.fps}, not --fps {record.fps}"
        elif found is None and foreign is not None and not overwrite:
            fault = f"it holds {foreign.name}, which this program did not write"
        if fault:
            remedy = "choose another folder, or replace its embeddings by --overwrite"
            raise UserError(f"--output_path {folder}: {fault}; {remedy}")
        if found is None or silent:
            record.write(folder)

    def identity(self, row: PromptRow, tokens: Int[np.ndarray, "n"], mask: Bool[np.ndarray, "n"]) -> bytes:
        """Return what equal contents have in common."""
        return hashlib.sha256(tokens.tobytes() + mask.tobytes()).digest()

    def holds(self, row: PromptRow, tokens: Int[np.ndarray, "n"], mask: Bool[np.ndarray, "n"]) -> bool:
        """Whether the row's file is there, whole, by this encoder and of these tokens."""
        path = self._folder / row.output
        if self._overwrite or not path.is_file():
            return False
        try:
            features, fingerprint = read_text_npz(path)
        except UserError:  # what cannot be read is written again
            return False
        # The fingerprint of each file: an --overwrite that was broken off has left files of two encoders.
        same = np.array_equal(features.tokens[0], tokens) and np.array_equal(features.mask[0], mask)
        return same and fingerprint == self._fingerprint

    def write(self, jobs: Sequence[Job], features: TextFeatures) -> None:
        """Write the files of all rows of the jobs."""
        for i, job in enumerate(jobs):
            one = TextFeatures(features.embeddings[i : i + 1], features.mask[i : i + 1], features.tokens[i : i + 1])
            for row in job.rows:
                write_text_npz(self._folder / row.output, one, self._fingerprint, self._half)

    def copy(self, output: str, row: PromptRow) -> None:
        """Give a row the file of another one with the same content."""
        with atomic_path(self._folder / row.output) as temporary:
            shutil.copyfile(self._folder / output, temporary)

    def __enter__(self) -> "NpzFiles":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Do nothing: every file is complete."""


class CacheShards:
    """Writes into the encoder's cache what is not in it yet.

    Args:
        root: folder of caches.
        record: the encoder.
        dtype: of the stored embeddings.
        part: number of this process and their count.

    Raises:
        UserError: the folder cannot be written, or a shard in it is damaged.
    """

    trim = True  # padding is not stored

    def __init__(
        self, root: Path, record: EncoderRecord, dtype: Literal["fp32", "fp16", "bf16"], part: tuple[int, int]
    ) -> None:
        writable_folder(root, "--output_path")
        self._writer = TextCacheWriter(root, record, dtype=dtype, part=part)
        self._stored = TextCache.open(root, record.kind, record.fingerprint)

    def identity(self, row: PromptRow, tokens: Int[np.ndarray, "n"], mask: Bool[np.ndarray, "n"]) -> bytes:
        """Return what equal contents have in common."""
        return caption_key(row.text)

    def holds(self, row: PromptRow, tokens: Int[np.ndarray, "n"], mask: Bool[np.ndarray, "n"]) -> bool:
        """Whether the caption was in the cache when it was opened."""
        return row.text in self._stored

    def write(self, jobs: Sequence[Job], features: TextFeatures) -> None:
        """Append the captions."""
        self._writer.append([job.rows[0].text for job in jobs], features)

    def copy(self, output: str, row: PromptRow) -> None:
        """Do nothing: equal captions are found by the same key."""

    def __enter__(self) -> "CacheShards":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.close()

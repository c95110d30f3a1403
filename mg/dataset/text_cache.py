"""A compact cache of text embeddings: one folder per encoder and weights, safetensors shards without padding.

A shard holds `keys` (uint8 (captions, 32): SHA-256 of the cleaned captions in UTF-8), `offsets` (captions + 1),
`embeddings` (tokens, d) and `tokens` (tokens,): caption i has rows offsets[i] to offsets[i + 1].
"""

import fnmatch
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Int, UInt8

from mg.errors import UserError
from mg.files import writable_folder, write_json
from mg.models.text_encoders.features import TextFeatures
from mg.models.text_encoders.prompts import clean_prompt
from mg.weights import LazyWeights, open_weights, read_metadata, write_weights

if TYPE_CHECKING:
    from mg.models.text_encoders.encoder import TextEncoder

RECORD = "encoder.json"
CAPTIONS = 1024
"""Captions of a full shard."""
BYTES = 256 * 2**20
"""A shard is full, too, when its embeddings take so many bytes in memory."""
_FORMAT = "mg.text_cache/1"
_KEY = np.dtype("S32")


@dataclass(frozen=True)
class EncoderRecord:
    """What encoded a folder of text embeddings; stands in its `encoder.json`.

    Attributes:
        kind: "ul2", "metaclip" or "byt5".
        fingerprint: of everything that decides about an embedding.
        width: size of an embedding.
        max_length: tokens per caption.
        dtype: that the encoder computed in.
        text: "all" of a caption or what is "quoted" in it.
        fps: the frame rate in front of the captions: "none", a number, or "video" for each video's own; None where that
            is not said, as in a cache, which finds captions by what stood in front of them.
    """

    kind: str
    fingerprint: str
    width: int
    max_length: int
    dtype: str
    text: str
    fps: int | float | str | None = None

    @classmethod
    def of(cls, encoder: "TextEncoder", fps: float | str | None = None) -> "EncoderRecord":
        """Describe an encoder, and the frame rate in front of what it encoded."""
        text = encoder.processor.config.text
        return cls(encoder.kind, encoder.fingerprint, encoder.width, encoder.max_length, encoder.dtype, text, fps)

    @classmethod
    def read(cls, folder: Path) -> "EncoderRecord | None":
        """Read a folder's record, None if it has none.

        Raises:
            UserError: the record is damaged.
        """
        path = folder / RECORD
        try:
            values = json.loads(path.read_text("utf-8"))
            record = cls(**values)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path}: cannot be read ({error}); restore it, or encode into another folder") from error
        wrong = [field.name for field in fields(cls) if not isinstance(getattr(record, field.name), field.type)]
        if not wrong and not _is_rate(record.fps):
            wrong = ["fps"]
        if wrong:
            raise UserError(f"{path}: {wrong[0]} is {values[wrong[0]]!r}; restore it, or encode into another folder")
        return record

    def write(self, folder: Path) -> None:
        """Write the record into a folder."""
        write_json(folder / RECORD, asdict(self))

    @property
    def name(self) -> str:
        """Name of the encoder's folder in a cache."""
        return f"{self.kind}-{self.fingerprint}"


def _is_rate(fps: float | str | None) -> bool:
    if fps is None or isinstance(fps, str):
        return fps in (None, "none", "video")
    return not isinstance(fps, bool) and math.isfinite(fps) and fps > 0


def caption_key(text: str) -> bytes:
    """Return the 32 bytes by which a caption is found; captions that are equal when cleaned have equal ones."""
    return hashlib.sha256(clean_prompt(text).encode()).digest()


class TextCacheWriter:
    """Appends captions to the cache of one encoder; use it in a `with` block, which flushes at its end.

    What is flushed is on disk for good; a caption that is there already is stored once more, and either may be read.

    Args:
        root: folder of caches, the folders `<kind>-<fingerprint>` of which belong to one encoder each.
        record: the encoder.
        dtype: of the stored embeddings.
        part: number of this process and their count; processes that write at the same time differ in it.
        captions: of a full shard.
        size: bytes of embeddings (float32, in memory) of a full shard.

    Raises:
        UserError: the folder cannot be written or holds the record of something else.
    """

    def __init__(
        self,
        root: str | Path,
        record: EncoderRecord,
        *,
        dtype: Literal["fp32", "fp16", "bf16"] = "fp32",
        part: tuple[int, int] = (0, 1),
        captions: int = CAPTIONS,
        size: int = BYTES,
    ) -> None:
        self.folder = writable_folder(Path(root) / record.name, "output_path")
        found = EncoderRecord.read(self.folder)
        if found is None:
            record.write(self.folder)
        elif found != record:
            raise UserError(f"{self.folder / RECORD}: describes another encoder; choose another output_path")
        self._record, self._dtype, self._captions, self._size = record, dtype, captions, size
        self._stem = f"shard-{part[0]}of{part[1]}-"
        names = (path.stem.removeprefix(self._stem) for path in self.folder.glob(f"{self._stem}*.safetensors"))
        self._number = max((int(name) for name in names if name.isdecimal()), default=-1) + 1
        self._clear()

    def append(self, texts: Sequence[str], features: TextFeatures) -> None:
        """Add captions and what their encoder gave for them.

        Raises:
            UserError: a disk that refuses, or a value beyond the range of the stored dtype.
            ValueError: the features are of another width, or padding stands before tokens.
        """
        lengths = features.mask.sum(1)  # (b,)
        if (features.mask != (np.arange(features.mask.shape[1]) < lengths[:, None])).any():
            raise ValueError("padding must follow the tokens")
        if features.embeddings.shape[2] != self._record.width:
            raise ValueError(f"embeddings of {features.embeddings.shape[2]} values, not of {self._record.width}")
        for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
            self._keys.append(caption_key(text))
            # Copies: a view would keep the whole batch with its padding in memory.
            self._embeddings.append(features.embeddings[row, :length].astype(np.float32))
            self._tokens.append(features.tokens[row, :length].astype(np.int32))
            self._bytes += self._embeddings[-1].nbytes
            if len(self._keys) >= self._captions or self._bytes >= self._size:
                self.flush()

    def flush(self) -> None:
        """Write the captions that are waiting as a shard.

        Raises:
            UserError: a disk that refuses, or a value beyond the range of the stored dtype.
        """
        if not self._keys:
            return
        tensors = {
            "keys": np.frombuffer(b"".join(self._keys), np.uint8).reshape(-1, 32),
            "offsets": np.cumsum([0, *map(len, self._tokens)], dtype=np.int64),
            "embeddings": np.concatenate(self._embeddings),
            "tokens": np.concatenate(self._tokens),
        }
        metadata = {"format": _FORMAT, "kind": self._record.kind, "fingerprint": self._record.fingerprint}
        path = self.folder / f"{self._stem}{self._number:06d}.safetensors"
        try:
            write_weights(path, tensors, metadata, self._dtype)
        except UserError:
            self._clear()  # leaving the `with` block shall not try again
            raise
        self._number += 1
        self._clear()

    def close(self) -> None:
        """Write what is waiting."""
        self.flush()

    def __enter__(self) -> "TextCacheWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _clear(self) -> None:
        self._keys: list[bytes] = []
        self._embeddings: list[np.ndarray] = []
        self._tokens: list[np.ndarray] = []
        self._bytes = 0


class TextCache:
    """Reads the cache of one encoder; keys are in memory (about 50 bytes per caption), tensors are read when asked for.

    Make one with `open`. `len(cache)` counts the stored captions, `text in cache` tells whether one is there.

    Attributes:
        record: the encoder.
        folder: where its shards are.
    """

    def __init__(self, folder: Path, record: EncoderRecord) -> None:
        self.folder, self.record = folder, record
        self._shards: list[LazyWeights] = []
        self._offsets: list[np.ndarray] = []
        keys = [np.empty(0, _KEY)]
        for path in sorted(folder.glob("shard-*.safetensors")):
            shard, shard_keys, offsets = _open_shard(path, record)
            self._shards.append(shard)
            self._offsets.append(offsets)
            keys.append(np.ascontiguousarray(shard_keys).view(_KEY).reshape(-1))
        self._starts = np.cumsum([0, *map(len, keys[1:])])  # (shards + 1,)
        everything = np.concatenate(keys)
        self._order = np.argsort(everything, kind="stable")
        self._keys = everything[self._order]

    @classmethod
    def open(cls, root: str | Path, kind: str, fingerprint: str | None = None) -> "TextCache":
        """Open the cache of an encoder.

        Args:
            root: folder of caches.
            kind: "ul2", "metaclip" or "byt5".
            fingerprint: the encoder's; None where the encoder is not at hand, if there is one cache of its kind.

        Raises:
            UserError: there is none, or (None) more than one; a shard is damaged.
        """
        root = Path(root)
        found = sorted(path.parent.name for path in root.glob(f"*/{RECORD}"))
        name = f"{kind}-{'*' if fingerprint is None else fingerprint}"
        wanted = fnmatch.filter(found, name)
        there = f"there is {', '.join(found) or 'none at all'}"
        if not wanted:
            raise UserError(f"{root}: no text cache {name}, {there}; encode the captions: {_command(root)}")
        if len(wanted) > 1:
            raise UserError(f"{root}: {there}; give the fingerprint of one of them")
        folder = root / wanted[0]
        record = EncoderRecord.read(folder)
        if record is None or record.name != wanted[0]:
            raise UserError(f"{folder / RECORD}: describes another encoder; restore it, or encode the captions again")
        return cls(folder, record)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, text: str) -> bool:
        return bool(self._find([text])[0] >= 0)

    def get(self, texts: Sequence[str], max_length: int | None = None) -> TextFeatures:
        """Read the embeddings of captions.

        Args:
            texts: captions as they were encoded, with "FPS-24" in front if they had it; cleaning is done here.
            max_length: tokens to pad to with zeros; None for the encoder's.

        Raises:
            UserError: a caption is not there or has more tokens, or a shard has been damaged meanwhile.
        """
        places = self._find(texts)
        missing = [text for text, place in zip(texts, places, strict=True) if place < 0]
        if missing:
            raise UserError(
                f"{self.folder}: {missing[0][:80]!r} is not in it, and {len(missing) - 1} more of {len(texts)}; "
                f"encode them: {_command(self.folder.parent)}"
            )
        shape = (len(texts), max_length or self.record.max_length)
        embeddings = np.zeros((*shape, self.record.width), np.float32)  # (b, n, d)
        mask, tokens = np.zeros(shape, bool), np.zeros(shape, np.int32)  # (b, n)
        for row, place in enumerate(places):
            number = int(np.searchsorted(self._starts, place, side="right")) - 1
            start, stop = self._offsets[number][place - self._starts[number] :][:2].tolist()
            length = stop - start
            if length > shape[1]:
                raise UserError(
                    f"{self.folder}: {texts[row][:80]!r} has {length} tokens, more than max_length={shape[1]}; encode "
                    f"it again with --model_max_length {shape[1]}, or allow more"
                )
            embeddings[row, :length] = self._shards[number].rows("embeddings", start, stop)
            tokens[row, :length] = self._shards[number].rows("tokens", start, stop)
            mask[row, :length] = True
        return TextFeatures(embeddings, mask, tokens)

    def _find(self, texts: Sequence[str]) -> Int[np.ndarray, "b"]:
        """Return the number of each caption in the order of the shards, -1 for one that is not there."""
        if not len(self):
            return np.full(len(texts), -1)
        wanted = np.array([caption_key(text) for text in texts], _KEY)  # (b,)
        nearest = np.minimum(np.searchsorted(self._keys, wanted), len(self) - 1)
        return np.where(self._keys[nearest] == wanted, self._order[nearest], -1)


def _command(root: Path) -> str:
    options = "--model_name FOLDER --prompts_file FILE --format cache"
    return f"python scripts/inference_text_enc.py {options} --output_path {root}"


def _open_shard(
    path: Path, record: EncoderRecord
) -> tuple[LazyWeights, UInt8[np.ndarray, "captions 32"], Int[np.ndarray, "captions+1"]]:
    """Open a shard and check that it is one of this encoder, whole and consistent."""
    try:
        metadata, shard = read_metadata(path), open_weights(path)
        if metadata.get("format") != _FORMAT or metadata.get("fingerprint") != record.fingerprint:
            raise UserError(f"{path}: not a shard of this cache")
        shapes = shard.shapes
        if not {"keys", "offsets", "embeddings", "tokens"} <= set(shapes):
            raise UserError(f"{path}: tensors are missing")
        keys, offsets = shard["keys"], shard["offsets"]
        count, total = len(keys), shapes["tokens"][0]
        sound = (
            (keys.shape, keys.dtype) == ((count, 32), np.uint8)
            and (offsets.shape, offsets.dtype) == ((count + 1,), np.int64)
            and (offsets[0], offsets[-1]) == (0, total)
            and (np.diff(offsets) >= 0).all()
            and shapes["embeddings"] == (total, record.width)
        )
        if not sound:
            raise UserError(f"{path}: its tensors do not fit together")
    except UserError as error:
        raise UserError(f"{error}; delete this file and encode its captions again") from error
    return shard, keys, offsets

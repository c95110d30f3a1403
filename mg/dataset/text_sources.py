"""Where a training run takes its text embeddings from: files, a cache, or encoders that run on the way."""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from jaxtyping import Float

from mg.config.generation import GenerationSettings
from mg.dataset.latent_sources import memory_limit
from mg.dataset.latents import latent_file
from mg.dataset.manifest import Item
from mg.dataset.text_cache import RECORD, EncoderRecord, TextCache
from mg.dataset.text_npz import read_text_npz
from mg.errors import BadClip, UserError
from mg.models.text_encoders.features import TextFeatures
from mg.models.text_encoders.prompts import clean_prompt, fps_prefix

if TYPE_CHECKING:
    from mg.models.text_encoders.encoder import TextEncoder

KINDS = ("ul2", "metaclip", "byt5")
"""The text encoders, in the order in which the transformer joins them."""


class TextSource(Protocol):
    """Embeddings by one encoder of the captions of a list of items.

    Attributes:
        width: of an embedding.
        fingerprint: of the encoder, "" where that is not known.
        fps: frame rate in front of the captions when they were encoded: "none", a number, or "video" for each video's
            own; None where no embedding depends on it, as in those of quoted text.
        online: whether asking for them runs a network, which only the main thread should do.
    """

    width: int
    fingerprint: str
    fps: float | str | None
    online: bool

    def key(self, item: Item, fps: float | None) -> str:
        """Return what `get` wants for an item; raises BadClip if there is no embedding of its caption."""

    def get(self, keys: Sequence[str]) -> list[Float[np.ndarray, "n d"]]:
        """Return embeddings by their keys, each as long as its text; raises BadClip if one cannot be had any more."""

    def empty(self) -> Float[np.ndarray, "n d"] | None:
        """Return the embedding of the empty prompt, None if there is none."""


class _Store:
    """Embeddings in memory, each once, up to a number of bytes. Safe to share by threads."""

    def __init__(self, limit: float) -> None:
        self._limit, self._used = limit, 0
        self._kept: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    @property
    def has_room(self) -> bool:
        return self._used < self._limit

    def get(self, key: str) -> np.ndarray | None:
        return self._kept.get(key)

    def put(self, key: str, embedding: np.ndarray) -> bool:
        """Keep an embedding if there is room; tell whether it is kept."""
        with self._lock:
            if key in self._kept:
                return True
            if self._used + embedding.nbytes > self._limit:
                self._limit = self._used  # full, although a smaller one might still fit
                return False
            self._kept[key] = np.array(embedding)  # a view would keep what it is a part of
            self._used += embedding.nbytes
            return True


class NpzTexts:
    """Reads a file per video, ours or the reference's; equal embeddings are in memory once.

    Args:
        folder: of the files.
        length: tokens that are used at most.
        padding: use the embeddings of padding, too.
        in_memory: keep all, none, or (None) up to 2 GB.
        empty_file: embeddings of the empty prompt.
        fps: frame rate in front of the captions; believed where the folder's record does not say it.

    Raises:
        UserError: nothing in the folder, a damaged record or empty prompt, or frame rates that the record denies.
    """

    online = False

    def __init__(
        self,
        folder: Path,
        length: int,
        padding: bool = False,
        in_memory: bool | None = None,
        empty_file: str | None = None,
        fps: float | str = "none",
    ) -> None:
        self._folder, self._length, self._padding = folder, length, padding
        record = EncoderRecord.read(folder)
        self.fingerprint = record.fingerprint if record else ""
        self.fps = _rate_of(folder, record, fps)
        self._store = _Store(memory_limit(in_memory))
        self._empty = None
        if empty_file is not None:
            self._empty = self._read(Path(empty_file))
        first = next((path for path in sorted(folder.rglob("*.npz")) if not path.name.startswith(".")), None)
        if first is None:
            raise UserError(f"{folder}: no text embeddings; encode the captions by scripts/inference_text_enc.py")
        self.width = record.width if record else read_text_npz(first)[0].embeddings.shape[2]
        if self._empty is not None and self._empty.shape[1] != self.width:
            raise UserError(f"{empty_file}: embeddings of {self._empty.shape[1]} values, not of {self.width}")

    def key(self, item: Item, fps: float | None) -> str:
        """See `TextSource`; what fits into memory is read."""
        output, error = latent_file(item.name)  # texts and latents are named alike
        if error:
            raise BadClip(item.path, error)
        path = self._folder / output
        if not self._store.has_room:
            if not path.is_file():
                raise BadClip(path, "no embeddings of this caption; encode it by scripts/inference_text_enc.py")
            return str(path)
        embedding = self._checked(path)
        digest = hashlib.sha256(embedding.tobytes()).hexdigest()
        return digest if self._store.put(digest, embedding) else str(path)

    def get(self, keys: Sequence[str]) -> list[np.ndarray]:
        """See `TextSource`."""
        found = ((key, self._store.get(key)) for key in keys)
        return [self._checked(Path(key)) if embedding is None else embedding for key, embedding in found]

    def empty(self) -> np.ndarray | None:
        """See `TextSource`."""
        return self._empty

    def _checked(self, path: Path) -> np.ndarray:
        try:
            embedding = self._read(path)
        except UserError as error:
            raise BadClip(path, str(error).removeprefix(f"{path}: ")) from error
        if embedding.shape[1] != self.width:
            raise BadClip(path, f"has embeddings of {embedding.shape[1]} values, not of {self.width}")
        return embedding

    def _read(self, path: Path) -> np.ndarray:
        features, fingerprint = read_text_npz(path)
        if fingerprint and self.fingerprint and fingerprint != self.fingerprint:
            raise UserError(f"{path}: is of the encoder {fingerprint}, not of {self.fingerprint}; encode it again")
        return _cut(features, 0, self._length, self._padding)


class CachedTexts:
    """Reads the cache of an encoder; every caption is in memory once.

    Args:
        cache: of the encoder.
        length: tokens that are used at most.
        in_memory: keep all, none, or (None) up to 2 GB.
        fps: frame rate in front of the captions when they were encoded; "none", or "video" for each video's own.
    """

    online = False

    def __init__(
        self, cache: TextCache, length: int, in_memory: bool | None = None, fps: float | str = "none"
    ) -> None:
        self.width, self.fingerprint = cache.record.width, cache.record.fingerprint
        self.fps = None if cache.record.text == "quoted" else fps
        self._cache, self._length, self._fps = cache, length, fps
        self._store = _Store(memory_limit(in_memory))

    def key(self, item: Item, fps: float | None) -> str:
        """See `TextSource`; what fits into memory is read."""
        text = caption_of(item, self._fps, fps)
        if text not in self._cache:
            raise BadClip(item.path, f"its caption {text[:80]!r} is not in {self._cache.folder}; encode the captions")
        if self._store.has_room and self._store.get(text) is None:
            self._store.put(text, self._read([text])[0])
        return text

    def get(self, keys: Sequence[str]) -> list[np.ndarray]:
        """See `TextSource`."""
        missing = [key for key in dict.fromkeys(keys) if self._store.get(key) is None]
        read = dict(zip(missing, self._read(missing), strict=True)) if missing else {}
        return [read[key] if key in read else self._store.get(key) for key in keys]

    def empty(self) -> np.ndarray | None:
        """See `TextSource`."""
        return self._read([""])[0] if "" in self._cache else None

    def _read(self, texts: list[str]) -> list[np.ndarray]:
        features = self._cache.get(texts)
        return [_cut(features, row, self._length, False) for row in range(len(texts))]


class OnlineTexts:
    """Encodes captions when they are asked for, each once as long as memory allows.

    Args:
        encoder: a text encoder that is loaded.
        length: tokens that are used at most.
        in_memory: keep all, none, or (None) up to 2 GB.
        fps: see `CachedTexts`.
    """

    online = True

    def __init__(
        self, encoder: "TextEncoder", length: int, in_memory: bool | None = None, fps: float | str = "none"
    ) -> None:
        self.width, self.fingerprint = encoder.width, encoder.fingerprint
        self.fps = None if encoder.processor.config.text == "quoted" else fps
        self._encoder, self._length, self._fps = encoder, length, fps
        self._store = _Store(memory_limit(in_memory))

    def key(self, item: Item, fps: float | None) -> str:
        """See `TextSource`."""
        return caption_of(item, self._fps, fps)

    def get(self, keys: Sequence[str]) -> list[np.ndarray]:
        """See `TextSource`."""
        missing = [key for key in dict.fromkeys(keys) if self._store.get(key) is None]
        made: dict[str, np.ndarray] = {}
        if missing:
            features = self._encoder.encode(missing, trim=True)
            made = {key: _cut(features, row, self._length, False) for row, key in enumerate(missing)}
            for key, embedding in made.items():
                self._store.put(key, embedding)
        return [made[key] if key in made else self._store.get(key) for key in keys]

    def empty(self) -> np.ndarray | None:
        """See `TextSource`."""
        return self.get([""])[0]


def caption_of(item: Item, fps: float | str, own_fps: float | None) -> str:
    """Return an item's caption as it was encoded, with the frame rate in front where that is asked for.

    Raises:
        BadClip: the item has no caption.
    """
    if item.caption is None:
        raise BadClip(item.path, f"row {item.row} has no caption")
    rate = own_fps if fps == "video" else fps
    if item.is_image and fps == "video" or rate in (None, "none"):
        return clean_prompt(item.caption)
    return fps_prefix(clean_prompt(item.caption), Fraction(rate))


def knows_rates(texts: Mapping[str, TextSource], fps: float | str) -> bool:
    """Tell whether the captions had a frame rate in front when they were encoded.

    Args:
        texts: sources by encoder.
        fps: what the settings say, for sources none of which depends on it.

    Raises:
        UserError: those of one encoder had, those of another had not.
    """
    rated = {kind: text.fps != "none" for kind, text in texts.items() if text.fps is not None}
    if len(set(rated.values())) > 1:
        one, other = (next(kind for kind, has in rated.items() if has is wanted) for wanted in (True, False))
        raise UserError(
            f"text.{one}: its captions were encoded with a frame rate in front, those of text.{other} without; encode "
            "both with the same --fps"
        )
    return next(iter(rated.values()), fps != "none")


def open_texts(settings: GenerationSettings) -> dict[str, TextSource]:
    """Open the folders of the settings: encoder -> source, in the order of `KINDS`.

    Raises:
        UserError: no such folder, nothing or another encoder's embeddings in it; the message names the option.
    """
    return {kind: _open(kind, Path(folder), settings) for kind, folder in settings.text.by_kind.items()}


def _open(kind: str, folder: Path, settings: GenerationSettings) -> TextSource:
    option = f"text.{kind}"
    if not folder.is_dir():
        raise UserError(f"{option}: {folder} is not a folder; encode the captions by scripts/inference_text_enc.py")
    length, memory = getattr(settings.text_lengths, kind), settings.in_memory
    try:
        record = EncoderRecord.read(folder)
        if record is not None and record.kind != kind:
            raise UserError(f"{folder}: embeddings of {record.kind}; give a folder of {kind}")
        shards = any(folder.glob("shard-*.safetensors"))
        if not shards and (record is not None or not any(folder.glob(f"*/{RECORD}"))):
            empty = settings.empty_text.by_kind.get(kind)
            return NpzTexts(folder, length, settings.attend_padding, memory, empty, settings.fps)
        if settings.attend_padding:
            raise UserError(f"{folder}: a text cache holds no padding; use .npz files, or attend_padding=false")
        root, mark = (folder.parent, record.fingerprint) if shards and record else (folder, None)
        return CachedTexts(TextCache.open(root, kind, mark), length, memory, settings.fps)
    except UserError as error:
        raise UserError(f"{option}: {error}") from error


def _cut(features: TextFeatures, row: int, length: int, padding: bool) -> np.ndarray:
    """Take one text's embeddings (n, d) without padding, or with it, cut to a length."""
    embedding, mask = features.embeddings[row], features.mask[row]
    kept = embedding if padding else embedding[mask]
    return np.ascontiguousarray(kept[:length], np.float32)


def _rate_of(folder: Path, record: EncoderRecord | None, fps: float | str) -> float | str | None:
    """Return a folder's frame rate, which its record says, else the settings."""
    if record is not None and record.text == "quoted":
        return None
    if record is None or record.fps is None:
        return fps
    if fps not in ("none", record.fps):
        raise UserError(
            f"{folder}: its captions were encoded with --fps {record.fps}, not with fps={fps}; drop data.fps, or "
            "encode them again"
        )
    return record.fps

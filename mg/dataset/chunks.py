"""Decoded clips in a few large files: written once, read by memory mapping, with the frames that decoding would give.

A folder holds shards (safetensors: `frames.n` uint8 (t, h, w, 3) and `times.n` float64 (t,) of clip n of the list) and
`index.json` with every clip's place, checksum and source. A clip that cannot be decoded is listed with its reason.
"""

import json
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8
from safetensors.numpy import save

from mg.dataset.check import file_hash
from mg.dataset.frames import pick_frames
from mg.dataset.headers import Header, Limits, peek
from mg.dataset.manifest import Item
from mg.dataset.ordered import in_order
from mg.dataset.transforms import shrink_short_side
from mg.dataset.video import read_image, read_whole
from mg.errors import BadClip, NoGoodClip, UserError
from mg.files import write_bytes, write_json
from mg.log import get_logger

INDEX = "index.json"
_FORMAT = "mg.clip_chunks.1"
_REMEDY = "run tools/make_chunks.py again, which makes it anew"


@dataclass(frozen=True)
class Entry:
    """What the index says of a clip.

    Attributes:
        name: as the list names it.
        number: its place in the list, which names its tensors.
        header: what the file's header announced (frames, height, width, seconds); None: it could not be read.
        reason: why there are no frames; None: there are.
        source: bytes and SHA-256 of the file, None where it could not be read.
        shape: of the frames (t, h, w, 3).
        fps: mean frame rate, 0 for a picture.
        crc32: of the frames' bytes followed by those of the times.
        shard: number of the shard.
    """

    name: str
    number: int
    header: tuple[int, int, int, float] | None
    reason: str | None = None
    source: tuple[int, str] | None = None
    shape: tuple[int, ...] | None = None
    fps: float = 0.0
    crc32: int = 0
    shard: int | None = None


@dataclass(frozen=True)
class _Decoded:
    entry: Entry
    frames: np.ndarray | None = None
    times: np.ndarray | None = None

    @property
    def size(self) -> int:
        return 0 if self.frames is None else self.frames.nbytes + self.times.nbytes


class ChunkWriter:
    """Writes a list of clips into shards; broken off, it goes on where it stopped and ends with the same bytes.

    Shards that are there are read through first. One that is damaged, or that lacks a clip which was bad and has been
    mended, is made anew, and those behind it as far as their clips move.

    Args:
        folder: where the shards go.
        items: the clips; equal names are written once.
        short_side: frames are shrunk to it (pixels), None keeps their size.
        shard_bytes: a shard is closed before it would grow beyond this; a larger clip has one of its own.
        workers: threads that decode.
    """

    def __init__(
        self, folder: str | Path, items: Sequence[Item], short_side: int | None, shard_bytes: int, workers: int
    ) -> None:
        self._folder = Path(folder)
        self._items = list({item.name: item for item in items}.values())
        self._settings = {"short_side": short_side, "shard_bytes": shard_bytes}
        self._short_side, self._limit, self._workers = short_side, shard_bytes, workers

    def write(self, progress: Callable[[int], None] = lambda done: None) -> list[Entry]:
        """Write what is missing and then the index.

        Args:
            progress: called with the number of clips that are done.

        Returns:
            The entries of all clips.

        Raises:
            UserError: the folder holds chunks of another list or with other settings, or a file changed meanwhile.
            NoGoodClip: not one clip can be decoded.
        """
        entries: list[Entry] = []
        shards: list[dict[str, Any]] = []
        for number, clips in self._shards(progress):
            path = _shard_path(self._folder, number)
            entries += clips
            if path.exists():  # the last clips may all be bad and have no shard
                shards.append({"file": path.name, "bytes": path.stat().st_size})
        if all(entry.reason for entry in entries):
            raise NoGoodClip(f"none of the {len(entries)} clips can be decoded; the first: {entries[0].reason}")
        index = {"format": _FORMAT, **self._settings, "shards": shards, "clips": [asdict(entry) for entry in entries]}
        write_json(self._folder / INDEX, index)
        return entries

    def _shards(self, progress: Callable[[int], None]) -> Iterator[tuple[int, list[Entry]]]:
        """Yield number and entries of every shard, written before or now."""
        position = number = 0
        found = self._found(number, position)
        while position < len(self._items):
            for clips in [found] if found else self._build(position, number):
                yield number, clips
                position += len(clips)
                number += 1
                progress(position)
                found = self._found(number, position)
                if found:
                    break  # what follows is there already

    def _found(self, number: int, position: int) -> list[Entry] | None:
        """Return the entries of a shard that is there already; None: it is to be made, or made anew."""
        path = _shard_path(self._folder, number)
        if position == len(self._items) or not path.exists():
            return None
        try:
            places, texts = _layout(path)
            said = json.loads(texts["mg.chunk"])
            entries = [_entry(values) for values in said["clips"]]
            first = entries[0].number
            known = [item.name for item in self._items[first : first + len(entries)]]
        except (ValueError, KeyError, TypeError, IndexError, OSError):  # damaged
            return None
        same = [entry.name for entry in entries] == known
        if {name: said.get(name) for name in self._settings} != self._settings or not same:
            raise UserError(f"{path} is of another list or was made with other settings; choose another folder")
        if first != position:  # a clip of an earlier shard is longer or shorter by now: those behind it have moved
            return None
        data = np.memmap(path, np.uint8, "r")
        faults = in_order(lambda entry: self._fault(path, entry, data, places), entries, self._workers)
        why = next(filter(None, faults), None)
        if why is not None:
            get_logger().warning("%s is made anew: %s", path, why)
        return entries if why is None else None

    def _fault(self, path: Path, entry: Entry, data: np.ndarray, places: Mapping[str, tuple[int, int]]) -> str | None:
        """Return why a clip's shard must be made anew; raises UserError if the clip's file is another one by now."""
        item = self._items[entry.number]
        if entry.reason is not None:
            mended = self._decode(entry.number).entry.reason is None
            return f"{entry.name} was bad ({entry.reason}) and is not any more" if mended else None
        size, digest = entry.source
        if item.path.exists() and (item.path.stat().st_size != size or file_hash(item.path) != digest):
            raise UserError(f"{item.path} has changed since {path} was written; delete that, or the whole folder")
        try:
            sound = _checksum(*_arrays(entry, data, places)) == entry.crc32
        except (KeyError, ValueError):
            sound = False
        return None if sound else f"the frames of {entry.name} in it are damaged"

    def _build(self, position: int, number: int) -> Iterator[list[Entry]]:
        """Decode from a clip on and yield the entries of each shard as it is written."""
        waiting: list[_Decoded] = []
        size = 0
        decoded = in_order(self._decode, range(position, len(self._items)), self._workers)
        for one in decoded:
            if size and size + one.size > self._limit:
                yield self._flush(number, waiting)
                number, waiting, size = number + 1, [], 0
            waiting.append(one)
            size += one.size
        if waiting:
            yield self._flush(number, waiting)

    def _flush(self, number: int, clips: Sequence[_Decoded]) -> list[Entry]:
        entries, tensors = [], {}
        for one in clips:
            values = asdict(one.entry)
            if one.frames is not None:
                values["shard"] = number
                tensors[f"frames.{one.entry.number}"] = one.frames
                tensors[f"times.{one.entry.number}"] = one.times
            entries.append(Entry(**values))
        if tensors:
            said = {**self._settings, "clips": [asdict(entry) for entry in entries]}
            # One text, for the order of several is not fixed.
            write_bytes(_shard_path(self._folder, number), save(tensors, {"mg.chunk": json.dumps(said)}))
        return entries

    def _decode(self, number: int) -> _Decoded:
        item = self._items[number]
        header = None
        try:
            if not item.path.is_file():
                raise BadClip(item.path, "file not found")
            said = peek(item.path)
            header = (said.num_frames, said.height, said.width, said.seconds)
            if item.is_image:
                frames, times, fps = read_image(item.path), np.zeros(1), 0.0
                frames = frames if self._short_side is None else shrink_short_side(frames, self._short_side)
            else:
                frames, info = read_whole(item.path, self._short_side)
                times, fps = np.array(info.times, np.float64), float(info.fps)
            source = (item.path.stat().st_size, file_hash(item.path))
        except BadClip as error:
            return _Decoded(Entry(item.name, number, header, reason=error.reason))
        crc = _checksum(frames, times)
        return _Decoded(Entry(item.name, number, header, None, source, frames.shape, fps, crc), frames, times)


class ChunkedClips:
    """Reads clips out of shards; a `FrameReader`.

    Args:
        folder: that `ChunkWriter` wrote.
        short_side: that the frames must have been shrunk to.
        limits: clips whose files are beyond them are bad.

    Raises:
        UserError: no such folder, another short side, or shards that are missing or cut off, each by name.
    """

    def __init__(self, folder: str | Path, short_side: int | None = None, limits: Limits | None = None) -> None:
        self._folder, self._limits = Path(folder), limits or Limits()
        index = _read_index(self._folder)
        if index["short_side"] != short_side:
            raise UserError(
                f"chunks: {folder} has frames of short side {index['short_side']}, cache_short_side is {short_side}; "
                "make both alike"
            )
        self.entries = {entry.name: entry for entry in map(_entry, index["clips"])}
        self._maps: dict[int, tuple[np.ndarray, Mapping[str, tuple[int, int]]]] = {}
        self._sound: set[str] = set()
        self._lock = threading.Lock()

    def check(self, item: Item) -> None:
        """See `FrameReader`; UserError for a clip that the chunks were not made of."""
        self._entry(item)

    def header(self, item: Item) -> Header:
        """See `FrameReader`."""
        entry = self._known(item)
        if entry.header is None:
            raise BadClip(item.path, entry.reason)
        return Header(*entry.header)

    def times(self, item: Item) -> Sequence[float]:
        """See `FrameReader`."""
        return self._arrays(item)[1]

    def fps(self, item: Item) -> float:
        """See `FrameReader`."""
        return self._entry(item).fps

    def read(self, item: Item, indices: Sequence[int]) -> np.ndarray:
        """See `FrameReader`; a view of the file, not to be written to."""
        return pick_frames(self._arrays(item)[0], indices)

    def damaged(self) -> Iterator[str]:
        """Read everything and yield a line for each clip whose checksum is wrong, with its shard."""
        for entry in self.entries.values():
            if entry.reason is None:
                item = Item(Path(entry.name), entry.name, None, entry.number + 1)
                try:
                    self._arrays(item)
                except BadClip as error:
                    yield f"{entry.name}: {error.reason}"

    def _known(self, item: Item) -> Entry:
        entry = self.entries.get(item.name)
        if entry is None:
            raise UserError(f"chunks: {self._folder} has no {item.name}; make chunks of this list, into another folder")
        return entry

    def _entry(self, item: Item) -> Entry:
        entry = self._known(item)
        if entry.reason is not None:
            raise BadClip(item.path, entry.reason)
        self._limits.check_header(item.path, Header(*entry.header))
        return entry

    def _arrays(self, item: Item) -> tuple[np.ndarray, np.ndarray]:
        """Frames and times of a clip; its checksum is looked at the first time."""
        entry = self._entry(item)
        data, places = self._shard(entry.shard)
        frames, times = _arrays(entry, data, places)
        if entry.name not in self._sound:
            if _checksum(frames, times) != entry.crc32:
                path = _shard_path(self._folder, entry.shard)
                raise BadClip(item.path, f"its frames in {path} are damaged; {_REMEDY}")
            self._sound.add(entry.name)
        return frames, times

    def _shard(self, number: int) -> tuple[np.ndarray, Mapping[str, tuple[int, int]]]:
        with self._lock:
            if number not in self._maps:
                path = _shard_path(self._folder, number)
                try:
                    places, _ = _layout(path)
                    self._maps[number] = np.memmap(path, np.uint8, "r"), places
                except (OSError, ValueError, KeyError, TypeError) as error:
                    raise UserError(f"chunks: {path} is damaged ({error}); delete it and {_REMEDY}") from error
            return self._maps[number]


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        index = json.loads(path.read_text("utf-8"))
        if index["format"] != _FORMAT:
            raise UserError(f"chunks: {path} is of format {index['format']}, not {_FORMAT}; make the chunks again")
        sizes = {shard["file"]: shard["bytes"] for shard in index["shards"]}
    except FileNotFoundError as error:
        raise UserError(f"chunks: {path} is not there; run tools/make_chunks.py, to its end") from error
    except OSError as error:
        raise UserError(f"chunks: {path} cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"chunks: {path} is damaged; {_REMEDY}") from error
    for name, size in sizes.items():
        try:
            found = (folder / name).stat().st_size
        except OSError as error:
            raise UserError(f"chunks: {folder / name} is missing; {_REMEDY}") from error
        if found != size:
            raise UserError(f"chunks: {folder / name} has {found} bytes instead of {size}; delete it and {_REMEDY}")
    return index


def _layout(path: Path) -> tuple[dict[str, tuple[int, int]], Mapping[str, str]]:
    """Return where each tensor of a safetensors file lies, from its start, and the texts beside them."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise ValueError("its header is longer than the file")
        header = json.loads(file.read(length))
    texts = header.pop("__metadata__", {})
    places = {name: tuple(8 + length + edge for edge in tensor["data_offsets"]) for name, tensor in header.items()}
    if any(not 0 <= start <= end <= size for start, end in places.values()):
        raise ValueError("a tensor lies beyond its end")
    return places, texts


def _arrays(
    entry: Entry, data: np.ndarray, places: Mapping[str, tuple[int, int]]
) -> tuple[UInt8[np.ndarray, "t h w 3"], Float64[np.ndarray, "t"]]:
    """Return frames and times of a clip out of the bytes of its shard; the frames are a view."""
    start, end = places[f"frames.{entry.number}"]
    frames = data[start:end].reshape(entry.shape)  # (t, h, w, 3)
    start, end = places[f"times.{entry.number}"]
    return frames, np.frombuffer(data[start:end].tobytes(), np.float64)


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def _entry(values: Mapping[str, Any]) -> Entry:
    return Entry(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _checksum(frames: np.ndarray, times: np.ndarray) -> int:
    return zlib.crc32(times.tobytes(), zlib.crc32(np.ascontiguousarray(frames)))

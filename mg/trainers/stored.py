"""The tensors of a checkpoint on disk, whole or in pieces by several processes, read as they are asked for."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from mg.errors import UserError
from mg.parallel.pieces import Piece, size_of
from mg.tensor_file import STORED
from mg.weights import LazyWeights


@dataclass(frozen=True)
class Entry:
    """Where one tensor is: its pieces in files, under its own name in each."""

    shape: tuple[int, ...]
    dtype: np.dtype
    axis: int | None
    blocks: int
    """Along the axis, as in `Piece`; 1 without."""
    pieces: tuple[tuple[LazyWeights, Piece], ...]
    """Rising by block and start, without gaps."""


class StoredTensors(Mapping[str, np.ndarray]):
    """Tensors by name, each read when it is asked for."""

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries = dict(entries)

    @classmethod
    def of_file(cls, path: Path) -> "StoredTensors":
        """Open a file of whole tensors.

        Raises:
            UserError: it is missing or damaged.
        """
        if not path.is_file():
            raise UserError(f"{path}: there is no such file; check the path")
        file = LazyWeights(path)
        return cls({
            name: Entry(shape, file.dtype(name), None, 1, ((file, Piece(0, size_of(shape))),))
            for name, shape in file.shapes.items()
        })  # fmt: skip

    @classmethod
    def of_shards(cls, folder: Path, table: Mapping[str, Mapping]) -> "StoredTensors":
        """Open the pieces that a manifest lists, by name of the tensor (see `mg.trainers.sharded`).

        Raises:
            UserError: a file is damaged, or the manifest does not fit the files.
        """
        names = sorted({piece[0] for entry in table.values() for piece in entry["pieces"]})
        foreign = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
        if foreign:
            raise UserError(f"{folder}: the manifest leads to {foreign[0]!r}; shards must be files beside it")
        files = {name: LazyWeights(folder / name) for name in names}
        return cls({name: _entry(folder, name, entry, files) for name, entry in table.items()})

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def dtype(self, name: str) -> np.dtype:
        """Tell the type of a tensor."""
        return self._entries[name].dtype

    def only(self, names: Iterable[str]) -> "StoredTensors":
        """Return the tensors of these names alone."""
        return StoredTensors({name: self._entries[name] for name in names})

    def over(self, others: "StoredTensors") -> "StoredTensors":
        """Return the others, those that are here, too, from here."""
        return StoredTensors({name: self._entries.get(name, entry) for name, entry in others._entries.items()})

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        size = size_of(entry.shape) // entry.blocks
        blocks = [self._range(name, entry, block, 0, size) for block in range(entry.blocks)]
        if entry.axis is None:
            return blocks[0].reshape(entry.shape)
        shape = tuple(n // entry.blocks if axis == entry.axis else n for axis, n in enumerate(entry.shape))
        return np.concatenate([block.reshape(shape) for block in blocks], entry.axis)

    def piece(self, name: str, wanted: Piece) -> Shaped[np.ndarray, " k"]:
        """Read a piece and, where the tensor is stored in the same blocks, nothing else of it."""
        entry = self._entries[name]
        if (wanted.axis, wanted.blocks) == (entry.axis, entry.blocks):
            return self._range(name, entry, wanted.block, wanted.start, wanted.stop)
        return wanted.of(self[name])

    def _range(self, name: str, entry: Entry, block: int, start: int, stop: int) -> np.ndarray:
        """Read elements of a flattened block."""
        found = np.empty(stop - start, entry.dtype)
        for file, piece in entry.pieces:
            low, high = max(start, piece.start), min(stop, piece.stop)
            if piece.block == block and low < high:
                found[low - start : high - start] = file.flat(name, low - piece.start, high - piece.start)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _entry(folder: Path, name: str, entry: Mapping, files: Mapping[str, LazyWeights]) -> Entry:
    shape, axis, blocks = tuple(entry["shape"]), entry["axis"], entry["blocks"]
    pieces = [
        (files[file], Piece(start, stop, axis, blocks, block)) for file, block, start, stop in sorted(
            entry["pieces"], key=lambda piece: piece[1:]
        )
    ]  # fmt: skip
    size, at = size_of(shape) // blocks, 0
    for file, piece in pieces:
        if at != piece.block * size + piece.start or file.shapes.get(name) != (piece.size,):
            raise UserError(f"{folder}: {name} is not in the shards as the manifest says; take another checkpoint")
        at += piece.size
    if at != size_of(shape):
        raise UserError(f"{folder}: {at} of {size_of(shape)} elements of {name} are in the shards; "
                        "take another checkpoint")
    return Entry(shape, np.dtype(STORED[entry["dtype"]]), axis, blocks, tuple(pieces))

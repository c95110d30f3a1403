"""Captions for fine-tuning a text encoder beyond its length: lists, joined captions, pieces, batches by index."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from mg.dataset.manifest import Item, read_manifest
from mg.errors import UserError
from mg.rng import stream
from mg.weights import open_weights


@dataclass(frozen=True)
class CaptionRows:
    """Tokenized captions with what their embeddings should be.

    Attributes:
        tokens: token ids, int32, padded to the student's length.
        mask: True where there is a token.
        target: vectors of length 1.
        groups: rows of the same picture; a batch has one row of a group. None: each row by itself.
    """

    tokens: Int[np.ndarray, "r n"]
    mask: Bool[np.ndarray, "r n"]
    target: Float[np.ndarray, "r p"]
    groups: Sequence[Sequence[int]] | None = None

    def draw(self, generator: np.random.Generator, count: int) -> Int[np.ndarray, "count"]:
        """Draw rows of different groups, or, where there are too few, with repetitions."""
        groups = len(self.tokens) if self.groups is None else len(self.groups)
        chosen = generator.choice(groups, count, replace=groups < count)
        if self.groups is None:
            return chosen
        return np.array([self.groups[i][generator.integers(len(self.groups[i]))] for i in chosen])


class LongCaptionBatches:
    """Batches for `LongClipLoss`: rows of the first kind, then short captions; each a pure function of the index.

    Args:
        long: rows of the first kind.
        short: short captions.
        long_rows: of a batch.
        short_rows: of a batch, 0 for none.
        seed: of what is drawn.
    """

    def __init__(self, long: CaptionRows, short: CaptionRows, long_rows: int, short_rows: int, seed: int) -> None:
        self._parts = (("long", long, long_rows), ("short", short, short_rows))
        self._seed = seed

    def batch(self, index: int) -> dict[str, np.ndarray]:
        """Return tokens and mask (b, n), int32, and target (b, p), float32."""
        drawn = [
            (rows, rows.draw(stream(self._seed, f"long_clip.{name}", index), count))
            for name, rows, count in self._parts if count
        ]  # fmt: skip
        return {
            "tokens": np.concatenate([rows.tokens[i] for rows, i in drawn]).astype(np.int32),
            "mask": np.concatenate([rows.mask[i] for rows, i in drawn]).astype(np.int32),
            "target": np.concatenate([rows.target[i] for rows, i in drawn]).astype(np.float32),
        }


def read_captions(csv_path: str | Path, videos: bool) -> list[Item]:
    """Read a CSV's captions, none of them empty.

    Args:
        csv_path: UTF-8 CSV with a column `caption`.
        videos: it must have a column `video` too.

    Raises:
        UserError: the CSV is missing or malformed, a column is missing, or a row has no caption.
    """
    path = Path(csv_path)
    if not path.is_file():
        raise UserError(f"csv_path: {path} is not a file; give a CSV with a column caption")
    items = read_manifest(path, path.parent, column="video" if videos else "caption")
    if all(item.caption is None for item in items):
        raise UserError(f"csv_path: {path} has no column 'caption', or nothing in it; add the captions")
    for item in items:
        if item.caption is None:
            raise UserError(f"csv_path: {path}, row {item.row}: column 'caption' is empty; write one or remove the row")
    return items


def hold_back(items: Sequence[Item], share: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Split captions into those to train on and those held back, by seed; all rows of a video go to the same side.

    Args:
        items: captions.
        share: of the videos to hold back, in [0, 1); above 0 at least one is.
        seed: of the choice.

    Raises:
        UserError: nothing would be left to train on.
    """
    names = sorted({item.name for item in items})
    count = max(1, round(share * len(names))) if share else 0
    if count >= len(names):
        raise UserError(
            f"valid.share={share}: of {len(names)} captions none would be left to train on; list more, or set it to 0"
        )
    held = {names[i] for i in stream(seed, "long_clip.held").permutation(len(names))[:count]}
    return [item for item in items if item.name not in held], [item for item in items if item.name in held]


def joined(texts: Sequence[str], each: int, count: int, seed: int) -> list[str]:
    """Make long captions by joining short ones: text k joins `each` of them, drawn by (seed, k).

    No caption comes twice in a text unless there are fewer than `each`.
    """
    made = []
    for k in range(count):
        chosen = stream(seed, "long_clip.join", k).choice(len(texts), each, replace=each > len(texts))
        made.append(" ".join(texts[i] for i in chosen))
    return made


def shortened(
    tokens: Int[np.ndarray, "b n"], mask: Bool[np.ndarray, "b n"], length: int, pad: int
) -> tuple[Int[np.ndarray, "b n"], Bool[np.ndarray, "b n"]]:
    """Cut captions to at most `length` tokens, the closing one included; the arrays keep their width."""
    tokens, mask = tokens.copy(), mask.copy()
    counts = mask.sum(1)
    for row in np.flatnonzero(counts > length):
        tokens[row, length - 1] = tokens[row, counts[row] - 1]
        tokens[row, length:] = pad
    mask[:, length:] = False
    return tokens, mask


def pieces(
    tokens: Int[np.ndarray, "b n"], mask: Bool[np.ndarray, "b n"], length: int, pad: int
) -> tuple[Int[np.ndarray, "m length"], Bool[np.ndarray, "m length"], Int[np.ndarray, "m"]]:
    """Cut captions into the fewest consecutive pieces of at most `length` tokens, each with start and end token.

    The pieces of a caption are of equal size to within a token, so that none of them weighs more than it says.

    Returns:
        Tokens and masks of all pieces in order, and the row that each belongs to.
    """
    cut: list[np.ndarray] = []
    owners: list[int] = []
    for row, count in enumerate(mask.sum(1)):
        start, content, end = np.split(tokens[row, :count], [1, count - 1])
        number = max(1, -(-len(content) // (length - 2)))
        cut.extend(np.concatenate([start, part, end]) for part in np.array_split(content, number))
        owners.extend([row] * number)
    out, out_mask = np.full((len(cut), length), pad, np.int32), np.zeros((len(cut), length), bool)
    for row, part in enumerate(cut):
        out[row, : len(part)], out_mask[row, : len(part)] = part, True
    return out, out_mask, np.array(owners)


def unit_rows(x: Float[np.ndarray, "b p"]) -> Float[np.ndarray, "b p"]:
    """Scale rows to length 1; a row of zeros stays."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def read_image_embeddings(path: str | Path, names: Sequence[str], width: int) -> Float[np.ndarray, "r p"]:
    """Read pictures' embeddings, scaled to length 1.

    Args:
        path: .safetensors or .npz, name of the video -> vector (width,).
        names: the videos wanted, in order, repetitions allowed.
        width: size of the encoder's projection.

    Raises:
        UserError: the file is missing or damaged, or a video has no usable vector in it.
    """
    path = Path(path)
    stored = _vectors(path, set(names))
    for name in names:
        if name not in stored:
            raise UserError(f"data.image_embeddings: {path} has no vector for {name!r}; add it or remove its row")
        vector = stored[name]
        if vector.shape != (width,):
            raise UserError(
                f"data.image_embeddings: {path}: {name!r} is {vector.shape} instead of ({width},), the text "
                "projection's size; embed the pictures with the same CLIP"
            )
        if not (np.isfinite(vector).all() and np.any(vector)):
            raise UserError(f"data.image_embeddings: {path}: {name!r} is zero or not finite; embed the picture again")
    return unit_rows(np.stack([stored[name] for name in names]).astype(np.float32))


def _vectors(path: Path, names: set[str]) -> dict[str, np.ndarray]:
    if path.suffix not in (".safetensors", ".npz"):
        raise UserError(f"data.image_embeddings: {path}: give a .safetensors or .npz file")
    if not path.is_file():
        raise UserError(f"data.image_embeddings: {path} is not a file; check the path")
    if path.suffix == ".safetensors":
        weights = open_weights(path)
        return {name: weights[name] for name in names if name in weights}
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names if name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"data.image_embeddings: {path}: cannot be read ({reason}); write the file again") from error

"""Tensors of Hugging Face's T5 and CLIP files under the names of our networks, and back."""

import re
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float

from mg.models.text_encoders.config import Kind

POSITIONS = "text_model.embeddings.position_embedding.embedding_table"
PROJECTION = "text_projection.weight"
_SHARED = "shared.weight"
# The other name that a T5 file may have for its one table of token embeddings.
_ALIAS = "encoder.embed_tokens.weight"

# What a whole model has besides the tower: T5's decoder, CLIP's picture side and a buffer of 0, 1, 2, ...
_FOREIGN = {
    "t5": r"decoder\..*|lm_head\..*|encoder\.embed_tokens\.weight",
    "clip": r"vision_model\..*|visual_projection\..*|logit_scale|logit_bias|.*\.position_ids",
}
_BLOCK = re.compile(r"(?:encoder\.block|text_model\.encoder\.layers)\.(\d+)\..*")
_NORM = re.compile(r"(.*layer_norm\d?)\.(weight|bias)")
_TABLE = re.compile(r"(.*_embedding)\.weight")


def network_names(kind: Kind, names: list[str], layers: int) -> dict[str, str]:
    """Map our names to those of a file, leaving out what the tower does not have.

    Args:
        kind: which encoder.
        names: names in the file.
        layers: blocks from this number on are left out.
    """
    found: dict[str, str] = {}
    foreign = re.compile(_FOREIGN["clip" if kind == "metaclip" else "t5"])
    for name in names:
        block = _BLOCK.fullmatch(name)
        if foreign.fullmatch(name) or (block and int(block[1]) >= layers):
            continue
        found[_ours(name) if kind == "metaclip" else name] = name
    if kind != "metaclip" and _SHARED not in found and _ALIAS in names:
        found[_SHARED] = _ALIAS
    return found


def file_name(kind: Kind, name: str) -> str:
    """Map one of our names to that of a file, the inverse of `network_names`."""
    if kind != "metaclip":
        return name
    name = re.sub(r"(layer_norm\d?)\.gamma", r"\1.weight", name)
    return re.sub(r"(layer_norm\d?)\.beta", r"\1.bias", name).replace(".embedding_table", ".weight")


def _ours(name: str) -> str:
    if norm := _NORM.fullmatch(name):
        return f"{norm[1]}.{'gamma' if norm[2] == 'weight' else 'beta'}"
    table = _TABLE.fullmatch(name)
    return f"{table[1]}.embedding_table" if table else name


def extend_positions(table: Float[np.ndarray, "old d"], positions: int) -> Float[np.ndarray, "new d"]:
    """Lengthen a position table (77 to 256 in Movie Gen, section 3.1.4), the first rows unchanged.

    The tower looks backwards only, so texts within the old length keep their embeddings exactly. New rows repeat the
    last old one: to the blocks, later tokens then stand where the last one stood in training, and the causal mask
    still tells their order. Fine-tuning makes them differ.
    """
    rows = np.minimum(np.arange(positions), len(table) - 1)
    return np.ascontiguousarray(table[rows])


class TowerWeights(Mapping[str, np.ndarray]):
    """The tensors of a tower under our names, read one at a time; the position table cut or lengthened to fit.

    Args:
        kind: which encoder.
        stored: tensors of the file, or of a mapping that reads them when asked.
        layers: number of blocks of the tower.
        positions: rows that the position table shall have; None for a tower without one.
    """

    def __init__(self, kind: Kind, stored: Mapping[str, np.ndarray], layers: int, positions: int | None) -> None:
        self._stored, self._positions = stored, positions
        self._names = network_names(kind, list(stored), layers)
        known = getattr(stored, "shapes", None)
        self.shapes = {
            ours: tuple(stored[name].shape) if known is None else known[name] for ours, name in self._names.items()
        }
        self.stored_positions = self.shapes.get(POSITIONS, (None,))[0]
        if positions is not None and POSITIONS in self.shapes:
            self.shapes[POSITIONS] = (positions, *self.shapes[POSITIONS][1:])

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._stored[self._names[name]]
        return extend_positions(array, self._positions) if name == POSITIONS and self._positions else array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

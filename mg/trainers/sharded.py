"""Checkpoints that many processes write together, each what is its own, under one manifest.

In the folder step-00001000 lie model-00000.safetensors, model-00001.safetensors and so on (and optimizer-, ema-): the
pieces of each process, flat, without the fill of the last ones. manifest.json has, beside size and CRC of every file,
the layout and for every tensor shape, type and [file, block, start, stop] of its pieces (`mg.parallel.pieces.Piece`).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

import numpy as np
from jaxtyping import Shaped

from mg.errors import UserError
from mg.files import write_json
from mg.parallel.dims import ParallelDims
from mg.parallel.pieces import is_first, piece_of, size_of
from mg.tensor_file import NAMES
from mg.trainers.checkpoint import (
    STATE,
    TABLE,
    begin,
    commit,
    crc_of_table,
    entry_of,
    is_complete,
    refusals,
    remove_leftovers,
    step_folder,
    temporary_of,
)
from mg.weights import stream_weights


class Share(Protocol):
    """A tensor of which each process has its own piece."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor."""

    @property
    def axis(self) -> int | None:
        """What tensor parallelism divides."""

    @property
    def dtype(self) -> np.dtype:
        """In the checkpoint."""

    def own(self, dims: ParallelDims, rank: int) -> Shaped[np.ndarray, " k"]:
        """Return the elements of a rank's piece."""


class Crew(Protocol):
    """The processes that write together, as one of them sees it; see `mg.parallel.mesh.Mesh`."""

    dims: ParallelDims
    rank: int
    leads: bool

    def total(self, *values: float) -> list[float]:
        """Add up numbers over all processes; each of them has to call it at the same place."""


Shares = Mapping[str, Mapping[str, Share]]
"""Kind ("model", "optimizer", "ema") -> name -> tensor, the same names in every process."""


def save(
    output: Path,
    step: int,
    shares: Shares,
    state: Mapping,
    crew: Crew,
    *,
    before: Callable[[], None] = lambda: None,
    hook: Callable[[str], None] = lambda point: None,
) -> Path:
    """Write one checkpoint and return its folder; all processes have to call it.

    The process that leads begins and commits it; the others return before it is committed. An existing valid
    checkpoint of this step is left as it is.

    Args:
        output: folder of the run, on a disk that all processes share.
        step: steps done.
        shares: what is saved.
        state: JSON values, those of the process that leads.
        crew: the processes.
        before: called first by the process that leads.
        hook: called with the name of each point passed: those of `mg.trainers.checkpoint.save`, and "rank" when a
            process has written all its files.

    Raises:
        UserError: the disk refuses any of the processes. The one that leads then removes what was begun.
    """
    final = step_folder(output, step)
    temporary = temporary_of(final)
    if any(crew.total(float(crew.leads and is_complete(final, checksums=True)))):
        return final
    with refusals(final) if crew.leads else nullcontext():
        with _together(crew, final):
            if crew.leads:
                before()
                remove_leftovers(output)
                begin(final, _bytes(shares) + len(json.dumps(table_of(shares, crew.dims))))
                hook("folder")
        with _together(crew, final):
            if not temporary.is_dir():
                raise UserError(f"{temporary}: process {crew.rank} does not see it; --output_path must be on a disk "
                                "that all processes share, or leave train.save_shards out")  # fmt: skip
            write_json(_note(temporary, crew.rank), write_rank(temporary, shares, crew.dims, crew.rank, hook))
            hook("rank")
        if crew.leads:
            files = [entry for rank in range(crew.dims.world) for entry in _collected(temporary, rank)]
            write_json(temporary / STATE, {"step": step, **state})
            hook("state")
            commit(final, manifest_of(temporary, files, shares, crew.dims), hook)
    return final


def write_rank(
    folder: Path, shares: Shares, dims: ParallelDims, rank: int, hook: Callable[[str], None] = lambda point: None
) -> list[dict]:
    """Write the files of one rank, tensor by tensor, and return what the manifest says of them."""
    entries = []
    for kind, group in shares.items():
        pieces = {name: piece_of(share.shape, share.axis, dims, rank) for name, share in group.items()
                  if is_first(share.axis, dims, rank)}  # fmt: skip
        kinds = {name: (group[name].dtype, (piece.size,)) for name, piece in pieces.items() if piece.size}
        if kinds:
            path = folder / _file(kind, rank)
            stream_weights(path, kinds, lambda name, group=group: group[name].own(dims, rank))
            entries.append(entry_of(path))
        hook(kind)
    return entries


def manifest_of(folder: Path, files: Sequence[Mapping], shares: Shares, dims: ParallelDims) -> dict:
    """Return the manifest of a folder in which all ranks have written `files`, and state.json is."""
    table = table_of(shares, dims)
    return {
        "layout": vars(dims),
        "files": sorted([*files, entry_of(folder / STATE)], key=lambda entry: entry["name"]),
        TABLE: table,
        f"{TABLE}_crc32": crc_of_table(table),
    }


def table_of(shares: Shares, dims: ParallelDims) -> dict[str, dict[str, dict]]:
    """Return what is in which file: kind -> name -> shape, dtype, axis and number of its blocks, pieces."""
    return {kind: {name: _entry(kind, shares[kind][name], dims) for name in sorted(shares[kind])}
            for kind in sorted(shares)}  # fmt: skip


def _entry(kind: str, share: Share, dims: ParallelDims) -> dict:
    found = [
        (_file(kind, rank), piece_of(share.shape, share.axis, dims, rank))
        for rank in range(dims.world) if is_first(share.axis, dims, rank)
    ]  # fmt: skip
    first = found[0][1]
    return {
        "shape": list(share.shape), "dtype": NAMES[share.dtype], "axis": first.axis, "blocks": first.blocks,
        "pieces": [[file, piece.block, piece.start, piece.stop] for file, piece in found if piece.size],
    }  # fmt: skip


def _file(kind: str, rank: int) -> str:
    return f"{kind}-{rank:05d}.safetensors"


def _note(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.json"


def _bytes(shares: Shares) -> int:
    return sum(size_of(share.shape) * share.dtype.itemsize for group in shares.values() for share in group.values())


def _collected(folder: Path, rank: int) -> list[dict]:
    """Return what a rank says it has written, after a look at the files; its note is deleted."""
    note = _note(folder, rank)
    try:
        entries = json.loads(note.read_text("utf-8"))
        missing = [entry["name"] for entry in entries if (folder / entry["name"]).stat().st_size != entry["bytes"]]
        note.unlink()
    except (OSError, ValueError) as error:
        missing = [f"{note.name} ({error})"]
    if missing:
        raise UserError(f"{folder}: {missing[0]} is not as process {rank} has written it; --output_path must be on a "
                        "disk that all processes share, or leave train.save_shards out")  # fmt: skip
    return entries


@contextmanager
def _together(crew: Crew, final: Path) -> Iterator[None]:
    """Let all processes pass the block or none: where it fails in one, it raises UserError in all."""
    failure = None
    try:
        yield
    except (OSError, UserError) as error:
        failure = error
    failed, rank = crew.total(float(failure is not None), float(failure is not None) * crew.rank)
    if failure is not None:
        raise failure
    if failed:
        who = f"process {rank:.0f}" if failed == 1 else f"{failed:.0f} other processes"
        raise UserError(f"{final}: {who} could not write a part of the checkpoint; see the logs in ranks/")

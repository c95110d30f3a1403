"""Checkpoints of many processes made whole, and whole ones divided for a layout, tensor by tensor."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from mg.errors import UserError
from mg.files import write_bytes
from mg.parallel.dims import ParallelDims
from mg.parallel.pieces import piece_of, size_of, tensor_axis
from mg.trainers import checkpoint, sharded
from mg.trainers.checkpoint import STATE, Checkpoint
from mg.trainers.sources import open_local
from mg.trainers.stored import StoredTensors
from mg.weights import stream_weights


def merge_checkpoint(source: str | Path, output: str | Path, dims: ParallelDims | None = None) -> dict[str, object]:
    """Write a checkpoint again, its tensors whole or as the processes of a layout would have written them.

    Bit for bit what a run writes in that layout, or in one process, of the same values. One tensor at a time is in
    memory.

    Args:
        source: folder of a run (its newest checkpoint) or of one of its steps.
        output: folder of a run, in which the checkpoint is written under its step.
        dims: the layout; None: whole tensors.

    Returns:
        "folder" of the new checkpoint, "step", number of its "files" and "tensors".

    Raises:
        UserError: no valid checkpoint, one of this step in `output`, a tensor that cannot be divided, or a disk that
            refuses.
    """
    saved = open_local(str(source), "source")
    final = checkpoint.step_folder(Path(output), saved.step)
    if final.exists():
        raise UserError(f"{final}: there is a checkpoint of this step already; choose another output folder")
    kinds = {kind: saved.tensors(kind) for kind in saved.kinds}
    for tensors in kinds.values() if dims is not None else ():
        _check_divisible(tensors, dims)
    with checkpoint.refusals(final):
        temporary = checkpoint.begin(final, sum(map(_bytes, kinds.values())))
        if dims is None:
            for kind, tensors in kinds.items():
                types = {name: (tensors.dtype(name), shape) for name, shape in tensors.shapes.items()}
                stream_weights(temporary / f"{kind}.safetensors", types, tensors.__getitem__)
            _copy_state(saved, temporary)
            checkpoint.commit(final, checkpoint.manifest_of(temporary))
        else:
            shares = {
                kind: {name: _Stored(tensors, name) for name in tensors} for kind, tensors in kinds.items()
            }
            files = [entry for rank in range(dims.world) for entry in sharded.write_rank(temporary, shares, dims, rank)]
            _copy_state(saved, temporary)
            checkpoint.commit(final, sharded.manifest_of(temporary, files, shares, dims))
    count = sum(map(len, kinds.values()))
    return {"folder": final, "step": saved.step, "files": len(list(final.glob("*.safetensors"))), "tensors": count}


@dataclass(frozen=True)
class _Stored:
    """A tensor of a checkpoint, of which every rank of a layout has its own piece."""

    tensors: StoredTensors
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensors.shapes[self.name]

    @property
    def axis(self) -> int | None:
        return tensor_axis(self.name)

    @property
    def dtype(self) -> np.dtype:
        return self.tensors.dtype(self.name)

    def own(self, dims: ParallelDims, rank: int) -> Shaped[np.ndarray, " k"]:
        return self.tensors.piece(self.name, piece_of(self.shape, self.axis, dims, rank))


def _check_divisible(tensors: StoredTensors, dims: ParallelDims) -> None:
    for name, shape in tensors.shapes.items():
        axis = tensor_axis(name)
        if axis is not None and shape[axis] % dims.tensor:
            raise UserError(f"tensor={dims.tensor} cannot divide {name}, {shape[axis]} along axis {axis}; choose a "
                            "divisor")  # fmt: skip


def _bytes(tensors: StoredTensors) -> int:
    return sum(size_of(shape) * tensors.dtype(name).itemsize for name, shape in tensors.shapes.items())


def _copy_state(saved: Checkpoint, temporary: Path) -> None:
    # Byte for byte: what a later version may have put there stays.
    write_bytes(temporary / STATE, (saved.folder / STATE).read_bytes())

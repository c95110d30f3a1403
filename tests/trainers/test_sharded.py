"""Checkpoints that several processes write: what is in them, who reads what, and that they are whole or not there."""

import json
import re
import shutil
import time

import numpy as np
import pytest
from sharded_toy import Share, arrays, save, shares
from trainer_toy import toy_trainer

import mg.device
from mg.config.parallel import ParallelConfig
from mg.config.trainer import OptimizerConfig
from mg.errors import UserError
from mg.parallel.dims import ParallelDims
from mg.parallel.mesh import Mesh
from mg.parallel.pieces import block_of, dims_of, piece_of
from mg.pipelines.merge_checkpoint import merge_checkpoint
from mg.trainers import checkpoint
from mg.trainers.remote import RemoteFolder
from mg.trainers.stored import StoredTensors
from mg.weights import LazyWeights

LAYOUTS = ["zero=4", "data=2,zero=3", "tensor=2", "zero=2,tensor=3", "data=2", "zero=3,zero_stage=1"]


class Crash(BaseException):
    """The process ends here: nobody catches this."""


def equal(found: checkpoint.Checkpoint, step):
    assert found.step == step and found.state["updates"] == step
    for kind, group in arrays(step).items():
        tensors = found.tensors(kind)
        assert set(tensors) == set(group)
        for name, array in group.items():
            assert tensors[name].dtype == array.dtype
            np.testing.assert_array_equal(tensors[name], array, err_msg=f"{kind} {name}")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_written_is_read_whole(tmp_path, layout):
    folders = save(tmp_path, 3, dims_of(layout))
    assert folders == [tmp_path / "step-00000003"] * dims_of(layout).world
    equal(checkpoint.newest(tmp_path), 3)
    assert (tmp_path / "LATEST").read_text() == "step-00000003\n"
    assert not list(tmp_path.glob("*.tmp")) and not list(folders[0].glob("rank-*"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_written_twice(tmp_path, layout):
    folder = save(tmp_path, 3, dims_of(layout))[0]
    written = [tensor.nbytes for path in folder.glob("*.safetensors") for tensor in LazyWeights(path).values()]
    assert sum(written) == checkpoint.bytes_of(arrays(3))


def test_the_manifest_in_full(tmp_path):
    given = {"model": {"b": Share(np.float32([1, 2, 3])), "a": Share(np.ones((2, 4), np.int32), 1)}}
    folder = save(tmp_path, 1, ParallelDims(data=2, zero=2, tensor=2, zero_stage=2), given=given)[0]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["layout"] == {"data": 2, "zero": 2, "context": 1, "sequence": 1, "tensor": 2, "zero_stage": 2}
    first, second, third, fourth = (f"model-{rank:05d}.safetensors" for rank in range(4))
    assert manifest["tensors"] == {"model": {
        "a": {"shape": [2, 4], "dtype": "I32", "axis": 1, "blocks": 2,
              "pieces": [[first, 0, 0, 2], [second, 1, 0, 2], [third, 0, 2, 4], [fourth, 1, 2, 4]]},
        "b": {"shape": [3], "dtype": "F32", "axis": None, "blocks": 1, "pieces": [[first, 0, 0, 2], [third, 0, 2, 3]]},
    }}  # fmt: skip
    assert {entry["name"]: entry["bytes"] for entry in manifest["files"]} == {
        path.name: path.stat().st_size for path in folder.iterdir() if path.name != "manifest.json"
    }
    assert {path.name for path in folder.iterdir()} == {first, second, third, fourth, "state.json", "manifest.json"}


@pytest.mark.parametrize("layout", ["data=1", *LAYOUTS])
def test_every_rank_of_another_layout_reads_its_piece(tmp_path, layout):
    dims = dims_of(layout)
    save(tmp_path / "zero", 3, dims_of("zero=4"))
    save(tmp_path / "tensor", 3, dims_of("zero=2,tensor=2"))
    checkpoint.save(tmp_path / "whole", 3, arrays(3), {"updates": 3})
    for place in ("zero", "tensor", "whole"):
        found = checkpoint.newest(tmp_path / place)
        for kind, group in shares(3).items():
            tensors = found.tensors(kind)
            assert tensors.shapes == {name: share.shape for name, share in group.items()}
            for name, share in group.items():
                for rank in range(dims.world):
                    for cut in (piece_of, block_of):
                        piece = cut(share.shape, share.axis, dims, rank)
                        np.testing.assert_array_equal(tensors.piece(name, piece), piece.of(share.array))


@pytest.mark.parametrize("written", ["whole", "zero=4", "zero=3"])
def test_a_rank_reads_no_more_than_it_needs(tmp_path, written, monkeypatch):
    if written == "whole":
        checkpoint.save(tmp_path, 3, arrays(3), {})
    else:
        save(tmp_path, 3, dims_of(written))
    dims, read = dims_of("zero=2"), []
    flat = LazyWeights.flat

    def counted(self, name, start, stop):
        read.append(stop - start)
        return flat(self, name, start, stop)

    monkeypatch.setattr(LazyWeights, "flat", counted)
    found = checkpoint.newest(tmp_path).tensors("model")
    wanted = [piece_of(shape, None, dims, 1) for shape in found.shapes.values()]
    for name, piece in zip(found, wanted, strict=True):
        found.piece(name, piece)
    assert sum(read) == sum(piece.size for piece in wanted)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


HARMS = {
    "cut": (truncate, r"has \d+ bytes instead of \d+"), "flip": (flip_a_bit, "has not the CRC of manifest.json"),
    "gone": (lambda path: path.unlink(), "No such file or directory"),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_shard_is_named_and_the_checkpoint_before_taken(tmp_path, harm, monkeypatch):
    told = []
    monkeypatch.setattr(checkpoint.get_logger(), "warning", told.append)
    save(tmp_path, 1, dims_of("zero=4"))
    broken = save(tmp_path, 2, dims_of("zero=4"))[0] / "optimizer-00002.safetensors"
    act, words = HARMS[harm]
    act(broken)
    equal(checkpoint.newest(tmp_path), 1)
    assert len(told) == 1
    assert re.search(f"step-00000002: incomplete or damaged .*optimizer-00002.safetensors:? {words}", told[0])


def test_a_damaged_table_is_noticed(tmp_path):
    save(tmp_path, 1, dims_of("zero=4"))
    path = save(tmp_path, 2, dims_of("zero=4"))[0] / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["tensors"]["model"]["table"]["pieces"][1][2] += 1
    path.write_text(json.dumps(manifest))
    assert checkpoint.fault(path.parent, checksums=True) == "manifest.json is damaged"
    equal(checkpoint.newest(tmp_path), 1)


def test_a_table_that_does_not_fit_its_files_is_an_error(tmp_path):
    folder = save(tmp_path, 1, dims_of("zero=4"))[0]
    table = json.loads((folder / "manifest.json").read_text())["tensors"]["model"]
    pieces = table["table"]["pieces"]
    assert [piece[2:] for piece in pieces] == [[0, 6], [6, 12], [12, 18], [18, 21]]

    def opened(changed):
        return StoredTensors.of_shards(folder, {**table, "table": {**table["table"], "pieces": changed}})

    assert opened(pieces[::-1])["table"].shape == (3, 7)  # their order does not matter
    with pytest.raises(UserError, match="18 of 21 elements of table are in the shards"):
        opened(pieces[:3])
    with pytest.raises(UserError, match="table is not in the shards as the manifest says"):
        opened(pieces[1:])
    with pytest.raises(UserError, match="table is not in the shards as the manifest says"):
        opened([*pieces[:3], [pieces[3][0], 0, 18, 20], [pieces[0][0], 0, 20, 21]])
    with pytest.raises(UserError, match="leads to '../x.safetensors'; shards must be files beside it"):
        opened([["../x.safetensors", 0, 0, 21]])


POINTS = [(rank, point) for rank in (0, 2) for point in ("model", "optimizer", "rank")]
POINTS += [(0, "folder"), (0, "state"), (0, "manifest")]


@pytest.mark.parametrize(("rank", "point"), POINTS)
def test_a_crash_of_one_before_the_rename_leaves_the_previous_checkpoint(tmp_path, rank, point):
    def hook(at, reached):
        if (at, reached) == (rank, point):
            raise Crash

    save(tmp_path, 1, dims_of("zero=3"))
    found = save(tmp_path, 2, dims_of("zero=3"), hook)
    assert isinstance(found[rank], Crash)
    equal(checkpoint.newest(tmp_path), 1)
    assert (tmp_path / "step-00000002.tmp").is_dir()
    save(tmp_path, 2, dims_of("zero=3"))
    equal(checkpoint.newest(tmp_path), 2)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000001", "step-00000002"]


def test_it_does_not_exist_before_the_slowest_has_written(tmp_path):
    seen = []

    def hook(rank, point):
        if (rank, point) == (1, "model"):
            time.sleep(0.2)
            seen.append(sorted(path.name for path in tmp_path.iterdir()))

    save(tmp_path, 2, dims_of("zero=2"), hook)
    assert seen == [["step-00000002.tmp"]]
    equal(checkpoint.newest(tmp_path), 2)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_refuses_one_is_an_error_of_all_and_leaves_nothing(tmp_path, rank):
    def hook(at, point):
        if (at, point) == (rank, "model"):
            raise OSError(28, "No space left on device")

    save(tmp_path, 1, dims_of("zero=3"))
    found = save(tmp_path, 2, dims_of("zero=3"), hook)
    assert [isinstance(error, (UserError, OSError)) for error in found] == [True] * 3
    assert "No space left on device" in str(found[rank])
    others = {str(error) for at, error in enumerate(found) if at != rank}
    assert others == {
        f"{tmp_path}/step-00000002: process {rank} could not write a part of the checkpoint; see the logs in ranks/"
    }
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000001"]


def test_too_little_space_is_told_before_anything_is_written(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    found = save(tmp_path, 1, dims_of("zero=2"))
    assert "a checkpoint needs 1.1 MB, the disk has 1.0 MB left" in str(found[0])
    assert isinstance(found[1], UserError) and not list(tmp_path.iterdir())


def test_a_process_with_a_disk_of_its_own_is_named(tmp_path):
    found = save(tmp_path / "a", 1, dims_of("zero=3"), folders={2: tmp_path / "b"})
    assert str(found[2]) == (
        f"{tmp_path}/b/step-00000001.tmp: process 2 does not see it; --output_path must be on a disk that all "
        "processes share, or leave train.save_shards out"
    )
    assert "process 2 could not write" in str(found[0]) and not list((tmp_path / "a").iterdir())


def test_a_shard_that_does_not_arrive_is_an_error(tmp_path):
    def hook(rank, point):
        if (rank, point) == (1, "rank"):
            (tmp_path / "step-00000001.tmp" / "model-00001.safetensors").unlink()

    found = save(tmp_path, 1, dims_of("zero=2"), hook)
    assert "No such file or directory" in str(found[0]) and "as process 1 has written it" in str(found[0])
    assert not list(tmp_path.iterdir())


def test_a_valid_checkpoint_of_the_step_is_left_and_a_damaged_one_replaced(tmp_path):
    folder = save(tmp_path, 1, dims_of("zero=2"))[0]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert save(tmp_path, 1, dims_of("zero=3")) == [folder] * 3
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    flip_a_bit(folder / "model-00001.safetensors")
    assert save(tmp_path, 1, dims_of("zero=3")) == [folder] * 3
    equal(checkpoint.newest(tmp_path), 1)
    assert len(list(folder.glob("model-*"))) == 3


def test_one_process_goes_on_from_what_many_wrote_and_begins_with_its_weights(tmp_path):
    mg.device.setup("CPU", "pynative")
    toy_trainer(tmp_path / "straight", 4, keep_last=0).fit()
    wanted = checkpoint.load(tmp_path / "straight" / "step-00000004")
    merge_checkpoint(tmp_path / "straight" / "step-00000002", tmp_path / "run", dims_of("zero=3"))
    toy_trainer(tmp_path / "run", 4, keep_last=0).fit()
    found = checkpoint.load(tmp_path / "run" / "step-00000004")
    for kind in ("model", "optimizer", "ema"):
        assert list(found.tensors(kind)) == list(wanted.tensors(kind))
        for name, array in wanted.tensors(kind).items():
            np.testing.assert_array_equal(found.tensors(kind)[name], array)
    assert found.state["updates"] == wanted.state["updates"] == 4
    other = toy_trainer(tmp_path / "other", 1, init_from=str(tmp_path / "run" / "step-00000002"))
    other._begin()
    before = checkpoint.load(tmp_path / "straight" / "step-00000002")
    for name, param in other._main.weights.items():
        kind = "ema" if name in other._main.trained else "model"  # averages where there are any
        np.testing.assert_array_equal(param.asnumpy(), before.tensors(kind)[name])
    (tmp_path / "run" / "step-00000002" / "ema-00001.safetensors").unlink()
    with pytest.raises(UserError, match=r"damaged .ema-00001.safetensors: No such file or directory.; give another"):
        toy_trainer(tmp_path / "other", 1, init_from=str(tmp_path / "run" / "step-00000002"))._begin()


def alone():
    return Mesh(ParallelConfig(), 0, 1)


def test_the_loop_saves_shards_and_goes_on_after_a_disk_that_refused_them(tmp_path):
    mg.device.setup("CPU", "pynative")
    full = []

    def hook(point):
        if point == "rank" and not full:
            full.append(point)
            raise OSError(28, "No space left on device")

    options = {"save_shards": True, "keep_last": 1, "mesh": alone()}
    toy_trainer(tmp_path, 6, hook=hook, **options).fit()
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(row["event"], row["step"]) for row in events if "save" in row["event"]] == [
        ("save_failed", 2), ("save", 4), ("save", 6),
    ]  # fmt: skip
    folder = tmp_path / "step-00000006"
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == [folder.name]
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json", "state.json", *(f"{kind}-00000.safetensors" for kind in ("model", "optimizer", "ema")),
    }  # fmt: skip
    assert json.loads((folder / "state.json").read_text())["step"] == 6


def test_a_full_disk_at_the_end_ends_the_run(tmp_path):
    mg.device.setup("CPU", "pynative")

    def hook(point):
        if point == "manifest":
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="step 1, at the end: .*cannot write the checkpoint .No space left on device"):
        toy_trainer(tmp_path, 1, hook=hook, save_shards=True, mesh=alone()).fit()
    assert not list(tmp_path.glob("step-*"))


def test_the_optimizers_other_shapes_are_saved_by_a_mesh_as_well(tmp_path):
    """SOAP keeps square matrices beside every weight."""
    found = [toy_trainer(tmp_path, 1, optimizer=OptimizerConfig(name="soap"), mesh=mesh)._main
             for mesh in (None, alone())]  # fmt: skip
    single, several = (one.tensors()["optimizer"] for one in found)
    shapes = [{name: array.shape for name, array in arrays.items()} for arrays in (single, several)]
    assert shapes[0] == shapes[1]
    assert several["out_basis/first.weight"].shape == (8, 8) and several["in_basis/first.weight"].shape == (4, 4)
    assert found[0].checkpoint_bytes == found[1].checkpoint_bytes


def test_old_ones_and_copies_are_whole_folders(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path / "here", step, dims_of("zero=2"))
    checkpoint.prune(tmp_path / "here", lambda steps: steps[-2:])
    assert sorted(checkpoint.committed(tmp_path / "here")) == [2, 3]
    remote = RemoteFolder(f"file://{tmp_path}/there", "train.remote")
    assert remote.push(tmp_path / "here" / "step-00000003") is True
    found = remote.fetch_newest(tmp_path / "back")
    equal(found, 3)
    names = {path.name for path in found.folder.iterdir()}
    assert names == {path.name for path in (tmp_path / "here" / "step-00000003").iterdir()} and len(names) == 8

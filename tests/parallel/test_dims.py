import itertools

import numpy as np
import pytest

from mg.config.parallel import AXES, ParallelConfig
from mg.errors import UserError
from mg.parallel.dims import GROUPS, UNIONS, ParallelDims
from mg.parallel.mesh import Mesh

MESHES = [
    ParallelDims(),
    ParallelDims(data=4),
    ParallelDims(data=2, tensor=2),
    ParallelDims(zero=2, sequence=2, zero_stage=3),
    ParallelDims(data=2, zero=3, context=2, sequence=2, tensor=4, zero_stage=1),
]


@pytest.mark.parametrize("dims", MESHES)
def test_coordinates_are_those_of_a_row_major_mesh_and_lead_back_to_the_rank(dims):
    shape = [getattr(dims, axis) for axis in AXES]
    for rank in range(dims.world):
        at = dims.coordinates(rank)
        assert list(at.values()) == list(np.unravel_index(rank, shape))
        assert dims.rank(at) == rank


@pytest.mark.parametrize("dims", MESHES)
@pytest.mark.parametrize("name", GROUPS)
def test_groups_cover_every_rank_once_and_differ_in_their_axes_alone(dims, name):
    groups = dims.groups(name)
    assert sorted(itertools.chain(*groups)) == list(range(dims.world))
    assert {len(group) for group in groups} == {dims.size(name)}
    shape = [getattr(dims, axis) for axis in AXES]
    mesh = np.arange(dims.world).reshape(shape)
    inside = UNIONS.get(name, (name,))
    order = [i for i, axis in enumerate(AXES) if axis not in inside] + [AXES.index(axis) for axis in inside]
    expected = sorted(map(tuple, mesh.transpose(order).reshape(-1, dims.size(name)).tolist()))
    assert list(groups) == expected
    for group in groups:
        assert [dims.index(name, rank) for rank in group] == list(range(len(group)))


def test_what_is_left_goes_to_the_degree_of_minus_one():
    assert ParallelDims.of(ParallelConfig(), 8) == ParallelDims(data=8)
    assert ParallelDims.of(ParallelConfig(tensor=2, context=2), 8) == ParallelDims(data=2, context=2, tensor=2)
    config = ParallelConfig(data=2, zero=-1, sequence=2, zero_stage=2)
    assert ParallelDims.of(config, 24) == ParallelDims(data=2, zero=6, sequence=2, zero_stage=2)
    assert ParallelDims.of(ParallelConfig(zero_stage=3), 1) == ParallelDims(zero_stage=3)


@pytest.mark.parametrize(
    ("degrees", "world", "message"),
    [
        ({"data": 2, "tensor": 2}, 8, r"data=2 x tensor=2 is 4 devices, the run has 8; .*start 4 processes"),
        ({"tensor": 3}, 8, r"8 devices cannot be divided by tensor=3 \(3\).*multiple of 3 processes"),
        ({"tensor": 4}, 2, r"2 devices cannot be divided by tensor=4"),
        ({"zero_stage": 1}, 4, r"zero_stage=1 has nothing to divide among.*use zero in place of data"),
    ],
)
def test_degrees_that_do_not_fit_the_devices_are_refused_with_a_remedy(degrees, world, message):
    with pytest.raises(UserError, match=message):
        ParallelDims.of(ParallelConfig(**degrees), world)


@pytest.mark.parametrize(
    ("degrees", "message"),
    [
        ({"tensor": 0}, r"parallel.tensor=0 must be 1 or above"),
        ({"zero": True}, r"parallel.zero=True must be"),
        ({"zero": -1}, r"data and zero are -1; only one"),
        ({"zero_stage": 4}, r"zero_stage=4 must be 0, 1, 2 or 3"),
    ],
)
def test_degrees_out_of_range_are_refused(degrees, message):
    with pytest.raises(UserError, match=message):
        ParallelConfig(**degrees)


def test_rows_are_those_of_the_global_batch_and_alike_inside_a_model_parallel_group():
    dims = ParallelDims(data=2, zero=2, context=2, tensor=2, zero_stage=1)
    rows = np.arange(12)
    taken = {rank: tuple(rows[dims.batch_rows(rank, 12)]) for rank in range(dims.world)}
    for group in dims.groups("tokens"):
        assert len({taken[rank] for rank in group}) == 1
    for group in dims.groups("batch"):
        assert [taken[rank] for rank in group] == [tuple(rows[r::4]) for r in range(4)]
    with pytest.raises(UserError, match="10 rows cannot be divided among data x zero = 4"):
        dims.batch_rows(0, 10)


def test_a_batchs_texts_are_not_divided_and_entries_of_other_lengths_are_errors():
    mesh = Mesh(ParallelConfig(), 1, 2)
    batch = {"latent": np.arange(8).reshape(4, 2), "names": ["a", "b", "c", "d"], "bucket": "1x32x32"}
    found = mesh.rows(batch)
    assert found.pop("latent").tolist() == [[2, 3], [6, 7]]
    assert found == {"names": ["b", "d"], "bucket": "1x32x32"}
    with pytest.raises(ValueError, match="one row per sample to be divided: .*'kept': 3"):
        mesh.rows({**batch, "kept": np.arange(3)})


def test_unknown_groups_and_places_are_errors():
    dims = ParallelDims(data=2)
    with pytest.raises(ValueError, match="group rows: choose from data, zero"):
        dims.size("rows")
    with pytest.raises(ValueError, match="rank 2 of 2"):
        dims.coordinates(2)
    with pytest.raises(ValueError, match="data=2 of 2"):
        dims.rank({"data": 2})

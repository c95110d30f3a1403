"""Which elements of a tensor are whose, without any process and without MindSpore."""

import numpy as np
import pytest

from mg.errors import UserError
from mg.parallel.dims import ParallelDims
from mg.parallel.pieces import Piece, block_of, dims_of, is_first, piece_of

LAYOUTS = [
    "data=1", "data=3", "zero=4", "data=2,zero=3", "tensor=2", "data=2,tensor=2,zero_stage=0", "zero=2,tensor=3",
    "context=2,sequence=2", "zero=2,context=2,zero_stage=0", "data=2,zero=2,tensor=2,zero_stage=1",
]  # fmt: skip
TENSORS = [
    ((12, 7), None), ((6, 12), 0), ((5, 12), 1), ((6,), 0), ((5,), None), ((1,), None), ((), None), ((3, 6, 2), 1),
]  # fmt: skip


def numbered(shape) -> np.ndarray:
    return np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "axis"), TENSORS)
def test_those_who_write_have_every_element_once(layout, shape, axis):
    dims, array = dims_of(layout), numbered(shape)
    found = [piece_of(shape, axis, dims, rank).of(array) for rank in range(dims.world)
             if is_first(axis, dims, rank)]  # fmt: skip
    assert sorted(np.concatenate(found).tolist()) == array.reshape(-1).tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_piece_is_the_block_cut_flat_in_equal_parts(layout):
    """By the definition: split along the axis, flattened, filled up with zeros (here: -1), cut."""
    dims = dims_of(layout)
    for shape, axis in TENSORS:
        array = numbered(shape)
        for rank in range(dims.world):
            own = dims.coordinates(rank)
            block = array if axis is None else np.split(array, dims.tensor, axis)[own["tensor"]]
            np.testing.assert_array_equal(block_of(shape, axis, dims, rank).of(array), block.reshape(-1))
            parts = dims.zero * dims.context * dims.sequence if dims.zero_stage else 1
            place = (own["zero"] * dims.context + own["context"]) * dims.sequence + own["sequence"]
            filled = np.full(-(-block.size // parts) * parts, -1, np.float32)
            filled[: block.size] = block.reshape(-1)
            part = np.split(filled, parts)[place if parts > 1 else 0]
            np.testing.assert_array_equal(piece_of(shape, axis, dims, rank).of(array), part[part >= 0])


def test_pieces_in_numbers():
    zero = dims_of("zero=4")
    assert [piece_of((3, 3), None, zero, rank) for rank in range(4)] == [
        Piece(0, 3), Piece(3, 6), Piece(6, 9), Piece(9, 9),
    ]  # fmt: skip
    tensor = dims_of("zero=2,tensor=2")
    assert [piece_of((4, 6), 0, tensor, rank) for rank in range(4)] == [
        Piece(0, 6), Piece(12, 18), Piece(6, 12), Piece(18, 24),
    ]  # fmt: skip
    assert [piece_of((4, 6), 1, tensor, rank) for rank in (1, 2)] == [Piece(0, 6, 1, 2, 1), Piece(6, 12, 1, 2, 0)]
    assert [is_first(None, tensor, rank) for rank in range(4)] == [True, False, True, False]
    assert [is_first(1, dims_of("data=2,tensor=2"), rank) for rank in range(4)] == [True, True, False, False]


def test_an_axis_that_cannot_be_divided_is_refused():
    with pytest.raises(ValueError, match=r"tensor=2 cannot divide \(4, 5\) along axis 1"):
        piece_of((4, 5), 1, dims_of("tensor=2"), 0)


def test_layouts_are_read():
    assert dims_of("data=2, zero=4") == ParallelDims(data=2, zero=4, zero_stage=3)
    assert dims_of("zero=4,zero_stage=0") == ParallelDims(zero=4)
    assert dims_of("tensor=8") == ParallelDims(tensor=8)
    assert dims_of("tensor=1") == ParallelDims()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "layout '': '' is not understood; give data, zero, context, sequence, tensor or zero_stage once each"),
        ("zero", "layout 'zero': 'zero' is not understood"),
        ("zero=4,zero=2", "'zero=2' is not understood"),
        ("rows=2", "'rows=2' is not understood"),
        ("zero=-1", "'zero=-1' is not understood"),
        ("zero=0", "degrees must be 1 or above, zero_stage 0, 1, 2 or 3"),
        ("zero=2,zero_stage=4", "degrees must be 1 or above, zero_stage 0, 1, 2 or 3"),
    ],
)
def test_layouts_that_are_none_are_refused(text, words):
    with pytest.raises(UserError) as caught:
        dims_of(text)
    assert words in str(caught.value)

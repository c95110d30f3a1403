"""Three encoders' tokens become one sequence in which padding is inert."""

import re

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor, nn

from mg.models.text_encoders import TextFeatures, TextProjector, as_inputs, join_masks, ones_features
from mg.ops import attention

WIDTHS = {"ul2": 12, "metaclip": 10, "byt5": 8}
LENGTHS = {"ul2": 6, "metaclip": 5, "byt5": 4}
REAL = {"ul2": (6, 2), "metaclip": (3, 5), "byt5": (0, 3)}  # tokens of the two prompts
OUT = 16


def features(kinds=WIDTHS, seed=0):
    rng = np.random.default_rng(seed)
    made = {}
    for kind in kinds:
        mask = np.arange(LENGTHS[kind])[None] < np.array(REAL[kind])[:, None]
        noise = rng.standard_normal((2, LENGTHS[kind], WIDTHS[kind])).astype(np.float32)
        made[kind] = TextFeatures(noise, mask, np.zeros(mask.shape, np.int32))
    return made


def projector(kinds=WIDTHS):
    cell = TextProjector(OUT, {kind: WIDTHS[kind] for kind in kinds})
    rng = np.random.default_rng(1)
    for name, param in cell.parameters_and_names():
        if name.endswith("layernorm.weight"):
            param.set_data(Tensor(rng.uniform(0.5, 2, param.shape).astype(np.float32)))
    return cell


def by_hand(cell, given):
    params = {name: param.asnumpy().astype(np.float64) for name, param in cell.parameters_and_names()}
    parts = []
    for kind in ("ul2", "metaclip", "byt5"):
        if kind in given:
            y = given[kind].embeddings @ params[f"{kind}_linear.weight"].T
            parts.append(y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5) * params[f"{kind}_layernorm.weight"])
    return np.concatenate(parts, 1)


@pytest.mark.parametrize("kinds", [("ul2", "metaclip", "byt5"), ("byt5", "ul2"), ("metaclip",)])
def test_values_are_the_formulas_for_any_subset_in_the_papers_order(kinds):
    cell, given = projector(kinds), features(kinds)
    out = cell(**as_inputs(given, cell.kinds)).asnumpy()
    np.testing.assert_allclose(out, by_hand(cell, given), atol=1e-4)
    assert out.shape[1] == join_masks(given).shape[1] == sum(LENGTHS[kind] for kind in kinds)


def test_parameters_are_those_of_the_reference():
    cell = TextProjector(64)
    assert {name: tuple(param.shape) for name, param in cell.parameters_and_names()} == {
        "ul2_linear.weight": (64, 4096), "ul2_layernorm.weight": (64,),
        "metaclip_linear.weight": (64, 1280), "metaclip_layernorm.weight": (64,),
        "byt5_linear.weight": (64, 1472), "byt5_layernorm.weight": (64,),
    }  # fmt: skip
    weight = cell.ul2_linear.weight.asnumpy()
    assert abs(weight.std() - 0.02) < 1e-3 and abs(weight.mean()) < 1e-3
    np.testing.assert_array_equal(weight, TextProjector(64).ul2_linear.weight.asnumpy())
    assert np.abs(weight - TextProjector(64, seed=1).ul2_linear.weight.asnumpy()).max() > 0


@pytest.mark.parametrize("changed", WIDTHS)
def test_an_encoder_changes_its_own_segment_only(changed):
    cell, given = projector(), features()
    before = cell(**as_inputs(given)).asnumpy()
    given[changed] = features(seed=5)[changed]
    differs = np.abs(cell(**as_inputs(given)).asnumpy() - before).max((0, 2)) > 0
    segment = np.repeat([kind == changed for kind in WIDTHS], [LENGTHS[kind] for kind in WIDTHS])
    np.testing.assert_array_equal(differs, segment)


class CrossAttention(nn.Cell):
    """Video tokens that look at the text, as the transformer does."""

    def __init__(self, cell):
        super().__init__()
        self.project = cell
        self.query = Parameter(Tensor(np.random.default_rng(3).standard_normal((2, 2, 7, 8)).astype(np.float32)))

    def construct(self, ul2, metaclip, byt5, mask):
        text = self.project(ul2, metaclip, byt5)  # (b, n, d)
        keys = ms.mint.permute(text.reshape(2, -1, 2, 8), (0, 2, 1, 3))
        return attention(self.query, keys, keys, mask)


def test_padding_is_inert_with_the_joint_mask_and_not_without():
    network, given = CrossAttention(projector()), features()
    spoiled = {
        kind: TextFeatures(np.where(f.mask[..., None], f.embeddings, 9.0).astype(np.float32), f.mask, f.tokens)
        for kind, f in given.items()
    }

    def run(values, masked):
        return network(*as_inputs(values).values(), Tensor(join_masks(values, masked))).asnumpy()

    np.testing.assert_array_equal(run(given, True), run(spoiled, True))
    assert np.abs(run(given, False) - run(spoiled, False)).max() > 1e-3
    assert np.abs(run(given, True) - run(given, False)).max() > 1e-3


def test_ones_stand_for_metaclip_as_in_the_reference():
    made = ones_features(2, 256, 1280)
    assert made.embeddings.shape == (2, 256, 1280) and np.all(made.embeddings == 1) and made.mask.all()


def test_wrong_sets_of_encoders_are_named():
    for widths in ({}, {"t5": 3}):
        with pytest.raises(ValueError, match="choose from ul2, metaclip, byt5"):
            TextProjector(8, widths)
    with pytest.raises(ValueError, match=r"takes exactly \['ul2', 'metaclip', 'byt5'\]"):
        as_inputs(features(("ul2",)))


@pytest.mark.slow
def test_the_readmes_lines_join_the_three_tiny_encoders(root):
    readme = (root / "README.md").read_text("utf-8")
    lines = re.search(r"```python\n(from mg\.models\.text_encoders.+?)```", readme, re.S)
    names = {}
    exec(lines[1], names)
    text, mask = names["text"].asnumpy(), names["mask"]
    assert text.shape == (1, 512 + 256 + 128, 1536) and mask.shape == text.shape[:2]
    assert mask[0, 512 + 256 :].sum() == len("HELLO") + 1  # the letters and the closing token
    np.testing.assert_allclose((text**2).mean(-1)[mask], 1.0, atol=1e-2)  # what the norm is for

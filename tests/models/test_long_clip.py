"""Fine-tuning CLIP for long captions: both objectives against PyTorch, what gets a gradient and what is trained."""

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import Parameter, ParameterTuple, Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

import mg.device
from mg.models.text_encoders.adapter import POSITIONS
from mg.models.text_encoders.config import TowerConfig
from mg.models.text_encoders.long_clip import LongClipLoss, PositionRows, choose_trained, join_positions
from mg.models.text_encoders.network import TextTower

ROWS, KEPT, EOS, PAD = 12, 5, 29, 28
VALUES = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 30,
    "max_position_embeddings": ROWS, "projection_dim": 8, "bos_token_id": 27, "eos_token_id": EOS,
}  # fmt: skip


class Lookup(nn.Cell):
    """Stands in for a tower: the embedding of a text is a row of a table, by its first token."""

    def __init__(self, table):
        super().__init__()
        self.table = Parameter(Tensor(table))

    def construct(self, tokens, mask):
        rows = ms.ops.gather(self.table, tokens[:, 0], 0)
        return rows, rows


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def directions(*shape, seed=0):
    x = noise(*shape, seed=seed)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def small_tower(seed=0):
    """A CLIP of two layers with random weights, its position rows all different."""
    tower = TextTower(TowerConfig("metaclip", 16, 2, ROWS, VALUES), projection=True)
    for i, (name, param) in enumerate(tower.parameters_and_names()):
        values = noise(*param.shape, seed=100 * seed + i)
        param.set_data(Tensor(values * 0.3 + name.endswith("gamma"), ms.float32))
    return tower


def texts():
    """Two texts of 8 and 4 tokens, the first longer than the old table."""
    tokens = np.full((2, ROWS), PAD, np.int32)
    tokens[0, :8], tokens[1, :4] = [27, 1, 2, 3, 4, 5, 6, EOS], [27, 7, 8, EOS]
    return Tensor(tokens), Tensor((tokens != PAD).astype(np.int32)), Tensor(directions(2, 8, seed=3))


def gradients(loss, tower, *inputs):
    """Return the loss and the gradients by name, of all weights."""
    named = dict(tower.parameters_and_names())
    step = ms.value_and_grad(lambda *x: loss(*x)[0], None, ParameterTuple(list(named.values())))
    value, grads = step(*inputs)
    return value.asnumpy(), {name: grad.asnumpy() for name, grad in zip(named, grads, strict=True)}


@pytest.fixture
def tower(pynative):
    return small_tower()


@pytest.mark.parametrize("short_rows", [0, 2])
@pytest.mark.parametrize("objective", ["distill", "contrastive"])
def test_values_and_gradients_are_those_of_the_formula(pynative, objective, short_rows):
    table, k, scale = noise(9, 6), 4, 5.0
    target = directions(k + short_rows, 6, seed=1)
    index = np.array([3, 1, 8, 0, 5, 2][: k + short_rows])
    loss = LongClipLoss(Lookup(table), k, short_rows, objective, distill_weight=0.7, logit_scale=scale)
    tokens = Tensor(np.stack([index, index], 1).astype(np.int32))
    total, count, *terms = loss(tokens, Tensor(np.ones((k + short_rows, 2), np.int32)), Tensor(target))

    reference = torch.tensor(table, requires_grad=True)
    text, wanted = reference[torch.tensor(index)], torch.tensor(target)
    if objective == "distill":
        first = (1 - cosine_similarity(text[:k], wanted[:k])).mean()
    else:
        logits = scale * normalize(text[:k]) @ wanted[:k].T
        first = (cross_entropy(logits, torch.arange(k)) + cross_entropy(logits.T, torch.arange(k))) / 2
    expected = [first]
    if short_rows:
        expected.append((1 - cosine_similarity(text[k:], wanted[k:])).mean())
    whole = first + 0.7 * expected[1] if short_rows else first
    whole.backward()

    assert loss.terms == (("long" if objective == "distill" else "contrastive"), "short")[: len(expected)]
    assert float(count) == k + short_rows
    np.testing.assert_allclose(float(total), whole.item(), rtol=1e-5)
    np.testing.assert_allclose([float(term) for term in terms], [x.item() for x in expected], rtol=1e-5)
    mask = Tensor(np.ones((k + short_rows, 2), np.int32))
    _, grads = gradients(loss, loss.network, tokens, mask, Tensor(target))
    np.testing.assert_allclose(grads["table"], reference.grad.numpy(), atol=1e-6)


def test_unknown_objective_is_refused(pynative):
    with pytest.raises(ValueError, match="choose distill or contrastive"):
        LongClipLoss(Lookup(noise(2, 2)), 1, objective="cosine")


def test_padding_has_no_gradient_and_no_say(tower):
    choose_trained(tower, "all")
    loss = LongClipLoss(tower, 2)
    tokens, mask, target = texts()
    value, grads = gradients(loss, tower, tokens, mask, target)
    table = grads["model.text_model.embeddings.token_embedding.embedding_table"]
    seen = {27, 1, 2, 3, 4, 5, 6, 7, 8, EOS}
    assert {row for row in range(30) if table[row].any()} == seen  # PAD stands in the batch, and is not among them
    positions = grads[f"model.{POSITIONS}"]
    assert positions[:8].any(1).all() and not positions[8:].any()
    other = tokens.asnumpy().copy()
    other[other == PAD] = 13
    assert float(loss(Tensor(other), mask, target)[0]) == value


def test_rows_set_apart_change_nothing_and_come_together_again(tower):
    tokens, mask, _ = texts()
    before = [x.asnumpy() for x in tower(tokens, mask)]
    names = [name for name, _ in tower.parameters_and_names()]
    table = dict(tower.parameters_and_names())[f"model.{POSITIONS}"].asnumpy().copy()
    choose_trained(tower, "positions", KEPT)
    rows = tower.model.text_model.embeddings.position_embedding
    assert isinstance(rows, PositionRows) and (len(rows.kept), len(rows.added)) == (KEPT, ROWS - KEPT)
    for got, want in zip(tower(tokens, mask), before, strict=True):
        np.testing.assert_array_equal(got.asnumpy(), want)
    rows.added.set_data(rows.added + 1)
    join_positions(tower)
    assert sorted(name for name, _ in tower.parameters_and_names()) == sorted(names)
    table[KEPT:] += 1
    np.testing.assert_array_equal(dict(tower.parameters_and_names())[f"model.{POSITIONS}"].asnumpy(), table)
    join_positions(tower)  # nothing set apart: nothing to do
    assert sorted(name for name, _ in tower.parameters_and_names()) == sorted(names)


@pytest.mark.parametrize("trainable", ["positions", "all"])
@pytest.mark.parametrize("kept", [0, KEPT])
def test_what_is_trained(tower, trainable, kept):
    names = {name for name, _ in tower.parameters_and_names()}
    choose_trained(tower, trainable, kept)
    stem = f"model.{POSITIONS.rpartition('.')[0]}"
    table = {f"{stem}.added"} if kept else {f"model.{POSITIONS}"}
    chosen = {name for name, param in tower.parameters_and_names() if param.requires_grad}
    assert chosen == (table if trainable == "positions" else (names - {f"model.{POSITIONS}"}) | table)
    assert len({param.name for param in tower.get_parameters()}) == len(names) + bool(kept)  # a graph needs that


def test_graph_mode_has_the_same_gradients(tower):
    tokens, mask, target = texts()
    choose_trained(tower, "positions", KEPT)
    loss = LongClipLoss(tower, 1, 1)
    value, grads = gradients(loss, tower, tokens, mask, target)
    mg.device.setup("CPU", "graph")
    from mg.trainers.optim import zeros_like
    from mg.trainers.step import GradStep

    added = tower.model.text_model.embeddings.position_embedding.added
    (gradient,) = grads_of_added = zeros_like([added], "grad")
    values, weight = GradStep(loss, ParameterTuple([added]), grads_of_added)(tokens, mask, target)
    np.testing.assert_allclose(values.asnumpy()[0], value, rtol=1e-5)
    assert float(weight) == 2
    wanted = grads["model.text_model.embeddings.position_embedding.added"]
    assert np.abs(wanted[: 8 - KEPT]).max() > 1e-4
    np.testing.assert_allclose(gradient.asnumpy(), wanted, atol=1e-6)

"""`train_metaclip`: targets of the teacher, what is trained and written, resume, and what it refuses.

In PyNative mode, with batches of few captions: compiling would take longer than all the steps.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

import mg.device
from mg.config import cli
from mg.config.metaclip_train import (
    LongCaptionsConfig,
    LongClipLossConfig,
    LongClipValidationConfig,
    MetaclipTrainConfig,
)
from mg.config.trainer import OptimizerConfig, TrainerConfig
from mg.errors import UserError
from mg.models.text_encoders.encoder import TextEncoder
from mg.pipelines import train_metaclip as room
from mg.pipelines.train_metaclip import CONFIG_RECORD, FINAL_FOLDER, Teacher, embed, logit_scale, train_metaclip
from mg.weights import read_weights, write_weights

ASSETS = Path(__file__).parents[2] / "assets"
TOY, CLIPS = ASSETS / "text/metaclip", ASSETS / "clips"
OLD, NEW = 77, 96
TABLE = "text_model.embeddings.position_embedding.weight"
SHORT_TEXT = "A purple bird sings on a branch."


class StandIn:
    """Takes the trainer's place: keeps what it was given, trains nothing."""

    def __init__(self, **given):
        self.given = given
        StandIn.last = self

    def fit(self):
        self.first = next(iter(self.given["batches"](3)))
        return {"step": 0, "stopped": False, "restart": False}

    def export(self, path):
        params = self.given["network"].parameters_and_names()
        write_weights(path, {name: param.asnumpy() for name, param in params})


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    mg.device.setup("CPU", "pynative")
    monkeypatch.setattr(room, "MAX_BATCH", 4)


@pytest.fixture(scope="module")
def captions():
    from mg.dataset.long_captions import read_captions

    return [item.caption for item in read_captions(CLIPS / "videos.csv", videos=True)]


@pytest.fixture(scope="module")
def teacher():
    mg.device.setup("CPU", "pynative")
    return Teacher(TextEncoder.from_pretrained(TOY, max_length=OLD), NEW)


@pytest.fixture(scope="module")
def student():
    mg.device.setup("CPU", "pynative")
    return TextEncoder.from_pretrained(TOY, max_length=NEW)


def settings(output, **changes):
    """A short run that trains the new position rows; `loss`, `data` and others may be changed."""
    base = MetaclipTrainConfig(
        pretrained=str(TOY),
        output_path=str(output),
        max_length=NEW,
        device="CPU",
        mode="pynative",
        data=LongCaptionsConfig(csv_path=str(CLIPS / "train.csv"), join_captions=3, joined_count=6, batch_size=2),
        train=TrainerConfig(
            steps=4, save_every=2, log_every=1, validate_every=4, seed=1, ema_decay=0.5,
            optimizer=OptimizerConfig(lr=3e-3, weight_decay=0.1),
        ),
        valid=LongClipValidationConfig(share=0.2),
    )  # fmt: skip
    return replace(base, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of 4 steps with averages and weight decay: folder, figures."""
    folder = tmp_path_factory.mktemp("metaclip") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "MAX_BATCH", 4)
        return folder, train_metaclip(settings(folder))


def stored(folder):
    return read_weights(folder / "model.safetensors")


def test_only_the_new_rows_change_and_all_else_keeps_its_bits(whole):
    before, after = stored(TOY), stored(whole[0] / FINAL_FOLDER)
    assert before.keys() == after.keys()
    table = after.pop(TABLE)
    assert table.shape == (NEW, 64)
    np.testing.assert_array_equal(table[:OLD], before.pop(TABLE))
    assert (np.abs(table[OLD:] - table[OLD - 1]).max(1) > 1e-4).all()
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name)


def test_the_written_encoder_reads_long_captions_and_old_ones_as_before(whole, teacher, caplog):
    caplog.set_level("INFO", logger="mg")
    encoder = TextEncoder.from_pretrained(whole[0] / FINAL_FOLDER)
    assert (encoder.max_length, encoder.config.positions) == (NEW, NEW)
    assert not any("untrained" in record.getMessage() for record in caplog.records)
    tokens, mask = encoder.tokenize([SHORT_TEXT])
    assert mask.sum() <= OLD
    want = teacher.encoder.pooled(tokens[:, :OLD], mask[:, :OLD])
    np.testing.assert_allclose(encoder.pooled(tokens, mask), want, atol=1e-5)


def test_the_averages_are_written(whole):
    folder = whole[0] / "step-00000004"
    average = read_weights(folder / "ema.safetensors")["text_model.embeddings.position_embedding.added"]
    last = read_weights(folder / "model.safetensors")["text_model.embeddings.position_embedding.added"]
    table = stored(whole[0] / FINAL_FOLDER)[TABLE]
    np.testing.assert_array_equal(table[OLD:], average)
    assert np.abs(average - last).max() > 1e-5


def test_figures_long_captions_come_nearer_and_short_ones_stay(whole):
    figures = whole[1]
    assert figures["step"] == 4 and not figures["stopped"]
    assert figures["cos_long"] > figures["cos_long_before"] + 0.01
    assert figures["cos_short"] == pytest.approx(1, abs=1e-5) == figures["cos_short_before"]
    rows = [json.loads(line) for line in (whole[0] / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert cli.load(MetaclipTrainConfig, whole[0] / CONFIG_RECORD) == settings(whole[0])


def test_two_steps_and_two_more_are_four(whole, tmp_path):
    config = settings(tmp_path / "parts")
    for steps in (2, 4):
        train_metaclip(replace(config, train=replace(config.train, steps=steps)))
    for name in (f"{FINAL_FOLDER}/model.safetensors", "step-00000004/optimizer.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (whole[0] / name).read_bytes()
    other = replace(config, data=replace(config.data, seed=5))
    with pytest.raises(UserError, match="cannot resume, the run differs: captions was"):
        train_metaclip(other)


def test_targets_of_short_captions_are_the_teachers_own_embeddings(teacher, captions):
    rows = teacher.rows(captions[:5], short=True)
    for i, text in enumerate(captions[:5]):
        own = teacher.encoder.pooled(*teacher.encoder.tokenize([text]))[0]  # cut by the tokenizer
        np.testing.assert_allclose(rows.target[i], own / np.linalg.norm(own), atol=1e-5)


def test_targets_of_long_captions_are_the_mean_direction_of_their_pieces(teacher, captions):
    text = " ".join(captions)
    target = teacher.rows([text]).target[0]
    content = teacher.encoder.processor.tokenizer(text, add_special_tokens=False)["input_ids"][: NEW - 2]
    halves = [content[: NEW // 2 - 1], content[NEW // 2 - 1 :]]  # two pieces hold 94 tokens
    units = []
    for half in halves:
        tokens = np.int32([[766, *half, 767]])
        own = teacher.encoder.pooled(tokens, np.ones_like(tokens, bool))[0]
        units.append(own / np.linalg.norm(own))
    mean = np.mean(units, 0)
    np.testing.assert_allclose(target, mean / np.linalg.norm(mean), atol=1e-5)
    assert np.linalg.norm(mean) < 0.999  # the pieces differ, so that the mean is no one of them


def test_tokens_are_those_of_the_student_one_by_one(teacher, student, captions):
    texts = [*captions[:4], " ".join(captions[:4]), SHORT_TEXT]
    rows = teacher.rows(texts)
    for i, text in enumerate(texts):
        tokens, mask = student.tokenize([text])
        np.testing.assert_array_equal(rows.tokens[i], tokens[0])
        np.testing.assert_array_equal(rows.mask[i], mask[0])
    assert teacher.are_long(texts) == [text for text, n in zip(texts, rows.mask.sum(1), strict=True) if n > OLD]
    assert texts[4] in teacher.are_long(texts) and teacher.are_long([]) == []


def test_at_the_start_the_student_is_the_teacher_for_captions_of_its_length(teacher, student, captions):
    rows = teacher.rows(captions[:5], short=True)
    assert len({float(x) for x in rows.target[:, 0]}) == 5
    got = embed(student, rows.tokens, rows.mask)
    np.testing.assert_allclose((got / np.linalg.norm(got, axis=1)[:, None] * rows.target).sum(1), 1, atol=1e-5)


def pictures(path, width=32, names=None):
    generator = np.random.default_rng(0)
    names = names or [line.split(",")[0] for line in (CLIPS / "train.csv").read_text().splitlines()[1:]]
    np.savez(path, **{name: generator.standard_normal(width).astype(np.float32) for name in names})
    return str(path)


def contrastive(tmp_path, images, **data):
    base = settings(tmp_path / "run", trainable="all")
    loss = LongClipLossConfig(objective="contrastive", distill_weight=0.25)
    return replace(base, loss=loss, data=replace(base.data, image_embeddings=images, **data))


def test_contrastive_batches_are_captions_with_their_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "Trainer", StandIn)
    images = pictures(tmp_path / "images.npz")
    figures = train_metaclip(contrastive(tmp_path, images, batch_size=3, short_batch_size=2))
    given, batch = StandIn.last.given, StandIn.last.first
    loss = given["loss"]
    assert (loss.contrastive, loss.distill_weight, loss.terms) == (True, 0.25, ("contrastive", "short"))
    assert loss.logit_scale == pytest.approx(1 / 0.07)
    assert batch["tokens"].shape == (5, NEW)
    lengths = np.linalg.norm(batch["target"], axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
    known = np.load(images)
    known = np.stack([known[name] / np.linalg.norm(known[name]) for name in known.files])
    match = (batch["target"] @ known.T).max(1)
    assert (match[:3] > 0.9999).all() and (match[3:] < 0.99).all()
    assert set(figures) >= {"cos_short_before", "cos_long_before"}
    _, _, first, short = loss(*(Tensor(batch[name]) for name in loss.inputs))
    assert float(short) == pytest.approx(0, abs=1e-5) and float(first) > 0.1
    assert all(param.requires_grad for _, param in given["network"].parameters_and_names())  # all: old rows too


def test_the_files_own_logit_scale_is_used(tmp_path):
    assert logit_scale(TOY) == pytest.approx(1 / 0.07)
    write_weights(tmp_path / "model.safetensors", {"logit_scale": np.float32(np.log(50)), "x": np.ones(2)})
    write_weights(tmp_path / "other.safetensors", {"x": np.ones(2)})
    assert logit_scale(tmp_path) == pytest.approx(50, rel=1e-5)


def test_a_picture_that_is_missing_is_named(tmp_path):
    images = pictures(tmp_path / "images.npz", names=["bbb_meadow.mp4"])
    with pytest.raises(UserError, match=r"images\.npz has no vector for '\w+\.mp4'"):
        train_metaclip(contrastive(tmp_path, images))
    images = pictures(tmp_path / "images.npz", width=31)
    with pytest.raises(UserError, match=r"\(31,\) instead of \(32,\)"):
        train_metaclip(contrastive(tmp_path, images))
    images = pictures(tmp_path / "images.npz")
    with pytest.raises(UserError, match=r"data\.batch_size=9: .* there are 8 to train on"):
        train_metaclip(contrastive(tmp_path, images, batch_size=9))


def test_encoder_without_projection_is_refused(tmp_path):
    shutil.copytree(TOY, tmp_path / "toy")
    tensors = {name: array for name, array in stored(TOY).items() if name != "text_projection.weight"}
    write_weights(tmp_path / "toy" / "model.safetensors", tensors)
    with pytest.raises(UserError, match=r"^pretrained: the encoder has no text_projection\.weight"):
        train_metaclip(settings(tmp_path / "run", pretrained=str(tmp_path / "toy")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"max_length": OLD}, r"max_length=77: .*metaclip reads 77 tokens already"),
        ({"pretrained": str(ASSETS / "text/byt5")}, r"kind=metaclip does not fit"),
        ({"join_captions": 1}, r"gives no caption of more than 77 tokens; .*--data\.join_captions"),
        ({"valid": LongClipValidationConfig(csv_path="none.csv")}, r"^valid\.csv_path: none\.csv is not a file"),
    ],
)
def test_what_cannot_be_trained(tmp_path, changes, words):
    config = settings(tmp_path / "run")
    data = {name: changes.pop(name) for name in list(changes) if name == "join_captions"}
    with pytest.raises(UserError, match=words):
        train_metaclip(replace(config, data=replace(config.data, **data), **changes))
    assert not (tmp_path / "run").exists()

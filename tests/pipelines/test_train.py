"""`train`: a run from latents and texts on disk to a folder that the pipeline reads; what it refuses."""

import json
from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from train_toy import IMAGES, TINY, VIDEOS, WIDTHS, four_channels, rows, settings, tiny_config, write_data

from mg.config import cli
from mg.config.encode_latents import EncodeLatentsConfig, TaeOptions, VideoOptions
from mg.config.encode_text import EncodeTextConfig
from mg.config.generation import EmptyTexts, GenerationSettings, TextFolders, TextLengths
from mg.config.prompt_dropout import PromptDropout
from mg.config.train import (
    AutoencoderConfig,
    EncoderFolders,
    FlowLossConfig,
    FlowValidationConfig,
    OnlineConfig,
    SampleConfig,
    TrainConfig,
    TransformerConfig,
)
from mg.config.trainer import OptimizerConfig, PlateauConfig, TrainerConfig
from mg.dataset.manifest import read_manifest
from mg.dataset.quarantine import FILE_NAME as BAD_VIDEOS
from mg.dataset.text_cache import EncoderRecord
from mg.errors import TooManyBadClips, UserError
from mg.models.llama import load_llama
from mg.pipelines import encode_text
from mg.pipelines.encode_latents import encode_videos
from mg.pipelines.pipeline_folder import read_transformer
from mg.pipelines.train import CONFIG_RECORD, FINAL_FOLDER, network_config, train
from mg.pipelines.train_data import KeptTokens, fingerprint_of, open_data, sample_batches, validation_batches
from mg.weights import read_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), VIDEOS + IMAGES)


@pytest.fixture(autouse=True)
def preset(monkeypatch):
    four_channels(monkeypatch)


@pytest.fixture
def config(folder, tmp_path):
    return tiny_config(folder, tmp_path / "run")


def test_the_loss_on_one_clip_falls_by_half(folder, tmp_path, config):
    """In graph mode, the others are in PyNative."""
    one = tmp_path / "one.csv"
    one.write_text("video,caption\nv0.mp4,caption\n")
    run = TrainerConfig(steps=25, log_every=1, optimizer=OptimizerConfig(lr=1e-2))
    data = settings(folder, batch_size=16, dropout=PromptDropout(all=0.0))
    model = replace(TINY, hidden_size=64, intermediate_size=64, num_attention_heads=4)
    figures = train(replace(config, csv_path=str(one), mode="graph", train=run, data=data, model=model))
    losses = [row["loss"] for row in rows(tmp_path / "run")]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:2]), losses
    assert figures["step"] == 25 and figures["stopped"] is False


def test_six_buckets_are_six_compilations(tmp_path, config):
    shapes = [(4, t, h, w) for t in (1, 2) for h, w in ((2, 4), (4, 4), (4, 2))]
    items = [(f"{number}{'.png' if shape[1] == 1 else '.mp4'}", shape) for number, shape in enumerate(shapes)]
    folder = write_data(tmp_path / "buckets", items)
    run = TrainerConfig(steps=18, log_every=1, optimizer=OptimizerConfig(lr=1e-3))
    data = settings(folder, batch_size=1)
    train(replace(config, csv_path=str(folder / "list.csv"), mode="graph", train=run, data=data))
    stop = rows(tmp_path / "run", "events")[-1]
    # One gradient per bucket; the norm of the gradients and the update, which do not depend on it.
    assert (stop["event"], stop["step"], stop["compilations"]) == ("stop", 18, 6 + 2)


@pytest.fixture(scope="module")
def straight(folder, tmp_path_factory):
    """An uninterrupted run of 4 steps."""
    return tmp_path_factory.mktemp("straight") / "run"


def test_steps_in_parts_are_the_same_steps(config, straight, tmp_path):
    drop = replace(config, loss=FlowLossConfig(token_drop=0.5))
    train(replace(drop, output_path=str(straight), workers=0))
    for steps, workers in ((1, 1), (4, 3)):  # threads do not matter either
        train(replace(drop, workers=workers, train=replace(config.train, steps=steps)))
    for name in ("model", "optimizer", "ema"):
        file = f"step-00000004/{name}.safetensors"
        assert (tmp_path / "run" / file).read_bytes() == (straight / file).read_bytes()
    file = f"{FINAL_FOLDER}/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "run" / file).read_bytes() == (straight / file).read_bytes()
    assert [row["loss"] for row in rows(straight)] == [row["loss"] for row in rows(tmp_path / "run")]
    assert len(rows(straight)) == 4


def test_the_folder_of_the_result(config, tmp_path):
    train(config)
    output = tmp_path / "run"
    said = json.loads((output / FINAL_FOLDER / "config.json").read_text())
    assert said["text_lengths"] == {"ul2": 4, "byt5": 3}
    assert said["trained_with"] == {"tae": "tae0", "ul2": "ul2-enc0", "byt5": "byt5-enc0"}
    flags = [said[name] for name in ("unconditional", "null_text", "fps", "attend_padding")]
    assert flags == [True, "empty", False, False]
    network, told = read_transformer(output / FINAL_FOLDER)  # as the pipeline reads it
    assert told.trained_with == said["trained_with"] and told.text_lengths == said["text_lengths"]
    assert network.config.text_widths == (("ul2", 6), ("byt5", 5)) and network.config.max_length == (2, 2, 2)
    averages = read_weights(output / "step-00000004" / "ema.safetensors")
    weights = {name: param.asnumpy() for name, param in network.parameters_and_names()}
    assert weights.keys() == averages.keys()
    assert all(np.array_equal(weights[name], averages[name]) for name in averages)
    assert cli.load(TrainConfig, output / CONFIG_RECORD) == config


def test_the_next_stage_starts_from_the_weights_with_longer_tables(config, tmp_path):
    train(replace(config, train=replace(config.train, steps=1)))
    first = tmp_path / "run" / FINAL_FOLDER
    model = TransformerConfig(pretrained=str(first), max_length=(3, 2, 4))
    schedule = replace(config.train, steps=1, optimizer=OptimizerConfig(lr=1e-30))
    train(replace(config, model=model, train=schedule, output_path=str(tmp_path / "next")))
    old, new = (read_weights(tmp_path / run / FINAL_FOLDER) for run in ("run", "next"))
    table = "pos_embedding_table_{}.embedding_table"
    for name in old:
        if name != table.format("t") and name != table.format("w"):
            np.testing.assert_allclose(new[name], old[name], rtol=0, atol=1e-20)  # the step moved it by no more
    longer, before = new[table.format("w")], old[table.format("w")]
    np.testing.assert_allclose(longer[[0, 3]], before, atol=1e-6)
    np.testing.assert_allclose(longer[1], before[0] * 2 / 3 + before[1] / 3, atol=1e-6)


def test_validation_has_the_formulas_loss_and_the_averaged_weights(config, folder, tmp_path):
    """Every item once, at fixed noise levels, with noise that stays."""
    valid = FlowValidationConfig(csv_path=str(folder / "list.csv"), sampling_steps=2, batch_size=3)
    train(replace(config, valid=valid, train=replace(config.train, validate_every=2, accumulation=1)))
    found = rows(tmp_path / "run", "validation")
    assert [row["step"] for row in found] == [2, 4]
    ms.set_context(mode=ms.PYNATIVE_MODE)
    network = load_llama(tmp_path / "run" / FINAL_FOLDER)
    source = open_data(replace(config, valid=valid)).valid
    singles = [source.batch(index) for index in range(len(source.items))]
    assert sorted(name for one in singles for name in one["names"]) == sorted(name for name, _ in VIDEOS + IMAGES)
    for level, tau in ((500, 0.5), (1000, 0.0)):
        total = count = 0
        for one in singles:
            x1, x0 = one["latent"], one["noise"]
            state = (tau * x1 + (1 - (1 - 1e-5) * tau) * x0).astype(np.float32)
            given = [Tensor(one[name]) for name in ("mask", "ul2", "byt5")]
            velocity = network(Tensor(state), Tensor(np.float32([level])), *given).asnumpy()
            total, count = total + ((velocity - (x1 - (1 - 1e-5) * x0)) ** 2).sum(), count + x1.size
        assert found[1][f"val_loss_{level}"] == pytest.approx(total / count, rel=1e-4)
    assert found[1]["val_loss"] == pytest.approx(np.mean([found[1]["val_loss_500"], found[1]["val_loss_1000"]]))


def test_validation_batches_hold_each_video_once(config, folder):
    valid = FlowValidationConfig(csv_path=str(folder / "list.csv"))
    source = open_data(replace(config, valid=valid)).valid
    batches = list(validation_batches(source, 3, None)())
    assert sorted(len(batch["latent"]) for batch in batches) == [1, 1, 2, 3]  # 4 short videos, 1 long, 2 images
    assert sorted(name for batch in batches for name in batch["names"]) == sorted(name for name, _ in VIDEOS + IMAGES)
    again = list(validation_batches(source, 3, None)())
    assert all(np.array_equal(a["noise"], b["noise"]) for a, b in zip(batches, again, strict=True))
    assert sum(len(batch["names"]) for batch in validation_batches(source, 3, 4)()) == 4
    one = next(batch for batch in batches if batch["names"] == ["v2.mp4"])
    mean = np.load(folder / "latents" / "v2.npz")["latent_mean"].transpose(1, 0, 2, 3)
    np.testing.assert_allclose(one["latent"][0], (mean - 0.5) * 2.0, rtol=1e-6)  # means, nothing drawn


def test_samples_are_written_while_training(config, folder, tmp_path):
    sample = SampleConfig(every=2, count=2, num_inference_steps=3, guidance_scale=2.0)
    valid = FlowValidationConfig(csv_path=str(folder / "list.csv"))
    few = replace(config.train, steps=4, validate_every=2, accumulation=1)
    train(replace(config, sample=sample, valid=replace(valid, sampling_steps=1), train=few))
    folders = sorted(path.name for path in (tmp_path / "run" / "samples").iterdir())
    assert folders == ["step-00000002", "step-00000004"]
    latents = [np.load(tmp_path / "run" / "samples" / name / "0.npy") for name in folders]
    assert latents[0].shape == (1, 4, 4, 4) and not np.array_equal(*latents)
    captions = json.loads((tmp_path / "run" / "samples" / folders[0] / "captions.json").read_text())
    assert len(captions) == 2 and all(caption.startswith("caption of v") for caption in captions)


def test_samples_have_a_videos_shape_and_the_empty_prompt_beside_it(config, folder):
    batch, empty, captions, frames = sample_batches(open_data(config), 3)
    assert frames == 8 and batch["latent"].shape == (3, 4, 1, 4, 4)
    assert captions == [f"caption of {name}" for name in batch["names"]]
    want = np.load(folder / "ul2-empty" / "empty.npz")["text_emb"][0]
    np.testing.assert_allclose(empty["ul2"][:, 0], np.tile(want, (3, 1)), rtol=1e-6)
    assert empty["mask"].sum(1).tolist() == [2, 2, 2] and batch["mask"].sum(1).tolist() == [6, 6, 6]


def test_dropped_tokens_are_as_many_as_said_and_a_pure_function_of_the_index(config):
    source = open_data(config).source
    sizes = network_config(TINY, WIDTHS)[0]
    kept = KeptTokens(source, sizes, 0.3, seed=1)
    for index in (5, 0, 3, 0):
        batch = kept.batch(index)
        b, _, t, h, w = batch["latent"].shape
        n = t * h * w // 4
        of = batch["kept"].reshape(b, -1)
        assert of.dtype == np.int32 and of.shape[1] == round(0.7 * n)
        assert all(len(set(row)) == len(row) and set(row // n) == {i} for i, row in enumerate(of))
        np.testing.assert_array_equal(kept.batch(index)["kept"], batch["kept"])
        for row in range(kept.size(index)):  # of a process that has this row alone
            np.testing.assert_array_equal(kept.batch(index, [row])["kept"], of[row] - row * n)
    draws = [tuple(kept.batch(index)["kept"]) for index in range(8)]
    assert len(set(draws)) > 3


def other_data(tmp_path, **changes):
    return write_data(tmp_path / "other", VIDEOS, **changes)


def test_data_of_other_models_are_refused(config, tmp_path):
    train(replace(config, train=replace(config.train, steps=1)))
    model = TransformerConfig(pretrained=str(tmp_path / "run" / FINAL_FOLDER))
    where = {"output_path": str(tmp_path / "next"), "model": model}
    tae = other_data(tmp_path / "a", tae="tae1")
    with pytest.raises(UserError, match=r"^data.tae_latent_folder: these latents were encoded by tae tae1, but .*tae0"):
        train(replace(config, **where, csv_path=str(tae / "list.csv"), data=settings(tae)))
    text = other_data(tmp_path / "b", encoder="enc1")
    with pytest.raises(UserError, match=r"^data.text.ul2: these texts were encoded by ul2 ul2-enc1, but .*ul2-enc0"):
        train(replace(config, **where, csv_path=str(text / "list.csv"), data=settings(text)))
    assert not (tmp_path / "next" / CONFIG_RECORD).exists()
    for other, words in ((tae, "valid.tae_latent_folder"), (text, r"valid.text.ul2")):
        valid = FlowValidationConfig(
            csv_path=str(other / "list.csv"), tae_latent_folder=str(other / "latents"),
            text=TextFolders(ul2=str(other / "ul2"), byt5=str(other / "byt5")),
        )  # fmt: skip
        with pytest.raises(UserError, match=words):
            train(replace(config, valid=valid))


def test_a_mix_of_lists_is_trained_on(config, folder):
    rows = (folder / "list.csv").read_text().splitlines()
    for name, part in (("a", rows[1:2]), ("b", rows[2:])):
        (folder / f"{name}.csv").write_text("\n".join([rows[0], *part]))
    mix = {str(folder / "a.csv"): 1.0, str(folder / "b.csv"): 1.0}
    data = open_data(replace(config, csv_path=None, mix=mix))
    names = [name for index in range(100) for name in data.source.batch(index)["names"]]
    assert names.count(rows[1].split(",")[0]) == pytest.approx(len(names) / 2, rel=0.05)
    assert data.source.drawn(100) == pytest.approx(dict.fromkeys(mix, len(names) / 2), rel=0.05)
    other = open_data(replace(config, csv_path=None, mix={**mix, str(folder / "b.csv"): 2.0}))
    assert fingerprint_of(other)["mix"] != fingerprint_of(data)["mix"] == [[1.0, 1], [1.0, len(rows) - 2]]


def test_too_many_unusable_items_end_the_run_with_an_exit_code_of_their_own(config, tmp_path):
    folder = write_data(tmp_path / "data", VIDEOS + IMAGES)
    few = replace(config, csv_path=str(folder / "list.csv"), data=settings(folder))
    (folder / "latents" / "v1.npz").write_text("damaged")
    assert open_data(few).source.quarantine.reasons.keys() == {str(folder / "latents" / "v1.npz")}
    (folder / "latents" / "v2.npz").unlink()
    with pytest.raises(TooManyBadClips, match=r"^2 of 7 files are bad, more than max_bad=0\.1 allows") as error:
        train(few)
    assert error.value.exit_code == 5
    listed = (tmp_path / "run" / BAD_VIDEOS).read_text().splitlines()
    assert [json.loads(line)["path"] for line in listed] == [str(folder / "latents" / f"v{n}.npz") for n in (1, 2)]


def test_a_resumed_run_must_share_its_data(config, folder, tmp_path):
    train(replace(config, train=replace(config.train, steps=1)))
    record = (tmp_path / "run" / CONFIG_RECORD).read_bytes()
    with pytest.raises(UserError, match="the run differs: data.batch_size was 2 is 3"):
        train(replace(config, data=settings(folder, batch_size=3)))
    (folder / "list2.csv").write_text("video,caption\nv0.mp4,other words\n")
    with pytest.raises(UserError, match="the run differs: data.items was"):
        train(replace(config, csv_path=str(folder / "list2.csv")))
    assert (tmp_path / "run" / CONFIG_RECORD).read_bytes() == record


def test_frame_rates_in_front_of_the_captions_reach_the_result(config, tmp_path):
    folder = write_data(tmp_path / "rated", VIDEOS)
    for kind, fps in (("ul2", "video"), ("byt5", "none")):
        replace(EncoderRecord.read(folder / kind), fps=fps).write(folder / kind)
    run = replace(config, csv_path=str(folder / "list.csv"), train=TrainerConfig(steps=1), data=settings(folder))
    with pytest.raises(UserError, match=r"data\.text\.ul2: its captions were encoded with a frame rate in front"):
        train(run)
    replace(EncoderRecord.read(folder / "byt5"), fps=24.0).write(folder / "byt5")
    train(run)
    assert read_transformer(tmp_path / "run" / FINAL_FOLDER)[1].fps is True


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"csv_path": None}, "--csv_path is missing"),
        ({"csv_path": None, "mix": {"tests": 1.0}}, "mix: tests is a folder; name a CSV"),
        ({"csv_path": None, "mix": {"no.csv": 1.0}}, "mix: csv_path: no.csv is not a file"),
        ({"model": replace(TINY, max_length=(1, 2, 2))}, r"model.max_length=\[1, 2, 2\]: videos of 16x32x32: "),
        ({"model": replace(TINY, hidden_size=15)}, "model.hidden_size=15 must be a multiple"),
        ({"model": TransformerConfig(pretrained="nowhere")}, "model.pretrained: nowhere is no folder with config.json"),
        ({"model": replace(TINY, pretrained="nowhere")}, "model.pretrained: nowhere: "),
        ({"data": GenerationSettings()}, "data.text: no encoder is named"),
    ],
)
def test_what_cannot_be_trained_is_told_in_one_line(config, changes, words):
    with pytest.raises(UserError, match=words) as error:
        train(replace(config, **changes))
    assert "\n" not in str(error.value)


def test_a_plateau_without_validation(config):
    run = replace(config.train, validate_every=2, lr_reduce_on_plateau=PlateauConfig(factor=0.5))
    with pytest.raises(UserError, match="name --valid.csv_path, or set its factor to 1"):
        train(replace(config, train=run))


def test_videos_and_captions_encoded_on_the_way_give_the_same_batches(config, clip, root, tmp_path):
    for seed in range(2):
        clip(tmp_path / "videos" / f"{seed}.mp4", 8, 32, 32, seed=seed)
    (tmp_path / "list.csv").write_text("video,caption\n0.mp4,a bee\n1.mp4,a frog\n")
    (tmp_path / "prompts.txt").write_text("a bee\n\na frog\n")
    tae, ul2 = str(root / "assets/weights/tae-tiny.safetensors"), str(root / "assets/text/ul2")
    common = {"device": "CPU", "mode": "graph"}  # the encoders have no kernels for PyNative
    videos = VideoOptions(csv_path=str(tmp_path / "list.csv"), folder=str(tmp_path / "videos"), size=(32, 32))
    latents = str(tmp_path / "latents")
    encode_videos(EncodeLatentsConfig(tae=TaeOptions(pretrained=tae), video_data=videos, output_path=latents, **common))
    text = {"prompts_file": str(tmp_path / "prompts.txt"), "output_path": str(tmp_path / "text"), "format": "cache"}
    encode_text.run(EncodeTextConfig(model_name=ul2, **text, **common))
    data = settings(tmp_path, text=TextFolders(), tae_latent_folder=None, text_lengths=TextLengths(ul2=12))
    run = replace(
        config, csv_path=str(tmp_path / "list.csv"), video_folder=str(tmp_path / "videos"),
        data=replace(data, empty_text=EmptyTexts()), tae=AutoencoderConfig(pretrained=tae),
        online=OnlineConfig(size=(32, 32), text_encoders=EncoderFolders(ul2=ul2)),
    )  # fmt: skip
    stored = replace(run.data, tae_latent_folder=latents, text=TextFolders(ul2=str(tmp_path / "text")))
    stored = replace(run, data=stored, online=OnlineConfig())
    online, offline = open_data(run), open_data(stored)
    assert online.source.online and not offline.source.online
    assert online.made_by == offline.made_by and set(online.made_by) == {"tae", "ul2"}
    for index in range(6):
        ours, theirs = online.source.batch(index), offline.source.batch(index)
        assert ours["names"] == theirs["names"] and ours["bucket"] == theirs["bucket"] == "8x32x32"
        np.testing.assert_allclose(ours["latent"], theirs["latent"], atol=1e-4)
        np.testing.assert_allclose(ours["ul2"], theirs["ul2"], atol=1e-4)
        np.testing.assert_array_equal(ours["mask"], theirs["mask"])


def test_the_autoencoder_must_be_that_of_the_latents(config, root):
    tae = AutoencoderConfig(pretrained=str(root / "assets/weights/tae-tiny.safetensors"))
    with pytest.raises(UserError, match="was encoded by the autoencoder tae0, tae.pretrained=.*; name the one that"):
        train(replace(config, tae=tae))


def test_items_of_the_list_are_those_that_are_trained_on(config, folder):
    names = {item.name for item in open_data(config).source.items}
    assert names == {item.name for item in read_manifest(folder / "list.csv", folder)}

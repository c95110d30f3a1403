"""Videos from prompts: values by hand with stand-ins for the networks, and a small real pipeline from its folder."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import mg.pipelines.text_to_video as module
from mg.dataset.text_npz import write_text_npz
from mg.dataset.video import probe, read_video
from mg.errors import NumericalAbort, UserError
from mg.models.text_encoders.features import TextFeatures
from mg.pipelines import TextToVideoPipeline
from mg.pipelines.pipeline_folder import Conditioning, SchedulerConfig, write_parts
from mg.pipelines.sampling import Sampling
from mg.pipelines.text_condition import fitted
from mg.pipelines.video_outputs import Namer, slug, write_frames
from mg.rng import stream
from tests.generation_fakes import CONFIG, LENGTHS, Encoder, Tae, Transformer, pipeline, said

SMALL = {"height": 16, "width": 32, "num_inference_steps": 3, "guidance_scale": 1.0, "progress": False}


def noise(seed, frames=2, repeat=0):
    shape = (16, frames, 2, 4)
    return stream(seed, "generate.noise", repeat).standard_normal(shape, np.float32)


def oracle(x, level, text):
    """The velocity that leads to latents equal to the text's number, whatever the noise."""
    return (text - x) * 1000.0 / level


@pytest.mark.parametrize("method", ["linear", "linear-quadratic", "linear-quadratic-smooth"])
def test_what_the_transformer_says_becomes_pixels(method):
    pipe = pipeline(oracle)
    options = {**SMALL, "num_frames": 12, "sample_method": method}
    latents = pipe("red circle", output_type="latent", **options)
    assert latents.shape == (1, 16, 2, 2, 4) and latents.dtype == np.float32  # 12 frames: 2 latent ones
    np.testing.assert_allclose(latents, said("red circle"), rtol=1e-6)
    frames = pipe("red circle", **options)
    assert frames.shape == (1, 12, 16, 32, 3) and frames.dtype == np.uint8
    pixel = said("red circle") / Tae.scale_factor + Tae.shift_factor
    np.testing.assert_array_equal(frames, np.rint((pixel + 1) * 127.5).astype(np.uint8))


def test_a_picture_is_a_video_of_one_frame():
    frames = pipeline()("x", num_frames=1, **SMALL)
    assert frames.shape == (1, 1, 16, 32, 3)


def test_the_velocity_is_integrated_from_the_seeds_noise():
    latents = pipeline()("a b", seed=5, output_type="latent", **SMALL)
    np.testing.assert_allclose(latents[0], noise(5) + said("a b"), atol=1e-5)


def test_same_seed_same_bits_whatever_the_list():
    pipe = pipeline(lambda x, level, text: np.sin(3 * x + text) - level / 1000)
    options = {**SMALL, "guidance_scale": 3.0, "output_type": "latent"}
    alone = pipe("a cat", seed=7, **options)[0]
    many = pipe(["x y z", "a cat", "q", "a cat"], seed=7, **options)
    assert np.array_equal(many[1], alone)
    assert not np.array_equal(many[3], alone)  # asked for again: other noise
    assert np.array_equal(pipe(["q", "a cat"], seed=[1, 7], **options)[1], alone)
    assert not np.array_equal(pipe("a cat", seed=8, **options)[0], alone)
    assert {len(call.x) for call in pipe.transformer.calls} == {2}  # the pair of guidance, never more
    together = pipe(["x y z", "a cat", "q"], seed=7, batch_size=2, **options)
    np.testing.assert_allclose(together[1], alone, atol=1e-5)
    assert len(pipe.transformer.calls[-1].x) == 4  # the last batch is filled up


def test_guidance_leads_away_from_the_empty_or_the_negative_prompt():
    pipe = pipeline()
    options = {**SMALL, "output_type": "latent", "guidance_scale": 4.0}
    for negative in ("", "ugly"):
        away = said(negative)
        guided = away + 4 * (said("a b") - away)
        np.testing.assert_allclose(pipe("a b", negative, **options)[0], noise(0) + guided, atol=1e-4)
    batched = pipe("a b", "ugly", **options)
    pipe.transformer.calls.clear()
    assert np.array_equal(pipe("a b", "ugly", guidance_mode="sequential", **options), batched)
    assert [len(call.x) for call in pipe.transformer.calls] == [1] * 6
    pipe.transformer.calls.clear()
    pipe("a b", **{**options, "guidance_scale": 1.0})
    assert len(pipe.transformer.calls) == 3  # nothing to compute for guidance 1


def test_a_guidance_schedule_starts_without_guidance():
    pipe = pipeline()
    options = {**SMALL, "guidance_scale": 3.0, "output_type": "latent", "sample_method": "linear"}
    rising = pipe("a", guidance_schedule="linear", num_frames=16, **options)
    scales = [1 + 2 * share for share in (0, 1 / 3, 2 / 3)]  # at 1000, 667 and 333
    np.testing.assert_allclose(rising[0], noise(0) + said("a") * np.mean(scales), atol=1e-5)


def test_defaults_are_the_schedulers():
    pipe = pipeline()
    assert pipe.plan(Sampling()).guidance.scale == 7.5 and pipe.plan(Sampling()).steps == 50
    assert np.array_equal(pipe.plan(Sampling()).grid[:3], [1000, 999, 998])
    pipe.scheduler = SchedulerConfig(
        guidance_scale=2.0, num_inference_steps=7, sample_method="linear", solver="midpoint"
    )
    plan = pipe.plan(Sampling())
    assert (plan.guidance.scale, plan.steps, plan.solver) == (2.0, 7, "midpoint")
    assert plan.grid[1] == pytest.approx(1000 * 6 / 7)
    assert pipeline(unconditional=False).plan(Sampling()).guidance.scale == 1.0
    assert pipeline(encoders=()).plan(Sampling()).guidance.scale == 1.0
    assert pipeline(encoders=(), null_text="zeros").plan(Sampling()).guidance.scale == 7.5


def test_each_text_is_encoded_once_and_by_itself():
    pipe = pipeline()
    list(pipe.generate(["a", "b", " a ", "b"], sampling=Sampling(height=16, width=16, num_inference_steps=1)))
    for encoder in pipe.text_encoders.values():
        assert encoder.texts == [("a",), ("b",), ("",)] and encoder.trims == {True}
    pipe(["b", ""], **SMALL)
    assert pipe.text_encoders["ul2"].texts == [("a",), ("b",), ("",)]


def test_a_long_list_is_encoded_window_by_window(monkeypatch):
    monkeypatch.setattr("mg.pipelines.sampling.WINDOW", 3)
    pipe = pipeline()
    prompts = [f"word{i}" for i in range(8)]
    latents = pipe(prompts, output_type="latent", **SMALL, batch_size=2)
    for prompt, latent in zip(prompts, latents, strict=True):
        np.testing.assert_allclose(latent, noise(0) + said(prompt), atol=1e-5)


def test_the_rate_stands_in_front_where_the_model_knows_rates():
    pipe = pipeline(fps=True)
    pipe("FPS-8 a dog", "ugly", fps=23.976, **{**SMALL, "guidance_scale": 2.0})
    pipe("a dog", num_frames=1, **SMALL)
    pipe("a dog", fps=16, **{**SMALL, "guidance_scale": 2.0})
    texts = [text for (text,) in pipe.text_encoders["ul2"].texts]
    assert texts == ["FPS-24 a dog", "FPS-24 ugly", "a dog", "FPS-16 a dog", ""]


def test_texts_are_cut_padded_and_masked():
    pipe = pipeline()
    pipe("one two three four five six seven", **SMALL)
    pipe("one", **SMALL)
    long, short = pipe.transformer.calls[0], pipe.transformer.calls[-1]
    assert [part.shape for part in long.text] == [(1, 6, 3), (1, 4, 2)]
    assert long.mask.tolist() == [[1] * 10]
    assert short.mask.tolist() == [[1, 0, 0, 0, 0, 0, 1, 0, 0, 0]]
    assert not short.text[0][0, 1:].any()
    features = TextFeatures(np.full((3, 2), 9, np.float32), np.array([True, True, False]), np.zeros(3, np.int32))
    assert fitted(features, 4)[0][:, 0].tolist() == [9, 9, 0, 0]
    assert fitted(features, 4, keep_padding=True)[0][:, 0].tolist() == [9, 9, 9, 0]
    assert fitted(features, 1)[1].tolist() == [True]


def test_what_the_reference_was_trained_on():
    pipe = pipeline(attend_padding=True, ones=("byt5",), encoders=("ul2",))
    pipe("one", **SMALL)
    call = pipe.transformer.calls[0]
    assert call.mask.tolist() == [[1] * 10] and pipe.text_encoders["ul2"].trims == {False}
    assert (call.text[0][0, 1:] == 9).all() and (call.text[1] == 1).all()


def test_a_dropped_prompt_may_have_been_nothing_at_all():
    pipe = pipeline(null_text="zeros")
    pipe("one", **{**SMALL, "guidance_scale": 2.0})
    call = pipe.transformer.calls[0]
    assert call.mask[1].tolist() == [0] * 10 and not call.text[0][1].any()
    assert pipe.text_encoders["ul2"].texts == [("one",)]


def embeddings_of(text, width, folder, fingerprint):
    path = folder / f"{width}-{fingerprint}.npz"
    write_text_npz(path, Encoder("ul2", width).encode([text]), fingerprint)
    return path


def test_embeddings_in_place_of_a_prompt(tmp_path):
    pipe = pipeline(encoders=(), trained_with={"ul2": "a" * 16})
    files = {
        "ul2": embeddings_of("a cat", 3, tmp_path, "a" * 16),
        "byt5": embeddings_of("a cat", 2, tmp_path, "b" * 16),
    }
    sampling = Sampling(height=16, width=32, num_inference_steps=3)
    (made,) = pipe.generate([files], sampling=sampling, seed=4, progress=False)
    assert np.array_equal(made.latent, pipeline()("a cat", seed=4, output_type="latent", **SMALL)[0])
    files["ul2"] = embeddings_of("a cat", 3, tmp_path, "c" * 16)
    with pytest.raises(UserError, match=r"another ul2 encoder \(cccccccccccccccc\).*\(aaaaaaaaaaaaaaaa\)"):
        pipe.generate([files], sampling=sampling)
    del files["ul2"]
    with pytest.raises(UserError, match=r"--text_emb.ul2_dir"):
        pipe.generate([files], sampling=sampling)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"height": 24}, "height=24: give a multiple of 16, such as 32"),
        ({"width": 8}, "width=8: give a multiple of 16, such as 16"),
        ({"height": 112}, "height=112: the transformer's position table ends at 96"),
        ({"width": 144}, "width=144: the transformer's position table ends at 128"),
        ({"num_frames": 33}, "num_frames=33: the transformer's position table ends at 32"),
        ({"num_frames": 0}, "num_frames=0"),
        ({"fps": 0}, "fps=0"),
        ({"num_inference_steps": 0}, "num_sampling_steps=0"),
        ({"guidance_scale": -1.0}, "guidance_scale=-1"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ({"output_type": "avi"}, "output_type='avi': choose np, latent, mp4, gif, png"),
        ({"sample_method": "cubic"}, "sample_method='cubic'"),
        ({"solver": "heun"}, "solver='heun'"),
        ({"seed": [1, 2]}, "2 seeds for 1 prompts"),
        ({"seed": -1}, "seed=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"prompt": []}, "no prompts"),
    ],
)
def test_mistakes_are_told_before_anything_runs(options, words):
    pipe = pipeline()
    with pytest.raises(UserError) as error:
        pipe(**{"prompt": "a", **SMALL, **options})
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not pipe.transformer.calls


def test_every_frame_count_up_to_the_tables_end():
    pipe = pipeline()
    for frames in (1, 7, 8, 9, 31, 32):
        assert len(pipe("a", num_frames=frames, **SMALL)[0]) == frames


@pytest.mark.parametrize(
    "conditioning, options, words",
    [
        ({"unconditional": False}, {"guidance_scale": 7.5}, "guidance_scale=7.5: this transformer was trained without"),
        ({"encoders": ("ul2",)}, {}, "prompts need the text encoder byt5, which the pipeline lacks"),
        ({"encoders": ("ul2",)}, {"guidance_scale": 2.0}, "the pipeline lacks the text encoder byt5"),
        ({"tae": False}, {}, "no autoencoder to decode with"),
    ],
)
def test_what_a_pipeline_cannot_do(conditioning, options, words):
    pipe = pipeline(**conditioning)
    with pytest.raises(UserError, match=words):
        pipe("a", **{**SMALL, **options})
    assert not pipe.transformer.calls


def test_parts_of_another_training_are_refused(monkeypatch):
    monkeypatch.setattr(module, "fingerprint", lambda tae: "f" * 16)
    good = Conditioning(text_lengths=LENGTHS, trained_with={"tae": "f" * 16, "ul2": "a" * 16})
    towers = {"ul2": Encoder("ul2", 3, "a" * 16)}
    TextToVideoPipeline(Transformer(), Tae(), towers, good)
    for name, part in (("tae", "autoencoder"), ("ul2", "text encoder ul2")):
        other = Conditioning(text_lengths=LENGTHS, trained_with={**good.trained_with, name: "e" * 16})
        with pytest.raises(UserError, match=f"{part}: this is .*trained with {'e' * 16}; use the {part}"):
            TextToVideoPipeline(Transformer(), Tae(), towers, other)
    with pytest.raises(UserError, match="text_encoder_ul2: its embeddings have 5 values, the transformer reads 3"):
        TextToVideoPipeline(Transformer(), Tae(), {"ul2": Encoder("ul2", 5)})


def test_nan_on_the_way_is_told():
    with pytest.raises(NumericalAbort, match="sampling step 1 of 3"):
        pipeline(lambda x, level, text: np.nan * x)("a", **SMALL)
    pipe = pipeline()
    pipe.tae = Tae(faulty=True)
    with pytest.raises(NumericalAbort, match="autoencoder gives NaN"):
        pipe("a", **SMALL)


# ---- files


def test_prompts_become_names():
    assert slug("A large, red circle! moving/right") == "A-large-red-circle-moving-right"
    assert slug("1 2 3 4 5 6 7 8 9 10 11 12") == "1-2-3-4-5-6-7-8-9-10"
    assert slug("Ein Bär läuft: 狗在跑") == "Ein-Bär-läuft-狗在跑"
    assert slug("../../etc/passwd") == "etc-passwd" and slug("?!") == slug("") == "empty-prompt"
    assert len(slug("狗" * 500).encode()) <= 180


def test_names_are_never_given_twice(tmp_path):
    namer = Namer(tmp_path, taken=["sheet"])
    names = [namer.stem(name).name for name in ("a", "A", "a", "a-2", "sheet")]
    assert names == ["a", "A-2", "a-3", "a-2-2", "sheet-2"]


def moving(t=10, h=16, w=32):
    """Flat colours, one per frame, that a codec keeps."""
    return np.stack([np.full((h, w, 3), 20 + 20 * i, np.uint8) for i in range(t)])


def test_a_video_file_has_the_frames_at_their_rate(tmp_path):
    (path,) = write_frames(tmp_path / "a.b", moving(), 24)
    assert path.name == "a.b.mp4" and probe(path).fps == 24
    assert np.abs(read_video(path).astype(int) - moving()).max() <= 3


def test_a_gif_lasts_as_long_as_the_video(tmp_path):
    (path,) = write_frames(tmp_path / "a", moving(), 24, "gif")
    with Image.open(path) as picture:
        assert picture.n_frames == 10 and picture.info["loop"] == 0
        total = 0
        for i in range(10):
            picture.seek(i)
            total += picture.info["duration"]
            assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - moving()[i]).max() <= 4
    assert total == 420  # 10 / 24 s, in hundredths


def test_pictures_of_frames_and_a_picture_alone(tmp_path):
    paths = write_frames(tmp_path / "a", moving(3), 16, "png")
    assert [path.name for path in paths] == ["a-0000.png", "a-0001.png", "a-0002.png"]
    for path, frame in zip(paths, moving(3), strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), frame)
    assert [path.name for path in write_frames(tmp_path / "b", moving(1), 16, "mp4")] == ["b.png"]


@pytest.mark.parametrize("kind", ["mp4", "gif", "png"])
def test_a_pipeline_writes_files(tmp_path, kind):
    paths = pipeline()(["a cat", "a cat"], **SMALL, output_type=kind, output_path=tmp_path)
    first, second = {"png": ("-0000.png",) * 2}.get(kind, (f".{kind}",) * 2)
    assert paths == [tmp_path / f"a-cat{first}", tmp_path / f"a-cat-2{second}"]
    assert all(path.is_file() for path in paths)


# ---- a real one, from its folder


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    """Folder of a pipeline with random small networks; only UL2 reads the prompts."""
    import mindspore as ms

    import mg.device

    mg.device.setup("CPU", "graph")
    from mg.models.llama import LlamaConfig, LlamaModel
    from mg.models.tae import PRESETS, TemporalAutoencoder
    from mg.models.tae.loading import fingerprint
    from mg.models.text_encoders import TextEncoder
    from mg.pipelines.pipeline_folder import Parts

    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, max_length=(2, 2, 2),
        text_widths=(("ul2", 64),), qk_norm=True,
    )  # fmt: skip
    network = LlamaModel(config)
    for name, param in network.parameters_and_names():  # the last layers begin at 0: nothing would depend on anything
        noise = stream(1, name).standard_normal(param.shape) * 0.2 + ("norm" in name)
        param.set_data(ms.Tensor(noise.astype(np.float32)))
    tae = TemporalAutoencoder({**PRESETS["tiny"], "ch": 4, "ch_mult": [1, 1, 1, 2]}, sample_deterministic=True, seed=1)
    encoder = TextEncoder.from_pretrained(root / "assets/text/ul2", max_length=24)
    trained_with = {"tae": fingerprint(tae), "ul2": encoder.fingerprint}
    conditioning = Conditioning(text_lengths={"ul2": 20}, trained_with=trained_with)
    path = tmp_path_factory.mktemp("pipeline") / "tiny"
    write_parts(path, Parts(network, conditioning, tae, {"ul2": encoder}))
    return path


def test_a_folder_makes_videos_and_survives_a_round_trip(folder, tmp_path):
    options = {"height": 32, "width": 16, "num_frames": 9, "num_inference_steps": 2, "guidance_scale": 3.0}
    pipe = TextToVideoPipeline.from_pretrained(folder, device="CPU")
    alone = pipe("a red circle", **options, output_type="latent")
    assert alone.shape == (1, 16, 2, 4, 2)
    many = pipe(["a long prompt of quite a few more words than that", "a red circle"], **options, output_type="latent")
    assert np.array_equal(many[1], alone[0]) and not np.array_equal(many[0], alone[0])
    pipe.save_pretrained(tmp_path / "again")
    again = TextToVideoPipeline.from_pretrained(tmp_path / "again", device="CPU")
    for name in ("transformer", "tae"):
        before, after = (dict(getattr(one, name).parameters_and_names()) for one in (pipe, again))
        assert before.keys() == after.keys()
        assert all(np.array_equal(before[key].asnumpy(), after[key].asnumpy()) for key in before)
    assert (again.conditioning, again.scheduler) == (pipe.conditioning, pipe.scheduler)
    # By the formulas, with nothing of the pipeline but its parts: text, guidance, Euler, scaling.
    z = stream(0, "generate.noise", 0).standard_normal((1, 16, 2, 4, 2), np.float32)
    from mindspore import Tensor

    features = [pipe.text_encoders["ul2"].encode([text]) for text in ("a red circle", "")]
    mask = np.concatenate([one.mask[:, :20] for one in features]).astype(np.float32)
    text = np.concatenate([one.embeddings[:, :20] * one.mask[:, :20, None] for one in features])
    level = np.full(2, 1000, np.float32)
    v = pipe.transformer(*map(Tensor, (np.concatenate([z, z]), level, mask, text))).asnumpy()
    z = z + v[1:] + 3 * (v[:1] - v[1:])  # one step from noise to data
    one = pipe("a red circle", **{**options, "num_inference_steps": 1}, output_type="latent")
    np.testing.assert_allclose(one, z, atol=1e-4)
    frames = pipe("a red circle", **{**options, "num_inference_steps": 1})
    pixels = pipe.tae.decode(Tensor(one / pipe.tae.scale_factor + pipe.tae.shift_factor)).asnumpy()[0, :, :9]
    np.testing.assert_array_equal(frames[0], np.rint((np.clip(pixels, -1, 1) + 1) * 127.5).transpose(1, 2, 3, 0))


def edit(path, **changes):
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, **changes}))


def spoil(folder, kind):
    """Do one thing wrong to a folder."""
    from mg.weights import read_weights, write_weights

    if kind == "nan":
        path = folder / "transformer/diffusion_pytorch_model.safetensors"
        tensors = read_weights(path)
        write_weights(path, {**tensors, "final_layer.proj.weight": tensors["final_layer.proj.weight"] * np.nan})
    elif kind == "cut":
        path = folder / "tae/diffusion_pytorch_model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "other tae":
        path = folder / "tae/diffusion_pytorch_model.safetensors"
        tensors = read_weights(path)
        tensors["decoder.conv_in.conv_spat.bias"] = tensors["decoder.conv_in.conv_spat.bias"] + 1
        write_weights(path, tensors)
    elif kind == "other text encoder":
        values = json.loads((folder / "transformer/config.json").read_text())["trained_with"]
        edit(folder / "transformer/config.json", trained_with={**values, "ul2": "0" * 16})
    elif kind == "unknown key":
        edit(folder / "transformer/config.json", colour=1)
    elif kind == "bad value":
        edit(folder / "transformer/config.json", text_lengths={"ul2": "many"})
    elif kind == "unknown tae key":
        edit(folder / "tae/config.json", colour=1)
    elif kind == "bad scheduler":
        edit(folder / "scheduler/scheduler_config.json", sample_method="cubic")
    elif kind == "another class":
        edit(folder / "model_index.json", _class_name="StableDiffusionPipeline")
    elif kind == "no json":
        (folder / "model_index.json").write_text("{")
    elif (folder / kind).is_dir():
        shutil.rmtree(folder / kind)
    else:
        (folder / kind).unlink()


@pytest.mark.parametrize(
    "kind, words",
    [
        ("model_index.json", "model_index.json is missing; give a pipeline folder"),
        ("transformer", "the part transformer lacks transformer/config.json"),
        ("transformer/diffusion_pytorch_model.safetensors", "lacks transformer/diffusion_pytorch_model.safetensors"),
        ("tae", "the part tae lacks tae/config.json"),
        ("text_encoder_ul2", "the part text_encoder_ul2 lacks text_encoder_ul2/config.json"),
        ("scheduler", "the part scheduler lacks scheduler/scheduler_config.json"),
        ("nan", "NaN or infinity in final_layer.proj.weight"),
        ("cut", "damaged or incomplete"),
        ("other tae", "autoencoder: this is "),
        ("other text encoder", "text encoder ul2: this is "),
        ("unknown key", "transformer/config.json: unknown key colour"),
        ("bad value", "transformer/config.json: text_lengths: ul2: 'many'"),
        ("unknown tae key", "tae/config.json: unknown TAE config keys ['colour']"),
        ("bad scheduler", "scheduler_config.json: sample_method='cubic'"),
        ("another class", "a StableDiffusionPipeline, not a TextToVideoPipeline"),
        ("no json", "model_index.json: cannot be read as JSON"),
    ],
)
def test_a_spoilt_folder_is_told_in_one_line(folder, tmp_path, kind, words):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    spoil(copy, kind)
    with pytest.raises(UserError) as error:
        TextToVideoPipeline.from_pretrained(copy, device="CPU")
    assert words in str(error.value) and str(error.value).count("\n") == 0


def test_no_folder_at_all(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        TextToVideoPipeline.from_pretrained(tmp_path / "none", device="CPU")


def test_a_pipeline_without_its_text_encoders(folder):
    pipe = TextToVideoPipeline.from_pretrained(folder, device="CPU", text_encoders=False)
    with pytest.raises(UserError, match="prompts need the text encoder ul2"):
        pipe("a", height=16, width=16, guidance_scale=1.0)


def test_the_config_is_the_fakes_own():
    assert CONFIG.kinds == ("ul2", "byt5")

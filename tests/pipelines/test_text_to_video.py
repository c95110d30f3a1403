"""Videos from prompts: values by hand with stand-ins for the networks."""

import numpy as np
import pytest

import mg.pipelines.text_to_video as module
from mg.dataset.text_npz import write_text_npz
from mg.errors import NumericalAbort, UserError
from mg.models.text_encoders.features import TextFeatures
from mg.pipelines import TextToVideoPipeline
from mg.pipelines.pipeline_folder import Conditioning, SchedulerConfig
from mg.pipelines.sampling import Sampling
from mg.pipelines.text_condition import fitted
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


def test_the_config_is_the_fakes_own():
    assert CONFIG.kinds == ("ul2", "byt5")

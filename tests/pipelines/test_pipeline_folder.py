"""A small real pipeline, from its folder; spoilt folders are told in one line."""

import json
import shutil

import numpy as np
import pytest

from mg.config.generate import GenerateConfig, ModelOptions
from mg.errors import UserError
from mg.models.llama.loading import resized_table
from mg.pipelines import TextToVideoPipeline
from mg.pipelines.generate import load_pipeline
from mg.pipelines.pipeline_folder import Conditioning, SchedulerConfig, read_parts, write_parts
from mg.rng import stream


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


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"guidance_scale": "4"}, "guidance_scale='4': give a number of at least 0"),
        ({"guidance_scale": -1}, "guidance_scale=-1"),
        ({"guidance_scale": True}, "guidance_scale=True"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ({"sigma_min": "1e-5"}, "sigma_min='1e-5': give a number in"),
        ({"sigma_min": 1}, "sigma_min=1: "),
        ({"sample_method": ["linear"]}, "sample_method=['linear']: choose linear, "),
        ({"solver": {}}, "solver={}: choose euler, midpoint"),
        ({"num_inference_steps": "50"}, "num_inference_steps='50'"),
    ],
)
def test_a_scheduler_of_wrong_types_is_told_by_its_key(changes, words):
    with pytest.raises(UserError) as error:
        SchedulerConfig.from_dict(changes)
    assert str(error.value).startswith(words)
    whole = {"sigma_min": 0, "guidance_scale": 4, "_class_name": "FlowMatching"}
    assert SchedulerConfig.from_dict(whole).guidance_scale == 4


def test_no_folder_at_all(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        TextToVideoPipeline.from_pretrained(tmp_path / "none", device="CPU")


def test_a_pipeline_without_its_text_encoders(folder):
    pipe = TextToVideoPipeline.from_pretrained(folder, device="CPU", text_encoders=False)
    with pytest.raises(UserError, match="prompts need the text encoder ul2"):
        pipe("a", height=16, width=16, guidance_scale=1.0)


def options(folder, **model):
    return GenerateConfig(pipeline=str(folder), prompt="a", device="CPU", model=ModelOptions(**model))


def test_position_tables_of_a_pipeline_are_lengthened(folder):
    stored = read_parts(folder).transformer
    longer = load_pipeline(options(folder, max_length=(3, 5, 2))).transformer
    assert stored.config.max_length == (2, 2, 2) and longer.config.max_length == (3, 5, 2)
    before, after = ({name: p.asnumpy() for name, p in net.parameters_and_names()} for net in (stored, longer))
    for axis, length in zip("thw", (3, 5, 2), strict=True):
        name = f"pos_embedding_table_{axis}.embedding_table"
        np.testing.assert_array_equal(after[name], resized_table(before[name], length))
        assert length == len(before[name]) or not np.array_equal(after[name][1], before[name][1])


@pytest.mark.parametrize("model", [{"name": "tiny"}, {"reference": True}])
def test_what_is_for_a_weights_file_is_refused_for_folders(folder, model):
    (name,) = model
    with pytest.raises(UserError, match=f"model.{name}=.*is for a weights file, the config.json of --pipeline .*drop"):
        options(folder, **model)
    own = options(folder, **model, pretrained_model_path=str(folder / "transformer"))
    with pytest.raises(UserError, match=f"model.{name}=.*config.json of --model.pretrained_model_path .*transformer"):
        load_pipeline(own)

"""Parts of a training put together to a pipeline folder."""

import json

import numpy as np
import pytest

import mg.device
from mg.config.make_pipeline import MakePipelineConfig
from mg.errors import UserError
from mg.files import write_json
from mg.models.llama import LlamaConfig, LlamaModel
from mg.models.tae.loading import fingerprint, from_checkpoint
from mg.models.text_encoders import TextEncoder
from mg.pipelines import TextToVideoPipeline
from mg.pipelines.make_pipeline import make_pipeline
from mg.weights import write_weights


@pytest.fixture(scope="module")
def parts(root, weights, tmp_path_factory):
    """Options of the tool for a transformer that was trained with 24 tokens of UL2."""
    mg.device.setup("CPU", "graph")
    folder = tmp_path_factory.mktemp("run") / "transformer"
    config = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, max_length=(2, 2, 2),
        text_widths=(("ul2", 64),),
    )  # fmt: skip
    encoder = TextEncoder.from_pretrained(root / "assets/text/ul2", max_length=24)
    trained_with = {"tae": fingerprint(from_checkpoint(str(weights))), "ul2": encoder.fingerprint}
    told = {"text_lengths": {"ul2": 24}, "unconditional": False, "trained_with": trained_with}
    write_json(folder / "config.json", {**config.to_dict(), **told})
    network = LlamaModel(config, seed=3)
    tensors = {name: param.asnumpy() for name, param in network.parameters_and_names()}
    write_weights(folder / "diffusion_pytorch_model.safetensors", tensors)
    options = {"transformer": str(folder), "tae": str(weights), "ul2": str(root / "assets/text/ul2")}
    return options, tensors


def test_the_parts_come_back_from_the_folder(parts, tmp_path):
    options, tensors = parts
    out = tmp_path / "p"
    make_pipeline(MakePipelineConfig(**options, output_path=str(out), guidance_scale=3.0, num_inference_steps=9))
    pipe = TextToVideoPipeline.from_pretrained(out, device="CPU")
    parameters = pipe.transformer.parameters_and_names()
    assert all(np.array_equal(param.asnumpy(), tensors[name]) for name, param in parameters)
    assert pipe.text_encoders["ul2"].max_length == 24  # found by its fingerprint
    assert (pipe.scheduler.guidance_scale, pipe.scheduler.num_inference_steps) == (3.0, 9)
    assert not pipe.conditioning.unconditional
    assert fingerprint(pipe.tae) == json.loads((out / "transformer/config.json").read_text())["trained_with"]["tae"]


def test_parts_that_do_not_belong_together(parts, root, tmp_path):
    options, _ = parts
    faults = [
        ({"ul2": None}, "--ul2: the transformer reads ul2"),
        ({"ul2": str(root / "assets/text/byt5")}, "--ul2 "),
        ({"tae": str(root / "assets/weights/tae-tiny.safetensors")}, "autoencoder: this is "),
        ({"tae": str(tmp_path / "none.safetensors")}, "--tae "),
        ({"transformer": str(tmp_path)}, f"--transformer {tmp_path}/config.json: missing"),
    ]
    for change, words in faults:
        with pytest.raises(UserError) as error:
            make_pipeline(MakePipelineConfig(**{**options, **change}, output_path=str(tmp_path / "p")))
        assert words in str(error.value) and "\n" not in str(error.value)
        assert not (tmp_path / "p").exists()

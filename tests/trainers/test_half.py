"""FP16 activations in both models: the losses of FP32, and FP32 where it matters.

FP16 stands for mixed precision here: it runs on the CPU, which has no kernels for BF16.
"""

import json
import shutil

import curve_runs
import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, mint

import mg.device
from mg.config.guard import LossScaleConfig
from mg.ops import GroupNorm, Linear, RMSNorm
from mg.weights import read_weights

SCALED = dict(dtype="fp16", loss_scale=LossScaleConfig(init=1024, window=4))


@pytest.fixture(scope="module", params=curve_runs.MODELS)
def half(request, tmp_path_factory):
    """The model, and the trainer that has done its twenty steps."""
    mg.device.setup("CPU", "graph")
    trainer = curve_runs.trainer(request.param, tmp_path_factory.mktemp(request.param), **SCALED)
    trainer.fit()
    return request.param, trainer


@pytest.mark.slow
def test_the_losses_of_twenty_steps_are_those_of_fp32_within_two_percent(half):
    model, trainer = half
    found = np.array(curve_runs.losses(trainer.output_path))
    full = np.array(json.loads(curve_runs.golden_file(model).read_text())["losses"])
    assert trainer.updates == len(found) == len(full) == 20
    print(f"{model}: losses apart by at most {100 * np.abs(found / full - 1).max():.3f} %")
    np.testing.assert_allclose(found, full, rtol=0.02)
    assert (found != full).any()


@pytest.mark.slow
def test_weights_gradients_moments_and_averages_are_fp32(half):
    _, trainer = half
    main = trainer._main
    for held in (main.weights.values(), main._stepper.grads, main._moments().values(), main.averages):
        assert {value.dtype for value in held} == {ms.float32} and len(held) > 10
    for name in ("model", "optimizer", "ema"):
        stored = read_weights(trainer.output_path / "step-00000020" / f"{name}.safetensors")
        assert {value.dtype for value in stored.values()} == {np.dtype(np.float32)}


@pytest.mark.slow
def test_the_loss_scale_survives_a_resume_and_the_bits_are_the_same(half):
    """The run goes on from step 10, in the middle of a window of the scale; the graphs are compiled already."""
    model, trainer = half
    output, copy = trainer.output_path, trainer.output_path.with_name(f"{model}-copy")
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss_scale"] for row in rows] == [1024.0 * 2 ** (step // 4) for step in range(20)]
    shutil.copytree(output, copy)
    for step in (15, 20):
        shutil.rmtree(output / f"step-{step:08d}")
    fresh = curve_runs.trainer(model, output, **SCALED)
    fresh._begin()
    fresh._keeper._release()
    assert fresh._guard.state()["loss_scale"] == {"value": 4096.0, "passed_steps": 2}
    assert trainer.fit()["step"] == 20 and trainer.compilations == 4
    assert curve_runs.losses(output) == curve_runs.losses(copy)
    for step in (15, 20):
        for name in ("model", "optimizer", "ema"):
            file = f"step-{step:08d}/{name}.safetensors"
            assert (output / file).read_bytes() == (copy / file).read_bytes()
    states = [json.loads((folder / "step-00000020" / "state.json").read_text())["guard"] for folder in (output, copy)]
    assert states[0] == states[1] and states[0]["loss_scale"] == {"value": 32768.0, "passed_steps": 0}


@pytest.fixture
def seen(monkeypatch):
    """Types that went through the operators of softmax and RMS norms, by name; and the function that notes more."""
    mg.device.setup("CPU", "pynative")
    found = {}

    def note(name, *values):
        found.setdefault(name, set()).update(value.dtype for value in values)

    def watched(name, plain):
        def call(x, *rest, **options):
            out = plain(x, *rest, **options)
            note(name, x, out)
            return out

        return call

    monkeypatch.setattr(mint.nn.functional, "softmax", watched("softmax", mint.nn.functional.softmax))
    monkeypatch.setattr(mint, "rsqrt", watched("rsqrt", mint.rsqrt))
    return found, note


@pytest.mark.parametrize("model", curve_runs.MODELS)
def test_norms_softmax_and_loss_are_fp32_between_activations_of_fp16(model, seen):
    found, note = seen
    network, loss, source = curve_runs.parts(model, dtype="fp16")
    for _, cell in network.cells_and_names():
        if isinstance(cell, GroupNorm):
            plain = cell.normalise

            def normalise(x, *statistics, plain=plain):
                out = plain(x, *statistics)
                note("group norm", x, *statistics, *out)
                return out

            cell.normalise = normalise
        if isinstance(cell, (GroupNorm, RMSNorm)):
            note("norms hold", *cell.get_parameters())
            cell.register_forward_hook(lambda cell, inputs, out: note("norms return", out))
        elif isinstance(cell, Linear):
            cell.register_forward_hook(lambda cell, inputs, out: note("Linear", out))
    batch = source.batch(0)
    out = loss(*(Tensor(batch[name]) for name in loss.inputs))
    note("loss and terms", *out)
    statistics = {"tae": "group norm", "transformer": "rsqrt"}[model]
    for name in (statistics, "softmax", "norms hold", "loss and terms"):
        assert found[name] == {ms.float32}, name
    assert found["norms return"] == {ms.float16} and ms.float16 in found["Linear"]

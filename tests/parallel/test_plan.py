"""The planner against hand-made sums, the transformer's own parameters, and the reference's published layout."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest

from mg.config.parallel import AXES
from mg.config.plan import DeviceFigures, PlanConfig
from mg.errors import UserError
from mg.models.llama.config import PRESETS
from mg.parallel.dims import ParallelDims
from mg.parallel.plan import candidates, make_plan, table
from mg.parallel.plan_memory import Shares, Weights, activations, block_bytes, memory
from mg.parallel.plan_time import floating_operations, seconds, traffic

TINY = PRESETS["tiny"]
BF16 = {"weights": "bf16", "gradients": "bf16", "moments": "bf16"}
# Of the reference, with position tables of (32, 73, 73).
PARAMETERS = {"1B": 934_170_624, "5B": 4_921_466_880, "30B": 29_303_193_600}


def small(**options):
    return PlanConfig(**{"model": "tiny", "devices": 1, "frames": 32, "size": (128, 128), "text_tokens": 24, **options})


def parts(config, model, **degrees):
    """All that the formulas need of one layout, one video per group of rows."""
    dims = ParallelDims(**degrees)
    tokens = math.prod(model.tokens(*config.latent))
    return config, model, Weights.of(model), dims, Shares.of(config, tokens, dims, 1)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_references(name):
    weights = Weights.of(PRESETS[f"llama-{name}"])
    assert weights.split + weights.whole == PARAMETERS[name]
    assert make_plan(PlanConfig(model=name, devices=1)).parameters == PARAMETERS[name]


def test_the_weights_that_tensor_divides_are_those_of_attention_and_feed_forward():
    weights = Weights.of(TINY)
    assert weights.split == 6 * (8 * 192 * 192 + 3 * 192 * 512)
    assert weights.largest == 6 * 192 * 192
    assert weights.local(2) == weights.split // 2 + weights.whole


def test_the_weights_are_those_of_the_network_itself():
    from mg.models.llama import LlamaModel

    config = replace(TINY, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_key_value_heads=2)
    weights, divided, whole = Weights.of(config), 0, 0
    for name, param in LlamaModel(config).parameters_and_names():
        inside = any(part in name for part in ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.o_proj", ".mlp."))
        if inside and not name.startswith("timestep"):
            divided += param.size
        else:
            whole += param.size
    assert (weights.split, weights.whole) == (divided, whole)


def test_states_are_divided_stage_by_stage():
    count = Weights.of(TINY).local(1)
    found = {}
    for stage in (0, 1, 2, 3):
        degrees = {"data": 4} if stage == 0 else {"zero": 4}
        found[stage] = memory(*parts(small(kept_gradients=False), TINY, **degrees, zero_stage=stage))
    shown = {stage: [m.weights, m.gradients, m.optimizer] for stage, m in found.items()}
    assert shown == {
        0: [4 * count, 4 * count, 8 * count],
        1: [4 * count, 4 * count, 2 * count],
        2: [4 * count, count, 2 * count],
        3: [count, count, 2 * count],
    }
    assert found[3].gathered == 12 * Weights.of(TINY).largest and found[2].gathered == 0
    assert found[0].activations == found[3].activations


def test_options_of_the_states_count():
    count = Weights.of(TINY).local(1)
    plain = memory(*parts(small(), TINY))
    assert plain.kept_gradients == 4 * count and plain.gradients == 4 * count
    averaged = memory(*parts(small(averages=True), TINY))
    assert averaged.optimizer - plain.optimizer == 4 * count
    accumulated = memory(*parts(small(accumulation=2), TINY))  # the sum so far, and the new ones
    assert accumulated.gradients == 8 * count and accumulated.kept_gradients == 0
    narrow = memory(*parts(small(**BF16), TINY))
    assert (narrow.weights, narrow.gradients, narrow.optimizer) == (2 * count, 2 * count, 4 * count)


def test_activations_fall_with_tokens_and_recomputation():
    d, blocks = TINY.hidden_size, TINY.num_hidden_layers
    config, tokens = small(), 4 * 8 * 8
    kept = block_bytes(*(lambda c, m, w, s, x: (c, m, s, x))(*parts(config, TINY)))
    # By hand, BF16 of 2 bytes: between the layers, before the projections, q, k, v and results, feed-forward, text,
    # and the statistics of both softmaxes.
    by_hand = tokens * d * (5 * 2 + 24) + tokens * d * 2 * 2 + tokens * 2 * 12 * d + tokens * 512 * 2 * 4
    by_hand += 24 * d * 2 * 4 + 2 * tokens * 6 * 8 * 4 * 2
    assert kept == by_hand
    recomputed, whole = (
        activations(config, TINY, ParallelDims(), parts(config, TINY)[4])
        for config in (small(), small(recompute=False))
    )
    assert whole - recomputed == pytest.approx((blocks + 1 - 2) * kept - blocks * tokens * d * 2)
    halves = block_bytes(*(lambda c, m, w, s, x: (c, m, s, x))(*parts(config, TINY, sequence=2)))
    text = 24 * d * 2 * 4
    assert halves - text == pytest.approx((kept - text) / 2)


def test_traffic_of_each_kind():
    config, count = small(recompute=False), Weights.of(TINY).local(1)
    tokens, d, blocks = 256, 192, 6

    def sent(**degrees):
        return traffic(*parts(config, TINY, **degrees))

    assert sent().total == 0
    assert sent(data=4).data == 2 * 3 / 4 * count * 4
    assert sent(zero=4, zero_stage=1).zero == 3 / 4 * count * (4 + 4)
    assert sent(zero=4, zero_stage=3).zero == 3 / 4 * count * (4 + 2 * 4)
    assert sent(data=2, zero=2, zero_stage=2).data == 2 * 1 / 2 * count * 4 / 2
    # Ulysses: q, k, v and the result, forth and back; each device sends half of its half.
    ulysses = sent(sequence=2)
    assert ulysses.sequence == blocks * 2 * 4 * (tokens / 2 * d * 2) / 2
    assert ulysses.data == 2 * 1 / 2 * count * 4  # the weights are whole on both
    assert sent(context=2).context == blocks * 2 * 2 * tokens * d * 2 / 2
    pairs = blocks * 2 * 6 * tokens * d * 2 / 2
    assert sent(tensor=2).tensor == pairs + Weights.of(TINY).whole * 4
    assert sent(tensor=2, zero=2, zero_stage=1).tensor == pairs + Weights.of(TINY).whole * 4 / 2
    again = traffic(*parts(small(recompute=True), TINY, sequence=2))
    assert again.sequence == ulysses.sequence * 3 / 2


def test_operations_are_six_per_weight_and_token_and_the_attention():
    config = small(recompute=False)
    linear = 6 * (6 * 192 * 192 + 3 * 192 * 512)  # all but k and v of the text
    text = 6 * 24 * 2 * 192 * 192
    attention = 6 * 2 * 256 * (256 + 24) * 192
    ends = 256 * 2 * 64 * 192 + 24 * 192 * 64
    expected = 6 * (256 * linear + text + attention + ends)
    assert floating_operations(config, TINY, 256) == pytest.approx(expected)
    again = floating_operations(small(), TINY, 256)
    assert again - 6 * ends == pytest.approx((expected - 6 * ends) * 4 / 3)


def test_seconds_follow_the_figures_of_the_device():
    figures = DeviceFigures(tflops=1.0, efficiency=0.5, per_node=2, node_gbps=10.0, network_gbps=1.0, overlap=0.0)
    near = parts(small(device=figures), TINY, sequence=2)
    sent = traffic(*near)
    compute, exchange = seconds(*near[:2], *near[3:], sent)
    assert compute == pytest.approx(floating_operations(*near[:2], 256) / 2 / 0.5e12)
    assert exchange == pytest.approx(sent.total / 10e9)
    far = parts(small(device=figures), TINY, sequence=2, tensor=2)  # sequence reaches over two machines
    sent = traffic(*far)
    _, exchange = seconds(*far[:2], *far[3:], sent)
    assert exchange == pytest.approx((sent.sequence + sent.data) / 1e9 + sent.tensor / 10e9)
    hidden = parts(small(device=replace(figures, overlap=1.0)), TINY, data=2)
    compute, exchange = seconds(*hidden[:2], *hidden[3:], traffic(*hidden))
    needed = traffic(*hidden).data / 10e9
    assert exchange == pytest.approx(max(0.0, needed - compute))


def test_candidates_are_all_that_divide_evenly_and_none_twice():
    config = small(devices=12)
    found = list(candidates(config, TINY, 256))
    assert len(found) == len(set(found))
    for dims in found:
        assert dims.world == 12
        assert 6 % (dims.tensor * dims.sequence) == 0 and 256 % dims.size("tokens") == 0 and 512 % dims.tensor == 0
        assert (dims.zero_stage > 0) <= (dims.size("shard") > 1)
        assert dims.zero == 1 or dims.zero_stage > 0
    assert ParallelDims(data=3, zero=2, sequence=2, zero_stage=3) in found
    assert ParallelDims(data=12) in found
    assert not any(dims.context == 3 for dims in found)  # 256 tokens
    rows = list(candidates(replace(config, batch_size=6), TINY, 256))
    assert {dims.size("batch") for dims in rows} == {3, 6}


def test_the_references_layout_of_30b_on_8_devices_is_found():
    """ZeRO 3 with 8-way sequence parallelism, one video (configs and scripts of the reference)."""
    config = PlanConfig(model="30B", devices=8, batch_size=1, **BF16)
    plan = make_plan(config)
    assert plan.tokens == 73_728
    best = plan.layouts[0]
    assert best.dims == ParallelDims(sequence=8, zero_stage=3) and best.fits
    assert [layout.dims.zero_stage for layout in plan.layouts if layout.fits] == [3] * sum(
        layout.fits for layout in plan.layouts
    )
    # With FP32 weights, gradients and moments nothing fits on eight devices of 64 GB.
    assert not any(layout.fits for layout in make_plan(PlanConfig(model="30B", devices=8, batch_size=1)).layouts)


def test_what_fits_comes_first_and_fastest():
    plan = make_plan(PlanConfig(model="5B", devices=16))
    fits = [layout.fits for layout in plan.layouts]
    assert fits == sorted(fits, reverse=True) and True in fits and False in fits
    rates = [layout.rows_per_second for layout in plan.layouts if layout.fits]
    assert rates == sorted(rates, reverse=True)
    totals = [layout.memory.total for layout in plan.layouts if not layout.fits]
    assert totals == sorted(totals)
    lines = table(plan)
    assert "4,921,466,880 parameters, 73,728 tokens per video (latent 32x96x96)" in lines[0]
    assert len(lines) == 4 + 15 + 1


def test_the_tool_prints_a_table_and_writes_json(root, tmp_path):
    out = tmp_path / "plan.json"
    command = [sys.executable, "tools/plan_parallel.py", "--model", "1B", "--devices", "8", "--frames", "64"]
    result = subprocess.run([*command, "--size", "256", "--top", "2", "--output", str(out)], cwd=root,
                            capture_output=True, text=True, timeout=60)  # fmt: skip
    assert result.returncode == 0, result.stderr
    saved = json.loads(out.read_text())
    assert saved["parameters"] == PARAMETERS["1B"] and saved["tokens"] == 8 * 16 * 16
    assert saved["config"]["size"] == [256, 256]
    best = saved["layouts"][0]
    assert math.prod(best[axis] for axis in AXES) == 8
    row = result.stdout.splitlines()[4].split("|")
    assert row[0].split() == [str(best[axis]) for axis in AXES] + [str(best["zero_stage"])]
    assert float(row[1].split()[6]) == pytest.approx(best["memory"]["total"] / 1e9, abs=0.06)


@pytest.mark.parametrize(("options", "message"), [
    ({"devices": 0}, "devices=0: give at least 1"),
    ({"size": (100, 100)}, r"size=\[100, 100\]: give multiples of 16"),
    ({"zero_stages": (4,)}, r"zero_stages=\[4\]: choose from 0, 1, 2, 3"),
    ({"backend": "cpu"}, "backend=cpu has FP32 only"),
])  # fmt: skip
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        small(**options)


def test_what_nothing_divides_is_refused():
    with pytest.raises(UserError, match="devices=7: no layout divides 6 heads, 256 tokens and batch_size=1 evenly"):
        make_plan(small(devices=7, batch_size=1))
    with pytest.raises(UserError, match="device.tflops=0 must be above 0"):
        DeviceFigures(tflops=0)
    with pytest.raises(UserError, match="the model has 8"):
        make_plan(small(size=(256, 256)))

"""Communication and time of a training step of the transformer, by formula.

A device that exchanges a tensor of V bytes within a group of p sends V (p - 1) / p for an all-gather or a
reduce-scatter (V is the whole tensor), twice that for an all-reduce, and v (p - 1) / p for an all-to-all of its own v
bytes.
"""

from dataclasses import asdict, dataclass

from mg.config.parallel import AXES
from mg.config.plan import BYTES, PlanConfig
from mg.models.llama.config import LlamaConfig
from mg.parallel.dims import UNIONS, ParallelDims
from mg.parallel.plan_memory import Shares, Weights


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes that one device sends in a step, by what they are for."""

    data: float
    """Gradients among copies that hold the same weights."""
    zero: float
    """Weights and gradients among those who divide them."""
    context: float
    """Keys and values."""
    sequence: float
    """Tokens for heads and back."""
    tensor: float
    """Tokens of the layers whose weights are divided, and the gradients of those whose are not."""

    @property
    def total(self) -> float:
        """All together."""
        return sum(asdict(self).values())


def floating_operations(config: PlanConfig, model: LlamaConfig, tokens: int) -> float:
    """Operations for one video, all devices together: a product of matrices is 2 per multiplication."""
    d, f, m = model.hidden_size, model.intermediate_size, config.text_tokens
    kv = model.kv_heads * model.head_dim
    block = tokens * (2 * (2 * d * d + 2 * d * kv) + 2 * 2 * d * d + 2 * 3 * d * f) + m * 2 * 2 * d * kv
    block += 4 * tokens * (tokens + m) * d  # scores and weighted sums
    ends = tokens * 2 * 2 * model.patch_volume * d + m * 2 * d * sum(width for _, width in model.text_widths) / 3
    passes = 4 if config.recompute else 3  # the backward pass has two products for each of the forward's
    return model.num_hidden_layers * block * passes + 3 * ends


def traffic(
    config: PlanConfig, model: LlamaConfig, weights: Weights, dims: ParallelDims, shares: Shares
) -> Traffic:
    """Bytes that one device sends in a step."""
    value, of_weight, of_gradient = (BYTES[name] for name in (config.activations, config.weights, config.gradients))
    count, micro = weights.local(dims.tensor), config.accumulation
    stage, shard = dims.zero_stage, dims.size("shard")
    # Gradients: summed over all that hold the same weights; a divided part has copies along data only.
    if stage == 0:
        data, zero = 2 * _others(dims.size("replica")) * count * of_gradient, 0.0
    else:
        data = 2 * _others(dims.data) * count * of_gradient / shard
        scattered = _others(shard) * count * of_gradient * (micro if stage >= 2 else 1)
        # Stage 3 joins weights for forward and backward, and for forward again; else they are joined once updated.
        times = micro * (3 if config.recompute else 2) if stage == 3 else 1
        gathered = _others(shard) * count * of_weight * times
        zero = scattered + gathered
    # Activations: forward, backward, and forward again where it is recomputed.
    passes = (3 if config.recompute else 2) * micro * model.num_hidden_layers * shares.rows
    d, kv, heads_kept = model.hidden_size, model.kv_heads * model.head_dim, dims.tensor * dims.sequence
    context = passes * _others(dims.context) * 2 * shares.whole * kv / heads_kept * value
    sequence = passes * _others(dims.sequence) * shares.inner * (2 * d + 2 * kv) / dims.tensor * value
    # Three pairs of layers, each gathers its input and scatters its result; whole weights' gradients are summed, by
    # those who own them.
    pairs = passes * 3 * 2 * shares.inner * d * value
    whole = 2 * weights.whole * of_gradient / (shard if stage else 1)
    tensor = _others(dims.tensor) * (pairs + whole)
    return Traffic(data=data, zero=zero, context=context, sequence=sequence, tensor=tensor)


def seconds(
    config: PlanConfig, model: LlamaConfig, dims: ParallelDims, shares: Shares, sent: Traffic
) -> tuple[float, float]:
    """Return the seconds of a step for computation, and those for communication that it does not hide."""
    device = config.device
    operations = floating_operations(config, model, shares.whole) * shares.rows * config.accumulation
    compute = operations / dims.size("tokens") / (device.tflops * 1e12 * device.efficiency)
    spent = {}
    for name, axes in (("data", ("data",) if dims.zero_stage else UNIONS["replica"]), ("zero", UNIONS["shard"]),
                       *((axis, (axis,)) for axis in ("context", "sequence", "tensor"))):  # fmt: skip
        inside = _reach(dims, axes) <= device.per_node
        rate = (device.node_gbps if inside else device.network_gbps) * 1e9
        spent[name] = getattr(sent, name) / rate
    weights = spent["data"] + spent["zero"]
    hidden = min(weights * device.overlap, compute)
    return compute, sum(spent.values()) - hidden


def _others(size: int) -> float:
    return (size - 1) / size


def _reach(dims: ParallelDims, axes: tuple[str, ...]) -> int:
    """Ranks from the first to the last member of a group, both included: beyond a machine's number it leaves it."""
    last = dims.rank({axis: getattr(dims, axis) - 1 for axis in axes if axis in AXES})
    return last + 1

"""Memory of one device in a training step of the transformer, by formula.

On an accelerator a tensor is taken to be freed after its last use, so that the forward pass leaves behind what the
backward pass needs: counted below from the network's source, not measured. On the CPU MindSpore 2.10 was found to keep
most intermediates of forward and backward until the graph has ended, with recomputation, too; their counts are fitted
to measurements and checked on other sizes (benchmarks/plan_memory.py).
"""

import math
from dataclasses import asdict, dataclass

from mg.config.plan import BYTES, PlanConfig
from mg.models.llama.config import LlamaConfig, parameter_shapes
from mg.parallel.dims import ParallelDims

CPU_WIDTHS, CPU_INNER, CPU_SCORES = 75.5, 7.0, 4.0
"""What the CPU keeps of a block: so many tensors of (tokens, hidden_size), (tokens, intermediate_size) and of the
score matrices of both attentions."""
CPU_TRANSPOSED = 2.0
"""And copies of all weights: transposed ones for the products of forward and backward."""

SPLIT = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Layers whose weights tensor parallelism divides; all others are whole on every device."""


@dataclass(frozen=True)
class Weights:
    """Numbers of weights."""

    split: int
    """Of layers that tensor parallelism divides."""
    whole: int
    """Of all others."""
    largest: int
    """Of the largest linear layer."""

    def local(self, tensor: int) -> int:
        """Weights of a device before ZeRO divides them."""
        return self.split // tensor + self.whole

    @classmethod
    def of(cls, config: LlamaConfig) -> "Weights":
        """Count those of a network."""
        sizes = {name: math.prod(shape) for name, shape in parameter_shapes(config).items()}
        split = sum(size for name, size in sizes.items() if name.split(".")[-2] in SPLIT)
        largest = max(size for name, size in sizes.items() if name.endswith(".weight"))
        return cls(split, sum(sizes.values()) - split, largest)


@dataclass(frozen=True)
class Shares:
    """What one device has of a micro-batch: rows, tokens and parts of heads and feed-forward."""

    rows: int
    """Videos."""
    whole: int
    """Tokens of a video, all devices together."""
    inner: int
    """Tokens inside attention projections and feed-forward: divided by context and sequence."""
    outer: int
    """Tokens between them: divided by tensor, too."""
    attended: int
    """Tokens that attend on this device: those of its part of context, the heads being divided instead."""
    text: int
    """Text tokens."""

    @classmethod
    def of(cls, config: PlanConfig, tokens: int, dims: ParallelDims, rows: int) -> "Shares":
        """Divide; the sizes must be divisible."""
        inner = tokens // (dims.context * dims.sequence)
        return cls(rows, tokens, inner, inner // dims.tensor, tokens // dims.context, config.text_tokens)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device at the peak of a step, by what they are for."""

    weights: float
    gradients: float
    optimizer: float
    """Moments, and averages where they are kept."""
    kept_gradients: float
    """Those of the step before."""
    gathered: float
    """Weights and gradients of layers that ZeRO joins for use."""
    activations: float

    @property
    def total(self) -> float:
        """All together."""
        return sum(asdict(self).values())


def memory(config: PlanConfig, model: LlamaConfig, weights: Weights, dims: ParallelDims, shares: Shares) -> Memory:
    """Memory of one device."""
    stage, shard = dims.zero_stage, dims.size("shard")
    count = weights.local(dims.tensor)
    of_weight, of_gradient, of_moment = (BYTES[name] for name in (config.weights, config.gradients, config.moments))
    gradients = count * of_gradient / (shard if stage >= 2 else 1)
    optimizer = count * (2 * of_moment + (4 if config.averages else 0)) / (shard if stage >= 1 else 1)
    # Linear layers are joined one at a time: one in use, one that is fetched meanwhile, and the gradient of one before
    # it is divided. Stage 2 divides gradients when all are there.
    gathered = weights.largest * (2 * of_weight + of_gradient) if stage == 3 else 0
    if shard == 1:
        gathered = 0
    accumulated = gradients if config.accumulation > 1 else 0
    return Memory(
        weights=count * of_weight / (shard if stage >= 3 else 1),
        gradients=gradients + accumulated,
        optimizer=optimizer,
        kept_gradients=gradients if config.kept_gradients and not accumulated else 0,
        gathered=gathered,
        activations=activations(config, model, dims, shares),
    )


def activations(config: PlanConfig, model: LlamaConfig, dims: ParallelDims, shares: Shares) -> float:
    """Bytes of activations at the peak: what the blocks keep, and the work on one of them."""
    kept = block_bytes(config, model, dims, shares)
    if config.backend == "cpu":
        return _cpu_activations(model, dims, shares)
    value = BYTES[config.activations]
    stream = shares.rows * shares.outer * model.hidden_size * value
    if config.recompute:
        # Every block keeps its input; one at a time is whole again, and as much again are its gradients.
        blocks = model.num_hidden_layers * stream + 2 * kept
    else:
        blocks = model.num_hidden_layers * kept + kept
    return blocks + _ends(model, shares, value)


def block_bytes(config: PlanConfig, model: LlamaConfig, dims: ParallelDims, shares: Shares) -> float:
    """Bytes that the forward pass of one block leaves for its backward pass on an accelerator."""
    d, f, value = model.hidden_size, model.intermediate_size, BYTES[config.activations]
    kv = model.kv_heads * model.head_dim
    heads = model.num_attention_heads / (dims.tensor * dims.sequence)
    # Between the layers: input of both norms and of the text's attention, results of self-attention and feed-forward
    # for the gradients of the gates; each norm keeps its input, the normalised and the scaled value in FP32.
    outer = shares.outer * d * (5 * value + 2 * 3 * 4)
    # Inputs of the projections: of self-attention, of the text's attention where tensor gathers them, of feed-forward.
    inner = shares.inner * d * value * (3 if dims.tensor > 1 else 2)
    # q and result, each as projected and with the heads in front, for both attentions; k and v of the first.
    inner += shares.inner * value * (8 * d + 4 * kv) / dims.tensor
    # gate, up, their activation and the product.
    inner += shares.inner * f * value * 4 / dims.tensor
    text = shares.text * kv * value * 4 / dims.tensor
    if dims.context > 1:
        text += 2 * shares.whole * kv * value / (dims.tensor * dims.sequence)  # keys and values of all parts
    scores = 2 * shares.attended * heads * 8 * 4 * 2  # maximum and sum of the softmax, eight FP32 each
    return shares.rows * (outer + inner + text + scores)


def _cpu_activations(model: LlamaConfig, dims: ParallelDims, shares: Shares) -> float:
    """Bytes that the CPU keeps until the end of the gradient's graph, all FP32."""
    d, f = model.hidden_size, model.intermediate_size
    heads = model.num_attention_heads / (dims.tensor * dims.sequence)
    block = CPU_WIDTHS * d * shares.outer + CPU_INNER * f * shares.inner / dims.tensor
    block += CPU_SCORES * heads * shares.attended * (shares.whole + shares.text)
    transposed = CPU_TRANSPOSED * Weights.of(model).local(dims.tensor)
    return 4 * (model.num_hidden_layers * shares.rows * block + transposed) + _ends(model, shares, 4)


def _ends(model: LlamaConfig, shares: Shares, value: int) -> float:
    """Bytes of what comes before and after the blocks: positions, text, latent, noise, state, velocity, target."""
    d = model.hidden_size
    # Every device embeds all tokens and their positions, then takes its own; the last norm is in FP32.
    tokens = shares.rows * d * (shares.whole * (2 * value + 4) + shares.outer * (2 * value + 3 * 4))
    text = shares.rows * shares.text * (sum(width for _, width in model.text_widths) / 3 + 3 * d) * value
    latents = 7 * 4 * shares.rows * shares.whole * model.patch_volume
    return tokens + text + latents

"""Parts of the transformer as several devices compute them; parameters are those of the plain parts, divided."""

import mindspore as ms
import mindspore.ops.operations as prim
import numpy as np
from jaxtyping import Float
from mindspore import Parameter, Tensor, mint, nn, ops

from mg.errors import UserError
from mg.models.llama.modules import Attention, Block, FeedForward, FinalLayer
from mg.ops import Linear, attention, silu
from mg.parallel.collectives import AllGather, AllToAll, GatherAlike, ReduceScatter, Slice
from mg.parallel.groups import Group, Groups
from mg.parallel.held import Part
from mg.parallel.kernels import Gather, Scatter
from mg.parallel.pieces import part_length
from mg.parallel.shards import flat_part

TOKENS = 1
"""Axis of the tokens in (b, n, d)."""


class Parts(dict[int, Part]):
    """Parts of parameters by the parameter's id; one that is not in it is whole."""

    def of(self, param: Parameter) -> Part:
        """Part of one parameter."""
        return self.get(id(param), Part(tuple(param.shape)))


def cut(param: Parameter, axis: int, group: Group, parts: Parts) -> Parameter:
    """Own piece of a parameter along an axis, under the same name.

    Raises:
        UserError: the axis cannot be divided evenly.
    """
    n = param.shape[axis]
    if n % group.size:
        raise UserError(
            f"parallel.{group.name}={group.size} cannot divide {param.name}, {n} along axis {axis}; choose a divisor"
        )
    value = np.split(param.asnumpy(), group.size, axis)[group.index]
    made = Parameter(Tensor(value.copy()), name=param.name, requires_grad=param.requires_grad)
    parts[id(made)] = Part(tuple(param.shape), axis)
    return made


class ParallelLinear(nn.Cell):
    """A linear layer with a part of the outputs or of the inputs, and with weights that may be shared out (stage 3).

    Args:
        plain: the layer; its parameters are taken over.
        axis: of the weight (outputs, inputs) that tensor parallelism divides; 1: the result is summed over the tensor
            group, each device has its own tokens of it; None: the layer is whole.
        groups: of this device.
        parts: takes note of what was divided.
    """

    def __init__(self, plain: Linear, axis: int | None, groups: Groups, parts: Parts) -> None:
        super().__init__(auto_prefix=False)
        tensor = groups["tensor"]
        divides = axis is not None and tensor.size > 1
        self.weight, self.bias = plain.weight, plain.bias
        if divides:
            self.weight = cut(plain.weight, axis, tensor, parts)
            if axis == 0 and plain.bias is not None:
                self.bias = cut(plain.bias, 0, tensor, parts)
        self.product = None
        self.leave = ReduceScatter(tensor, TOKENS) if divides and axis == 1 else None

    def share_out(self, groups: Groups, parts: Parts) -> None:
        """Keep a flat part of the weight alone, and gather it where it is used."""
        shape = tuple(self.weight.shape)
        part = parts.pop(id(self.weight), Part(shape))
        shard = groups["shard"]
        value = flat_part(self.weight.asnumpy(), shard.size, shard.index)
        made = Parameter(Tensor(value), name=self.weight.name, requires_grad=self.weight.requires_grad)
        parts[id(made)] = Part(part.shape, part.axis, flat=True)
        self.weight, self.product = made, GatheredProduct(shape, shard)

    def construct(self, x: Float[Tensor, "b *n i"]) -> Float[Tensor, "b *m o"]:
        weight = self.weight.astype(x.dtype)
        y = mint.nn.functional.linear(x, weight) if self.product is None else self.product(x, weight)
        if self.leave is not None:
            y = self.leave(y)
        return y if self.bias is None else y + self.bias.astype(x.dtype)


class GatheredProduct(nn.Cell):
    """x @ weight^T with a weight whose flat parts are on several devices; gathered anew for the gradient.

    construct(x (..., i), part (k,)) -> (..., o). The gradient of the part is summed over the devices.
    """

    def __init__(self, shape: tuple[int, int], shard: Group) -> None:
        super().__init__(auto_prefix=False)
        self.rows, self.columns = shape
        self.size, self.parts = shape[0] * shape[1], shard.size
        self.length = part_length(self.size, shard.size)
        self.gather, self.scatter = Gather(shard), Scatter(shard)
        self.forth, self.back, self.turned = ops.MatMul(transpose_b=True), ops.MatMul(), ops.MatMul(transpose_a=True)
        self.join, self.cast, self.wait = ops.Concat(1), ops.Cast(), ops.Depend()
        missing = self.parts * self.length - self.size
        self.nothing = Tensor(np.zeros((1, missing), np.float32)) if missing else None

    def whole(self, part: Float[Tensor, " k"]) -> Float[Tensor, "o i"]:
        flat = self.gather(part.reshape(1, -1)).reshape(1, -1)
        return ops.slice(flat, (0, 0), (1, self.size)).reshape(self.rows, self.columns)

    def construct(self, x: Float[Tensor, "*n i"], part: Float[Tensor, " k"]) -> Float[Tensor, "*n o"]:
        y = self.forth(x.reshape(-1, self.columns), self.whole(part))
        return y.reshape(x.shape[:-1] + (self.rows,))

    def bprop(self, x: Tensor, part: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        after = dout.reshape(-1, self.rows)
        # Waiting for the gradient keeps the graph from using the forward pass' weights once more, and holding them.
        weight = self.whole(self.wait(part, after))
        dx = self.back(after, weight).reshape(x.shape)
        row = self.cast(self.turned(after, x.reshape(-1, self.columns)), ms.float32).reshape(1, -1)
        if self.nothing is not None:
            row = self.join((row, self.nothing))
        dpart = self.scatter(row.reshape(self.parts, -1)).reshape(-1)
        return dx, self.cast(dpart, part.dtype)


class ParallelAttention(nn.Cell):
    """Attention whose heads, tokens, keys and values are divided; see `mg.models.llama.modules.Attention`.

    Tensor parallelism: tokens are gathered, each device has some of the heads, and after the last projection its own
    tokens again. Sequence parallelism (Ulysses): between projections and attention, tokens are exchanged for heads.
    Context parallelism: keys and values of all tokens are gathered.

    Args:
        plain: the layer; its parameters are taken over.
        to_itself: tokens attend to each other; False: to a text that every device has.
        groups: of this device.
        parts: takes note of what was divided.
    """

    def __init__(self, plain: Attention, to_itself: bool, groups: Groups, parts: Parts) -> None:
        super().__init__(auto_prefix=False)
        tensor, sequence, context = groups["tensor"], groups["sequence"], groups["context"]
        self.head_dim, self.to_itself = plain.head_dim, to_itself
        _divides(plain.heads, "num_attention_heads", tensor.size * sequence.size, "tensor x sequence")
        _divides(plain.kv_heads, "num_key_value_heads", tensor.size, "tensor")
        self.heads, self.kv_heads = plain.heads // tensor.size, plain.kv_heads // tensor.size
        self.q_proj, self.k_proj, self.v_proj = (
            ParallelLinear(layer, 0, groups, parts) for layer in (plain.q_proj, plain.k_proj, plain.v_proj)
        )
        self.o_proj = ParallelLinear(plain.o_proj, 1, groups, parts)
        self.qk_norm = plain.qk_norm
        if plain.qk_norm:
            self.q_norm, self.k_norm = plain.q_norm, plain.k_norm
        self.transpose = prim.Transpose()
        self.enter = AllGather(tensor, TOKENS) if tensor.size > 1 else None
        exchanges = to_itself and sequence.size > 1
        self.exchange = AllToAll(sequence, 1, 2) if exchanges else None
        self.exchange_back = AllToAll(sequence, 2, 1) if exchanges else None
        # Fewer heads of keys than devices: repeated before the exchange, else after it.
        self.repeats_first = exchanges and self.kv_heads % sequence.size != 0
        self.all_keys = AllGather(context, 2) if to_itself and context.size > 1 else None
        self.all_values = AllGather(context, 2) if to_itself and context.size > 1 else None

    def construct(
        self, x: Float[Tensor, "b n d"], context: Float[Tensor, "b m d"], mask: Float[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b n d"]:
        """Attend from this device's tokens to all tokens, or to the text."""
        if self.enter is not None:
            x = self.enter(x)
        source = x if self.to_itself else context
        b, n, _ = x.shape
        q = self.q_proj(x).reshape(b, n, self.heads, self.head_dim)
        k = self.k_proj(source).reshape(b, -1, self.kv_heads, self.head_dim)
        v = self.v_proj(source).reshape(b, -1, self.kv_heads, self.head_dim)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (self.transpose(y, (0, 2, 1, 3)) for y in (q, k, v))  # (b, heads, n, head_dim)
        if self.repeats_first:
            k, v = self._repeated(k, q.shape[1]), self._repeated(v, q.shape[1])
        if self.exchange is not None:
            q, k, v = self.exchange(q), self.exchange(k), self.exchange(v)  # fewer heads, more tokens
        if self.all_keys is not None:
            k, v = self.all_keys(k), self.all_values(v)
        if k.shape[1] != q.shape[1]:
            k, v = self._repeated(k, q.shape[1]), self._repeated(v, q.shape[1])
        out = attention(q, k, v, mask)
        if self.exchange_back is not None:
            out = self.exchange_back(out)
        return self.o_proj(self.transpose(out, (0, 2, 1, 3)).reshape(b, n, self.heads * self.head_dim))

    def _repeated(self, x: Float[Tensor, "b g m k"], heads: int) -> Float[Tensor, "b h m k"]:
        b, g, m, k = x.shape
        return mint.cat([x.reshape(b, g, 1, m, k)] * (heads // g), 2).reshape(b, heads, m, k)


class ParallelFeedForward(nn.Cell):
    """SwiGLU whose inner width is divided by tensor parallelism; see `mg.models.llama.modules.FeedForward`."""

    def __init__(self, plain: FeedForward, groups: Groups, parts: Parts) -> None:
        super().__init__(auto_prefix=False)
        self.gate_proj = ParallelLinear(plain.gate_proj, 0, groups, parts)
        self.up_proj = ParallelLinear(plain.up_proj, 0, groups, parts)
        self.down_proj = ParallelLinear(plain.down_proj, 1, groups, parts)
        self.enter = AllGather(groups["tensor"], TOKENS) if groups.dims.tensor > 1 else None

    def construct(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        if self.enter is not None:
            x = self.enter(x)
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class ParallelBlock(Block):
    """A block on this device's tokens; the first one cuts them out of all, every one its positions.

    Args:
        plain: the block; its parameters are taken over.
        first: it is given the tokens of all devices.
        groups: of this device.
        parts: takes note of what was divided.
    """

    def __init__(self, plain: Block, first: bool, groups: Groups, parts: Parts) -> None:
        nn.Cell.__init__(self, auto_prefix=False)
        self.scale_shift_table = plain.scale_shift_table
        self.self_attn = ParallelAttention(plain.self_attn, True, groups, parts)
        self.cross_attn = ParallelAttention(plain.cross_attn, False, groups, parts)
        self.mlp = ParallelFeedForward(plain.mlp, groups, parts)
        self.input_layernorm, self.post_attention_layernorm = plain.input_layernorm, plain.post_attention_layernorm
        divides = groups.dims.size("tokens") > 1
        self.own_positions = Slice(groups["tokens"], TOKENS) if divides else None
        self.own_tokens = Slice(groups["tokens"], TOKENS) if divides and first else None

    def construct(
        self,
        x: Float[Tensor, "b n d"],
        positions: Float[Tensor, "b m d"],
        text: Float[Tensor, "b k d"],
        mask: Float[Tensor, "b k"],
        modulation: Float[Tensor, "b 6 d"],
    ) -> Float[Tensor, "b n d"]:
        """See the plain block."""
        if self.own_tokens is not None:
            x = self.own_tokens(x)
        if self.own_positions is not None:
            positions = self.own_positions(positions)
        return super().construct(x, positions, text, mask, modulation)


class ParallelFinalLayer(FinalLayer):
    """The last layer on this device's tokens, its results joined on every device."""

    def __init__(self, plain: FinalLayer, groups: Groups) -> None:
        nn.Cell.__init__(self, auto_prefix=False)
        self.scale_shift_table, self.input_layernorm, self.proj = (
            plain.scale_shift_table, plain.input_layernorm, plain.proj,
        )  # fmt: skip
        self.all_tokens = GatherAlike(groups["tokens"], TOKENS)

    def construct(self, x: Float[Tensor, "b n d"], timestep: Float[Tensor, "b d"]) -> Float[Tensor, "b m k"]:
        """See the plain layer."""
        return self.all_tokens(super().construct(x, timestep))


def _divides(value: int, name: str, degree: int, shown: str) -> None:
    if value % degree:
        raise UserError(f"{name}={value} cannot be divided by parallel {shown} = {degree}; choose a divisor of it")

"""Configurations of the Movie Gen transformer (Movie Gen, section 3.1.3) and the shapes that follow from them."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from mg.errors import UserError
from mg.models.text_encoders.config import KINDS

Shape = tuple[int, ...]
Size = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class LlamaConfig:
    """Sizes of one transformer; positions and patches are (time, height, width), in latent frames and positions."""

    hidden_size: int
    """Width of the tokens, a multiple of num_attention_heads."""
    intermediate_size: int
    """Width inside the feed-forward parts."""
    num_hidden_layers: int
    """Number of blocks."""
    num_attention_heads: int
    """Heads of every attention."""
    num_key_value_heads: int | None = None
    """Heads of keys and values, a divisor of num_attention_heads; none: as many."""
    in_channels: int = 16
    """Channels of the latent."""
    patch_size: Size = (1, 2, 2)
    """Latent positions that make one token."""
    max_length: Size = (32, 73, 73)
    """Length of the position tables, in patches."""
    text_widths: tuple[tuple[str, int], ...] = (("ul2", 4096), ("metaclip", 1280), ("byt5", 1472))
    """Text encoders and the size of their embeddings, in the order UL2, MetaCLIP, ByT5; any of them."""
    rms_norm_eps: float = 1e-5
    """Added to the mean square in every norm."""
    qk_norm: bool = False
    """Normalise queries and keys per head; not in the paper, steadies training at high learning rates."""
    patch_embedder: Literal["linear", "conv3d"] = "linear"
    """Layout of the patch embedding's weight: (d, c*p*q*r) or (d, c, p, q, r); the same numbers."""
    attention_bias: bool = False
    """Give the four projections of every attention a bias; no other layer ever has one."""

    def __post_init__(self) -> None:
        """Check types, ranges and what goes together."""
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "in_channels"):
            _require(_is_count(getattr(self, name)), name, getattr(self, name), "a whole number of at least 1")
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            "hidden_size", self.hidden_size, f"a multiple of num_attention_heads={self.num_attention_heads}",
        )  # fmt: skip
        kv = self.num_key_value_heads
        _require(kv is None or (_is_count(kv) and self.num_attention_heads % kv == 0),
                 "num_key_value_heads", kv, f"a divisor of num_attention_heads={self.num_attention_heads}")  # fmt: skip
        for name in ("patch_size", "max_length"):
            value = getattr(self, name)
            sound = isinstance(value, tuple | list) and len(value) == 3 and all(map(_is_count, value))
            _require(sound, name, list(value) if isinstance(value, tuple) else value, "three numbers of at least 1")
        pairs = isinstance(self.text_widths, tuple | list) and all(
            isinstance(pair, tuple | list) and len(pair) == 2 and _is_count(pair[1]) for pair in self.text_widths
        )
        _require(pairs, "text_widths", self.text_widths, "pairs of a text encoder and its width, such as ['ul2', 4096]")
        kinds = [kind for kind, _ in self.text_widths]
        _require(
            bool(kinds) and kinds == [kind for kind in KINDS if kind in kinds],
            "text_widths", kinds, "some of ul2, metaclip, byt5, each once, in this order",
        )  # fmt: skip
        eps = self.rms_norm_eps
        _require(isinstance(eps, int | float) and eps is not True and eps > 0, "rms_norm_eps", eps, "a number above 0")
        for name in ("qk_norm", "attention_bias"):
            _require(isinstance(getattr(self, name), bool), name, getattr(self, name), "true or false")
        _require(self.patch_embedder in ("linear", "conv3d"), "patch_embedder", self.patch_embedder, "linear or conv3d")

    @property
    def kinds(self) -> tuple[str, ...]:
        """Text encoders, in the order of their tokens."""
        return tuple(kind for kind, _ in self.text_widths)

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def patch_volume(self) -> int:
        """Numbers per token of the latent."""
        return self.in_channels * math.prod(self.patch_size)

    def tokens(self, t: int, h: int, w: int) -> Size:
        """Tokens along time, height and width of a latent of t x h x w.

        Raises:
            UserError: not a multiple of the patch, or beyond the position tables.
        """
        return count_tokens((t, h, w), self.patch_size, self.max_length)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON can hold them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LlamaConfig":
        """Read a mapping of field names, as `to_dict` gives it.

        Raises:
            UserError: unknown or missing keys, or values out of range.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UserError(f"unknown keys of the transformer's configuration: {unknown}; known are {sorted(known)}")
        plain = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        if "text_widths" in plain:
            pairs = plain["text_widths"]
            pairs = pairs.items() if isinstance(pairs, Mapping) else pairs
            inner = isinstance(pairs, str) or not isinstance(pairs, Iterable)  # refused by the class, with its name
            plain["text_widths"] = pairs if inner else tuple(tuple(p) if isinstance(p, list) else p for p in pairs)
        try:
            return cls(**plain)
        except TypeError as error:
            raise UserError(f"configuration of the transformer: {error}") from error


def count_tokens(size: Size, patch: Size, most: Size) -> Size:
    """Tokens along each axis of a latent; see `LlamaConfig.tokens`."""
    for name, length, side, rows in zip("thw", size, patch, most, strict=True):
        shown = "x".join(map(str, size))
        if length < 1 or length % side:
            raise UserError(f"latent of {shown}: {name}={length} is no multiple of the patch {side}; change the size")
        if length // side > rows:
            raise UserError(
                f"latent of {shown}: {name}={length} needs {length // side} positions, the model has {rows}; choose a "
                "smaller size or a model with a longer table (max_length)"
            )
    return size[0] // patch[0], size[1] // patch[1], size[2] // patch[2]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise UserError(f"{name}={value!r} must be {rule}")


_1B = LlamaConfig(hidden_size=1536, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16)

PRESETS: dict[str, LlamaConfig] = {
    "llama-1B": _1B,
    "llama-5B": replace(
        _1B, hidden_size=3072, intermediate_size=8192, num_hidden_layers=32, num_attention_heads=24
    ),
    "llama-30B": replace(
        _1B, hidden_size=6144, intermediate_size=16384, num_hidden_layers=48, num_attention_heads=48
    ),
    "tiny": LlamaConfig(
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        max_length=(4, 8, 8),
        text_widths=(("ul2", 64), ("metaclip", 64), ("byt5", 64)),
        qk_norm=True,
    ),
}
"""`llama-1B`, `llama-5B`, `llama-30B`: the sizes of the reference, the last the paper's. `tiny`: small enough to train
on two CPU cores, for the three tiny text encoders of this project."""


def parameter_shapes(config: LlamaConfig) -> dict[str, Shape]:
    """Name and shape of every parameter of `LlamaModel(config)`, in its order; nothing is allocated."""
    return dict(_named_shapes(config))


def count_parameters(config: LlamaConfig) -> int:
    """Number of weights of `LlamaModel(config)`."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def _named_shapes(config: LlamaConfig) -> Iterator[tuple[str, Shape]]:
    d = config.hidden_size
    for i in range(config.num_hidden_layers):
        yield from _layer_shapes(f"layers.{i}", config)
    yield "final_layer.scale_shift_table", (1, 2, d)
    yield "final_layer.input_layernorm.weight", (d,)
    yield "final_layer.proj.weight", (config.patch_volume, d)
    for axis, length in zip("thw", config.max_length, strict=True):
        yield f"pos_embedding_table_{axis}.embedding_table", (length, d)
    if config.patch_embedder == "conv3d":
        yield "latent_embedder.proj.weight", (d, config.in_channels, *config.patch_size)
    else:
        yield "latent_embedder.proj.weight", (d, config.patch_volume)
    yield "timestep_embedder.mlp.0.weight", (d, 256)
    yield "timestep_embedder.mlp.2.weight", (d, d)
    yield "adaLN_modulation.1.weight", (6 * d, d)
    for kind, width in config.text_widths:
        yield f"text_projector.{kind}_linear.weight", (d, width)
        yield f"text_projector.{kind}_layernorm.weight", (d,)


def _layer_shapes(name: str, config: LlamaConfig) -> Iterator[tuple[str, Shape]]:
    d, f = config.hidden_size, config.intermediate_size
    kv = config.kv_heads * config.head_dim
    yield f"{name}.scale_shift_table", (1, 6, d)
    for part in ("self_attn", "cross_attn"):
        for projection, (rows, columns) in {"q": (d, d), "k": (kv, d), "v": (kv, d), "o": (d, d)}.items():
            yield f"{name}.{part}.{projection}_proj.weight", (rows, columns)
            if config.attention_bias:
                yield f"{name}.{part}.{projection}_proj.bias", (rows,)
        if config.qk_norm:
            yield f"{name}.{part}.q_norm.weight", (config.head_dim,)
            yield f"{name}.{part}.k_norm.weight", (config.head_dim,)
    yield f"{name}.mlp.gate_proj.weight", (f, d)
    yield f"{name}.mlp.up_proj.weight", (f, d)
    yield f"{name}.mlp.down_proj.weight", (d, f)
    yield f"{name}.input_layernorm.weight", (d,)
    yield f"{name}.post_attention_layernorm.weight", (d,)

"""Tensors of foreign checkpoints to and from the temporal autoencoder: names and numpy arrays, no network is built.

Three formats meet here: the TAE's own state (`parameter_shapes`), the image autoencoder of diffusers (`inflate`) and
the reference's checkpoints, which carry unused time-embedding tensors (`export_reference`, `drop_dead`).
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mg.errors import UserError
from mg.models.tae.config import TaeConfig
from mg.rng import stream

Shape = tuple[int, ...]

PREFIXES = ("autoencoder.", "_backbone.")
"""Name parts that training wrappers leave in checkpoints; they are removed wherever they stand in a name."""

DEAD_CHANNELS = 512
"""Width of the time embedding the reference's residual blocks project but never use."""

INIT_SEED = 0
"""Seed of the random start of the temporal attention: the same image VAE always inflates to the same TAE."""

DEAD_TENSORS = (r".*\.temb_proj\.(weight|bias)",)
"""Names (regular expressions) of the reference's unused tensors."""

_DEAD = re.compile(rf"{DEAD_TENSORS[0]}$")
_TEMPORAL = re.compile(r"\.(conv_temp|downsample_temp\.conv|upsample_temp\.conv|attn_1\.1\.\w+)\.\w+$")


@dataclass(frozen=True)
class Report:
    """What `inflate` did: tensor names of the TAE (inflated, initialised) and of the image VAE (skipped)."""

    inflated: tuple[str, ...]
    initialised: tuple[str, ...]
    skipped: tuple[str, ...]
    num_parameters: int

    def __str__(self) -> str:
        return (
            f"{len(self.inflated)} tensors inflated, {len(self.initialised)} initialised, {len(self.skipped)} skipped; "
            f"{self.num_parameters:,} parameters"
        )


# ---------------------------------------------------------------------------------------------- names and shapes


def parameter_shapes(config: Mapping[str, Any], dead: bool = False) -> dict[str, Shape]:
    """Name and shape of every parameter of `TemporalAutoencoder(config=config)`, in the network's order.

    `dead=True` adds the reference's unused `temb_proj` tensors. Raises ValueError for an invalid config.
    """
    checked = TaeConfig.from_mapping(config)
    named = [*_encoder(checked), *_decoder(checked), *_quant_convs(checked)]
    return {name: shape for name, shape in named if dead or not _DEAD.match(name)}


def _encoder(config: TaeConfig) -> Iterator[tuple[str, Shape]]:
    widths = [config.ch * mult for mult in config.ch_mult]
    yield from _conv("encoder.conv_in", config.in_channels, config.ch, 3)
    channels = config.ch
    for level, width in enumerate(widths):
        base = f"encoder.down.{level}"
        for block in range(config.num_res_blocks):
            yield from _res_block(f"{base}.block.{block}", channels, width)
            channels = width
        if level < len(widths) - 1:
            yield from _weight_bias(f"{base}.downsample_spat.conv", (width, width, 3, 3))
        if level in config.temporal_downsample_level:
            yield from _weight_bias(f"{base}.downsample_temp.conv", (width, width, 1, 3))
    yield from _mid("encoder.mid", channels, config)
    yield from _norm("encoder.norm_out", channels)
    yield from _conv("encoder.conv_out", channels, 2 * config.z_channels, 3)


def _decoder(config: TaeConfig) -> Iterator[tuple[str, Shape]]:
    widths = [config.ch * mult for mult in config.ch_mult]
    yield from _conv("decoder.conv_in", config.z_channels, widths[-1], 3)
    yield from _mid("decoder.mid", widths[-1], config)
    for level, width in enumerate(widths):
        base = f"decoder.up.{level}"
        # The decoder walks from the last level to level 0, so a level's input comes from the level after it.
        channels = widths[min(level + 1, len(widths) - 1)]
        for block in range(config.num_res_blocks + 1):
            yield from _res_block(f"{base}.block.{block}", channels, width)
            channels = width
        if level > 0:
            yield from _weight_bias(f"{base}.upsample_spat.conv", (width, width, 3, 3))
        if level in config.temporal_upsample_level:
            yield from _weight_bias(f"{base}.upsample_temp.conv", (width, width, 1, 3))
    yield from _norm("decoder.norm_out", widths[0])
    yield from _conv("decoder.conv_out", widths[0], config.out_ch, 3)


def _quant_convs(config: TaeConfig) -> Iterator[tuple[str, Shape]]:
    moments = 2 * config.z_channels
    if config.use_quant_conv:
        yield from _conv("quant_conv", moments, moments, 1)
    if config.use_post_quant_conv:
        yield from _conv("post_quant_conv", config.z_channels, config.z_channels, 1)


def _res_block(name: str, channels: int, width: int) -> Iterator[tuple[str, Shape]]:
    yield from _norm(f"{name}.norm1", channels)
    yield from _conv(f"{name}.conv1", channels, width, 3)
    yield from _weight_bias(f"{name}.temb_proj", (width, DEAD_CHANNELS))
    yield from _norm(f"{name}.norm2", width)
    yield from _conv(f"{name}.conv2", width, width, 3)
    if channels != width:
        yield from _conv(f"{name}.nin_shortcut", channels, width, 1)


def _mid(name: str, channels: int, config: TaeConfig) -> Iterator[tuple[str, Shape]]:
    yield from _res_block(f"{name}.block_1", channels, channels)
    yield from _norm(f"{name}.attn_1.0.norm", channels)
    for part in ("q", "k", "v", "proj_out"):
        yield from _weight_bias(f"{name}.attn_1.0.{part}", (channels, channels, 1, 1))
    if config.attn_type == "vanilla":  # "spat_only" has no temporal attention
        yield from _norm(f"{name}.attn_1.1.norm", channels)
        for part in ("to_q", "to_k", "to_v", "proj_out"):
            yield from _weight_bias(f"{name}.attn_1.1.{part}", (channels, channels))
    yield from _res_block(f"{name}.block_2", channels, channels)


def _conv(name: str, channels: int, width: int, kernel: int) -> Iterator[tuple[str, Shape]]:
    yield from _weight_bias(f"{name}.conv_spat", (width, channels, kernel, kernel))
    yield from _weight_bias(f"{name}.conv_temp", (width, width, 1, kernel))


def _weight_bias(name: str, shape: Shape) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]


def _norm(name: str, channels: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.gamma", (channels,)
    yield f"{name}.beta", (channels,)


# ------------------------------------------------------------------------------- image autoencoder of diffusers

_CONV_PARTS = r"conv1|conv2|conv_in|conv_out|conv_shortcut|quant_conv|post_quant_conv"
# Attention had other names (query, proj_attn, ...) in files written by early releases of diffusers.
_ATTENTION_PARTS = {
    **{"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"},
    **{"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"},
}

_VAE_CONFIG_KEYS = {
    "norm_num_groups": "norm_groups",
    "scaling_factor": "scaling_factor",
    "shift_factor": "shift_factor",
}


def tae_name(vae_name: str, num_levels: int) -> str:
    """The TAE's name for a tensor of diffusers' AutoencoderKL with `num_levels` resolutions.

    A name the rules do not know comes back in a form that no TAE parameter has.
    """
    name = re.sub(r"\.down_blocks\.(\d+)\.", r".down.\1.", vae_name)
    # diffusers counts up_blocks in the order they run, the TAE by resolution (0 = full size).
    name = re.sub(r"\.up_blocks\.(\d+)\.", lambda found: f".up.{num_levels - 1 - int(found[1])}.", name)
    name = re.sub(r"\.mid_block\.resnets\.(\d+)\.", lambda found: f".mid.block_{int(found[1]) + 1}.", name)
    name = re.sub(r"\.resnets\.(\d+)\.", r".block.\1.", name)
    name = re.sub(r"\.(down|up)samplers\.0\.conv\.", r".\1sample_spat.conv.", name)
    name = re.sub(r"\.mid_block\.attentions\.0\.", ".mid.attn_1.0.", name)
    name = re.sub(r"(?<=\.attn_1\.0\.)(.+)(?=\.\w+$)", lambda found: _ATTENTION_PARTS.get(found[1], found[1]), name)
    name = re.sub(rf"(^|\.)({_CONV_PARTS})\.(weight|bias)$", r"\1\2.conv_spat.\3", name)
    name = name.replace(".conv_shortcut.", ".nin_shortcut.").replace(".conv_norm_out.", ".norm_out.")
    name = name.replace(".attn_1.0.group_norm.", ".attn_1.0.norm.")
    name = re.sub(r"(\.norm(?:1|2|_out)?)\.weight$", r"\1.gamma", name)
    return re.sub(r"(\.norm(?:1|2|_out)?)\.bias$", r"\1.beta", name)


def infer_config(
    vae: Mapping[str, np.ndarray], preset: Mapping[str, Any], vae_config: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """`preset` with the sizes of an image VAE: ch, ch_mult, num_res_blocks, z_channels, in_channels and out_ch.

    What tensors do not tell (norm groups, scaling, shift) is taken from `vae_config`, the content of diffusers'
    config.json, if given; the norm groups are 32 otherwise, as in every Stable Diffusion. With another number of levels
    than the preset's, every level that halves space also halves time. Raises UserError if the tensors are not those of
    a diffusers AutoencoderKL.
    """
    try:
        ch, in_channels = vae["encoder.conv_in.weight"].shape[:2]
        z_channels = vae["decoder.conv_in.weight"].shape[1]
        out_ch = vae["decoder.conv_out.weight"].shape[0]
        num_levels = 1 + max(_indices(vae, r"encoder\.down_blocks\.(\d+)\."))
        num_res_blocks = 1 + max(_indices(vae, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."))
        widths = [vae[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in range(num_levels)]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"not the tensors of a diffusers AutoencoderKL ({error}); give the `vae` folder of Stable Diffusion 3.5"
        ) from error
    if not ch or any(width % ch for width in widths):
        raise UserError(f"channel widths {widths} are not multiples of the first convolution's {ch}: not convertible")
    config = dict(preset, ch=ch, ch_mult=[width // ch for width in widths], num_res_blocks=num_res_blocks)
    config.update(z_channels=z_channels, in_channels=in_channels, out_ch=out_ch, norm_groups=32)
    for theirs, ours in _VAE_CONFIG_KEYS.items():
        if (vae_config or {}).get(theirs) is not None:
            config[ours] = vae_config[theirs]
    if num_levels != len(preset["ch_mult"]):
        config["temporal_downsample_level"] = list(range(num_levels - 1))
        config["temporal_upsample_level"] = list(range(num_levels - 1, 0, -1))
    return config


def _indices(names: Mapping[str, np.ndarray], pattern: str) -> list[int]:
    return [int(found[1]) for found in map(re.compile(pattern).match, names) if found]


def inflate(
    vae: Mapping[str, np.ndarray], config: Mapping[str, Any], ignore: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], Report]:
    """TAE tensors that encode and decode every frame of a still video exactly as the image VAE does (Movie Gen, 3.1.1).

    Spatial tensors are the VAE's. Temporal convolutions pass their middle frame through, the temporal attention adds
    nothing at first (zero output projection; queries, keys and values start from noise keyed by the tensor's name).
    VAE names that match a regex of `ignore` are skipped. Raises one UserError that lists every VAE tensor without a
    place in the TAE, every TAE tensor without a source and every tensor of the wrong shape.
    """
    shapes = parameter_shapes(config)
    num_levels = len(config["ch_mult"])
    skipped = tuple(name for name in vae if any(re.search(pattern, name) for pattern in ignore))
    tensors: dict[str, np.ndarray] = {}
    unmapped, misshaped = [], []
    for source in (name for name in vae if name not in skipped):
        target = tae_name(source, num_levels)
        if target not in shapes or target in tensors or _TEMPORAL.search(target):
            unmapped.append(source)
            continue
        array = vae[source]
        if shapes[target] == (*array.shape, 1, 1):  # a linear layer is a 1x1 convolution
            array = array.reshape(shapes[target])
        if array.shape != shapes[target]:
            misshaped.append(f"{source} {vae[source].shape}, expected {shapes[target]}")
        tensors[target] = array
    missing = [name for name in shapes if name not in tensors and not _TEMPORAL.search(name)]
    _refuse(unmapped, missing, misshaped)

    initialised = tuple(name for name in shapes if name not in tensors)
    tensors.update((name, _initial(name, shapes[name])) for name in initialised)
    ordered = {name: tensors[name] for name in shapes}
    inflated = tuple(name for name in shapes if name not in set(initialised))
    num_parameters = sum(math.prod(shape) for shape in shapes.values())
    return ordered, Report(inflated, initialised, skipped, num_parameters)


def _initial(name: str, shape: Shape) -> np.ndarray:
    """The start of a temporal tensor: one that leaves every frame as it is."""
    if name.endswith(".gamma"):
        return np.ones(shape, np.float32)
    if name.endswith((".beta", ".bias")) or name.endswith(".attn_1.1.proj_out.weight"):
        return np.zeros(shape, np.float32)
    if ".attn_1.1." in name:
        noise = stream(INIT_SEED, name).standard_normal(shape, np.float32)
        return noise / np.float32(math.sqrt(shape[1]))
    return identity_taps(shape[0], shape[-1])


def identity_taps(channels: int, kernel: int) -> np.ndarray:
    """Temporal kernel (channels, channels, 1, kernel) that passes every frame through unchanged."""
    weight = np.zeros((channels, channels, 1, kernel), np.float32)
    weight[:, :, 0, kernel // 2] = np.eye(channels, dtype=np.float32)
    return weight


def _refuse(unmapped: Sequence[str], missing: Sequence[str], misshaped: Sequence[str]) -> None:
    kinds = {"unmapped": unmapped, "missing": missing, "mis-shaped": misshaped}
    found = [f"{len(names)} {kind}: {_listing(names)}" for kind, names in kinds.items() if names]
    if found:
        raise UserError(f"tensors do not fit the TAE config; {'; '.join(found)}; check the source and the config")


def _listing(names: Sequence[str], limit: int = 20) -> str:
    return ", ".join(names[:limit]) + (f", and {len(names) - limit} more" if len(names) > limit else "")


# ------------------------------------------------------------------------------------ checkpoints of the reference


def drop_dead(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors of a reference checkpoint under the TAE's own names: wrapper prefixes and unused tensors removed.

    Raises UserError if two tensors end up with the same name.
    """
    plain: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        short = name
        for prefix in PREFIXES:
            short = short.replace(prefix, "")
        if _DEAD.match(short):
            continue
        if short in plain:
            raise UserError(f"checkpoint holds the tensor {short} twice (again as {name}); keep one of them")
        plain[short] = array
    return plain


def export_reference(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The TAE's tensors plus the unused (zero) ones that the reference's loader expects, in its order.

    The inverse is `drop_dead`. Raises one UserError that lists unexpected, missing and mis-shaped tensors.
    """
    plain = drop_dead(tensors)
    shapes = parameter_shapes(config, dead=True)
    unmapped = [name for name in plain if name not in shapes]
    missing = [name for name in shapes if name not in plain and not _DEAD.match(name)]
    misshaped = [
        f"{name} {array.shape}, expected {shapes[name]}"
        for name, array in plain.items()
        if name in shapes and array.shape != shapes[name]
    ]
    _refuse(unmapped, missing, misshaped)
    return {
        name: np.zeros(shape, np.float32) if _DEAD.match(name) else plain[name] for name, shape in shapes.items()
    }

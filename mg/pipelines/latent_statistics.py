"""Scaling and shift of an autoencoder's latents, measured on data and stored with its weights."""

from dataclasses import replace
from typing import Any

import numpy as np

from mg import device
from mg.config.latent_statistics import LatentStatisticsConfig
from mg.errors import UserError
from mg.files import write_json
from mg.models.tae import TemporalAutoencoder
from mg.models.tae.loading import metadata_of
from mg.pipelines.encode_latents import load_tae, measure_videos, videos_of
from mg.pipelines.latent_moments import LatentMoments
from mg.weights import read_metadata, read_weights, write_weights


def latent_statistics(config: LatentStatisticsConfig, network: TemporalAutoencoder | None = None) -> dict[str, Any]:
    """Measure latents; write the weights with the new factors and a report where they are wanted.

    Args:
        config: what to measure.
        network: an autoencoder that is loaded; None to load that of the config.

    Returns:
        scaling_factor (1 / standard deviation) and shift_factor (mean), which give (z - shift) * scaling mean 0 and
        standard deviation 1; "stored": those that the weights had; mean and std, "channels": of each channel; "values":
        their number; counts of videos, shapes, and the first videos that were skipped.

    Raises:
        UserError: bad options, list or weights, or latents that do not vary.
        NoGoodClip: not one video could be used.
    """
    items, cut = videos_of(config.video_data)
    if config.max_items is not None and config.max_items < len(items):
        items = [items[i] for i in np.linspace(0, len(items) - 1, config.max_items).round().astype(int)]
    if network is None:
        device.setup(config.device, config.mode)
        network = load_tae(config.tae)
    moments, done = measure_videos(items, cut, network, config.dataloader)
    scaling, shift = factors_of(moments, config.samples)
    stds = moments.stds(config.samples)
    report = {
        "scaling_factor": scaling,
        "shift_factor": shift,
        "stored": {"scaling_factor": float(network.scale_factor), "shift_factor": float(network.shift_factor)},
        "mean": moments.mean,
        "std": moments.std(config.samples),
        "samples": config.samples,
        "values": moments.count * len(stds),
        "channels": [{"mean": float(m), "std": float(s)} for m, s in zip(moments.means, stds, strict=True)],
        **done,
    }
    if config.write is not None:
        store(config.tae.pretrained, config.write, network, (scaling, shift), config.write_dtype)
    if config.report is not None:
        write_json(config.report, report)
    return report


def factors_of(moments: LatentMoments, samples: bool = True) -> tuple[float, float]:
    """Return scaling_factor and shift_factor, to six digits: data say no more.

    Raises:
        UserError: all latents are alike, as those of an untrained network of zeros.
    """
    std = moments.std(samples)
    if not std > 1e-12:
        raise UserError("the latents do not vary: there is no factor that brings them to standard deviation 1")
    return float(f"{1 / std:.6g}"), float(f"{moments.mean:.6g}")


def store(
    source: str, target: str, network: TemporalAutoencoder, factors: tuple[float, float], dtype: str = "fp32"
) -> None:
    """Write the weights of a file into another one (or over it), with other factors in their configuration.

    Args:
        source: weights; the tensors keep their names.
        target: .safetensors or .ckpt.
        network: the autoencoder with these weights.
        factors: scaling_factor and shift_factor.
        dtype: "fp32", "fp16" or "bf16".

    Raises:
        UserError: the target cannot be written.
    """
    settings = replace(network.config, scaling_factor=factors[0], shift_factor=factors[1])
    write_weights(target, read_weights(source), {**read_metadata(source), **metadata_of(settings)}, dtype=dtype)

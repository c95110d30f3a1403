"""Temporal autoencoder: video to latent and back."""

from mg.models.tae.config import PRESETS, TAE_CONFIG, TaeConfig
from mg.models.tae.network import TemporalAutoencoder

__all__ = ["PRESETS", "TAE_CONFIG", "TaeConfig", "TemporalAutoencoder"]

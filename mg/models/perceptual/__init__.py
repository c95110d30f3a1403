"""Perceptual distance of pictures (LPIPS)."""

from mg.models.perceptual.lpips import Lpips, from_weights

__all__ = ["Lpips", "from_weights"]

"""Figures of merit; the value range is always an argument, never assumed."""

from mg.metrics.psnr import psnr, psnr_frames
from mg.metrics.ssim import ssim

__all__ = ["psnr", "psnr_frames", "ssim"]

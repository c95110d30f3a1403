"""Figures of merit; the value range is always an argument, never assumed."""

from mg.metrics.lpips import lpips, lpips_frames
from mg.metrics.psnr import psnr, psnr_frames
from mg.metrics.ssim import ssim

__all__ = ["lpips", "lpips_frames", "psnr", "psnr_frames", "ssim"]

"""The other half of the training step's paired runs: objective, clipping, AdamW and moving average in eager PyTorch.

It is written as a competent user would: the optimizer's fused kernel, foreach kernels for norm and average.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch_tae import TorchTAE

from mg.config.tae_train import TaeLossConfig
from mg.config.trainer import OptimizerConfig


def objective(
    network: TorchTAE, video: Tensor, mask: Tensor, noise: Tensor, config: TaeLossConfig, time_compress: int = 8
) -> Tensor:
    """Mean over valid frames of the reconstruction error, plus weighted KL per pixel value; the latent is sampled.

    Args:
        network: the autoencoder.
        video: (b, 3, t, h, w); h and w are multiples of the network's compression.
        mask: (b, t), 1 for a valid frame.
        noise: standard normal, of the latent's shape.
        config: weights; there is no outlier penalty here.
        time_compress: frames per latent frame.
    """
    b, c, t, h, w = video.shape
    mean, logvar = network.encode(video)
    reconstruction = network.decode(mean + torch.exp(0.5 * logvar) * noise)[:, :, :t]
    difference = reconstruction - video
    error = difference.square() if config.reconstruction == "l2" else difference.abs()
    frames = mask.sum().clamp(min=1.0)
    rec = (error.mean((1, 3, 4)) * mask).sum() / frames
    padded = torch.nn.functional.pad(mask, (0, -t % time_compress))
    valid = padded.reshape(b, -1, time_compress).amax(-1)  # a latent frame is valid when one of its frames is
    per_position = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar)
    kl = (per_position.sum((1, 3, 4)) * valid).sum() / (frames * c * h * w)
    return rec + config.kl_weight * kl


class TorchTraining:
    """A network with its optimizer and averages; `step` does one update."""

    def __init__(
        self,
        network: TorchTAE,
        loss: TaeLossConfig,
        optimizer: OptimizerConfig,
        ema_decay: float,
        time_compress: int = 8,
    ) -> None:
        """Start from the present weights."""
        self.network, self.loss, self.time_compress = network, loss, time_compress
        self.limit, self.ema_decay = optimizer.clip_grad_norm, ema_decay
        self.params = list(network.parameters())
        self.averages = [param.detach().clone() for param in self.params]
        self.optimizer = torch.optim.AdamW(
            self.params, optimizer.lr, optimizer.betas, optimizer.eps, optimizer.weight_decay, fused=True
        )
        self.updates = 0

    def step(self, batch: Mapping[str, np.ndarray]) -> tuple[float, float]:
        """Update weights and averages with one batch, unless loss or norm is not finite; returns both."""
        tensors = [torch.from_numpy(batch[name]) for name in ("video", "mask", "noise")]
        self.optimizer.zero_grad(set_to_none=True)
        loss = objective(self.network, *tensors, self.loss, self.time_compress)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.params, self.limit or float("inf"))
        if torch.isfinite(loss) and torch.isfinite(norm):
            self.optimizer.step()
            self.updates += 1
            decay = min(self.ema_decay, (1 + self.updates) / (10 + self.updates))
            with torch.no_grad():
                torch._foreach_lerp_(self.averages, [param.detach() for param in self.params], 1.0 - decay)
        return loss.item(), norm.item()

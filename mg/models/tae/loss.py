"""The autoencoder's training objective: reconstruction, KL and outlier penalty (Movie Gen, 3.1.1)."""

from typing import Literal

import mindspore as ms
from jaxtyping import Float
from mindspore import Tensor, mint, nn

from mg.models.tae.network import TemporalAutoencoder


def masked_mean(per_frame: Float[Tensor, "b t"], mask: Float[Tensor, "b t"]) -> Float[Tensor, ""]:
    """Mean over the valid frames; 0 when there is none."""
    return (per_frame * mask).sum() / mint.clamp(mask.sum(), 1.0, None)


def kl_per_pixel(mean: Tensor, logvar: Tensor, weight: Tensor, values_per_frame: int, frames: Tensor) -> Tensor:
    """KL divergence to a standard normal, summed over the valid latent, per pixel value of the video.

    Both terms of the objective are divided by the number of pixel values, so that a KL weight means the same as in an
    objective that sums both over the frame.
    """
    per_position = 0.5 * (mean * mean + mint.exp(logvar) - 1.0 - logvar)
    return (per_position.sum((1, 3, 4)) * weight).sum() / (frames * values_per_frame)


def outlier_penalty(z: Float[Tensor, "b z t h w"], r: float) -> Float[Tensor, "b t"]:
    """How far latent vectors lie beyond r standard deviations of their frame, mean over positions (Movie Gen, eq. 1).

    `mean over (h, w) of max(||z - mean(z)|| - r ||std(z)||, 0)`, norms over channels, statistics over positions.
    """
    centred = z - z.mean((3, 4), keep_dims=True)
    distance = mint.sqrt((centred * centred).sum(1) + 1e-12)  # (b, t, h, w)
    spread = mint.sqrt((centred * centred).mean((3, 4)).sum(1) + 1e-12)  # (b, t): norm of the channels' std
    return mint.nn.functional.relu(distance - r * spread[:, :, None, None]).mean((2, 3))


class TaeLoss(nn.Cell):
    """Mean over valid frames of the reconstruction error plus weighted KL and outlier penalty.

    Args:
        network: the autoencoder to train.
        reconstruction: `l1` or `l2`, per pixel value.
        kl_weight: weight of the KL term.
        outlier_weight: weight of the outlier penalty, 0 leaves it out (1e5 in the paper).
        outlier_r: standard deviations beyond which a latent vector is an outlier.
    """

    inputs = ("video", "mask", "noise")

    def __init__(
        self,
        network: TemporalAutoencoder,
        reconstruction: Literal["l1", "l2"] = "l1",
        kl_weight: float = 1e-6,
        outlier_weight: float = 0.0,
        outlier_r: float = 3.0,
    ) -> None:
        super().__init__(auto_prefix=False)
        if reconstruction not in ("l1", "l2"):
            raise ValueError(f"reconstruction={reconstruction!r}: choose l1 or l2")
        self.network = network
        self.squared = reconstruction == "l2"
        self.kl_weight, self.outlier_weight, self.outlier_r = kl_weight, outlier_weight, outlier_r
        self.time_compress = network.time_compress
        self.terms = ("rec", "kl", "outlier") if outlier_weight else ("rec", "kl")

    def latent_mask(self, mask: Float[Tensor, "b t"]) -> Float[Tensor, "b t8"]:
        """A latent frame is valid when one of its frames is."""
        b, t = mask.shape
        missing = -t % self.time_compress
        if missing:
            mask = mint.cat((mask, mint.zeros((b, missing), dtype=ms.float32)), 1)
        # Not max(-1): in PyNative that is a pair of values and indices.
        return mint.clamp(mask.reshape(b, -1, self.time_compress).sum(-1), 0.0, 1.0)

    def construct(
        self, video: Float[Tensor, "b 3 t h w"], mask: Float[Tensor, "b t"], noise: Float[Tensor, "b z t8 h8 w8"]
    ) -> tuple[Tensor, ...]:
        """Return (loss, number of valid frames, *terms)."""
        reconstruction, z, mean, logvar = self.network.construct(video, noise)
        error = reconstruction - video
        error = error * error if self.squared else mint.abs(error)
        frames = mint.clamp(mask.sum(), 1.0, None)
        rec = masked_mean(error.mean((1, 3, 4)), mask)
        valid = self.latent_mask(mask)
        _, c, _, h, w = video.shape
        kl = kl_per_pixel(mean, logvar, valid, c * h * w, frames)
        loss = rec + self.kl_weight * kl
        if self.outlier_weight:
            outlier = masked_mean(outlier_penalty(z, self.outlier_r), valid)
            return loss + self.outlier_weight * outlier, mask.sum(), rec, kl, outlier
        return loss, mask.sum(), rec, kl

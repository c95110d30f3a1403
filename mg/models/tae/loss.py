"""The autoencoder's training objective: reconstruction, perceptual, adversarial, KL, outliers (Movie Gen, 3.1.1)."""

from collections.abc import Callable, Mapping

import mindspore as ms
import mindspore.ops.operations as prim
import numpy as np
from jaxtyping import Float, Int
from mindspore import Tensor, mint, nn

from mg.models.discriminator.loss import Judge
from mg.models.discriminator.losses import adaptive_weight, adversarial_loss, clip_mean, weighted_mean
from mg.models.tae.network import TemporalAutoencoder
from mg.ops.conv import FoldTime


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


def _absolute(error: Tensor) -> Tensor:
    return mint.abs(error)


def _square(error: Tensor) -> Tensor:
    return error * error


def _charbonnier(error: Tensor) -> Tensor:
    return mint.sqrt(error * error + CHARBONNIER_EPS**2)


CHARBONNIER_EPS = 1e-3
RECONSTRUCTION: Mapping[str, Callable[[Tensor], Tensor]] = {
    "l1": _absolute, "l2": _square, "charbonnier": _charbonnier,
}  # fmt: skip
"""Reconstruction errors per pixel value by name; charbonnier is sqrt(error^2 + CHARBONNIER_EPS^2), a smooth l1."""


def draw_frames(rng: np.random.Generator, mask: Float[np.ndarray, "b t"], count: int) -> Int[np.ndarray, "b k"]:
    """Draw min(count, t) valid frames per clip, none twice before all have been drawn; every frame is as likely."""
    b, t = mask.shape
    rows = np.zeros((b, min(count, t)), np.int32)
    for row, valid in zip(rows, mask, strict=True):
        frames = np.flatnonzero(valid)
        if len(frames):
            row[:] = rng.permutation(frames)[np.arange(len(row)) % len(frames)]
    return rows


class TaeLoss(nn.Cell):
    """Mean over valid frames of reconstruction, perceptual and adversarial error, weighted KL and outlier penalty.

    Frames of mask 0 count nowhere and have no gradient. The adversarial term takes part where the input `adversarial`
    is 1-d; a graph for a 0-d one does not contain it. With an adaptive weight it is multiplied by the ratio of the
    gradients of reconstruction (with perceptual error) and of the adversarial error at the decoder's last weight.
    Terms: `rec`, `kl`, and where they are used `outlier`, `perceptual`, `adversarial`, `adaptive`, without weights.

    Args:
        network: the autoencoder to train.
        reconstruction: one of RECONSTRUCTION, per pixel value.
        kl_weight: weight of the KL term.
        outlier_weight: weight of the outlier penalty, 0 leaves it out (1e5 in the paper).
        outlier_r: standard deviations beyond which a latent vector is an outlier.
        perceptual: distance of pictures in [-1, 1], (n, 3, h, w) twice to (n,); None leaves it out.
        perceptual_weight: weight of the perceptual error.
        perceptual_frames: frames per clip that are compared, drawn by `draw_frames`; 0: all.
        judge: what shows videos to a discriminator; None leaves the adversarial term out.
        adversarial: one of ADVERSARIAL.
        adversarial_weight: weight of the adversarial term.
        adaptive_limit: largest adaptive weight; 0 leaves the adversarial weight as it is.
    """

    def __init__(
        self,
        network: TemporalAutoencoder,
        reconstruction: str = "l1",
        kl_weight: float = 1e-6,
        outlier_weight: float = 0.0,
        outlier_r: float = 3.0,
        *,
        perceptual: nn.Cell | None = None,
        perceptual_weight: float = 1.0,
        perceptual_frames: int = 0,
        judge: Judge | None = None,
        adversarial: str = "hinge",
        adversarial_weight: float = 0.1,
        adaptive_limit: float = 0.0,
    ) -> None:
        super().__init__(auto_prefix=False)
        if reconstruction not in RECONSTRUCTION:
            raise ValueError(f"reconstruction={reconstruction!r}: choose {', '.join(RECONSTRUCTION)}")
        self.network = network
        self.error = RECONSTRUCTION[reconstruction]
        self.kl_weight, self.outlier_weight, self.outlier_r = kl_weight, outlier_weight, outlier_r
        self.perceptual, self.perceptual_weight = perceptual, perceptual_weight
        self.judge, self.adversarial_weight, self.adaptive_limit = judge, adversarial_weight, adaptive_limit
        self.generator_loss = adversarial_loss(adversarial).generator
        self.picks_frames = perceptual is not None and perceptual_frames > 0
        self.fold = FoldTime()
        self.pick = prim.BatchMatMul()  # the gradient of mint.matmul does not compile for all sizes of 1
        self.inputs = ("video", "mask", "latent_mask", "noise")
        self.terms = ("rec", "kl", "outlier") if outlier_weight else ("rec", "kl")
        if perceptual is not None:
            self.terms = (*self.terms, "perceptual")
        if self.picks_frames:
            self.inputs = (*self.inputs, "perceptual_frames")
        if judge is not None:
            self.inputs = (*self.inputs, *judge.inputs, "adversarial")
            self.terms = (*self.terms, "adversarial", "adaptive") if adaptive_limit else (*self.terms, "adversarial")
        self.fidelity_slope = ms.value_and_grad(self.fidelity, 0, has_aux=True)
        self.deception_slope = ms.value_and_grad(self.deception, 0)

    def fidelity(
        self, made: Float[Tensor, "b 3 t h w"], video: Float[Tensor, "b 3 t h w"], mask: Float[Tensor, "b t"],
        picks: tuple[Int[Tensor, "b k"], ...],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weighted sum of reconstruction and perceptual error, then both of them."""
        rec = masked_mean(self.error(made - video).mean((1, 3, 4)), mask)
        if self.perceptual is None:
            return rec, rec, rec
        b, c, t, h, w = video.shape
        ours, theirs, weights = self.fold(made), self.fold(video), mask  # (b*t, c, h, w)
        if self.picks_frames and t > 1:
            chosen = picks[0]
            k = chosen.shape[1]
            rows = (chosen.reshape(b, k, 1) == Tensor(np.arange(t, dtype=np.int32).reshape(1, 1, t))).astype(ms.float32)
            ours = self.pick(rows, ours.reshape(b, t, c * h * w)).reshape(b * k, c, h, w)
            theirs = self.pick(rows, theirs.reshape(b, t, c * h * w)).reshape(b * k, c, h, w)
            weights = mint.broadcast_to(mask.sum(1).reshape(b, 1) / k, (b, k))
        each = self.perceptual(ours, theirs).reshape(weights.shape)
        perceptual = (each * weights).sum() / mint.clamp(mask.sum(), 1.0, None)
        return rec + self.perceptual_weight * perceptual, rec, perceptual

    def deception(self, made: Float[Tensor, "b 3 t h w"], mask: Float[Tensor, "b t"], places: tuple) -> Tensor:
        """How badly the made video deceives the discriminator, mean over valid frames."""
        logits, valid, weights = self.judge(made, mask, *places)
        return weighted_mean(clip_mean(self.generator_loss(logits), valid), weights)

    def balanced(
        self, made: Tensor, seen: Tensor, video: Tensor, mask: Tensor, picks: tuple, places: tuple
    ) -> tuple[Tensor, ...]:
        """Return the pixels' loss with the adaptive weight, rec, perceptual, adversarial and that weight.

        The gradients with respect to the reconstruction are taken here, once: the loss handed on is linear in it, with
        them as coefficients.
        """
        fixed = ms.ops.stop_gradient(made)
        (fidelity, rec, perceptual), faithful = self.fidelity_slope(fixed, video, mask, picks)
        adversarial, deceiving = self.deception_slope(fixed, mask, places)
        seen = ms.ops.stop_gradient(seen)
        ratio = adaptive_weight(
            self.network.last_gradient(seen, faithful), self.network.last_gradient(seen, deceiving), self.adaptive_limit
        )
        factor = self.adversarial_weight * ratio
        slope = ms.ops.stop_gradient(faithful + factor * deceiving)
        linear = (slope * made).sum()
        value = ms.ops.stop_gradient(fidelity + factor * adversarial - linear)
        return value + linear, rec, perceptual, adversarial, ratio

    def construct(
        self,
        video: Float[Tensor, "b 3 t h w"],
        mask: Float[Tensor, "b t"],
        latent_mask: Float[Tensor, "b t8"],
        noise: Float[Tensor, "b z t8 h8 w8"],
        *rest: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return (loss, number of valid frames, *terms)."""
        first = 1 if self.picks_frames else 0
        picks, places = rest[:first], rest[first:-1]
        takes_part = self.judge is not None and len(rest[-1].shape) > 0
        zero = mint.zeros((), dtype=ms.float32)
        adversarial, ratio = zero, zero
        if takes_part and self.adaptive_limit:
            made, z, mean, logvar, seen = self.network.traced(video, noise)
            pixels, rec, perceptual, adversarial, ratio = self.balanced(made, seen, video, mask, picks, places)
        else:
            made, z, mean, logvar = self.network.construct(video, noise)
            pixels, rec, perceptual = self.fidelity(made, video, mask, picks)
            if takes_part:
                adversarial = self.deception(made, mask, places)
                pixels = pixels + self.adversarial_weight * adversarial
        frames = mint.clamp(mask.sum(), 1.0, None)
        _, c, _, h, w = video.shape
        kl = kl_per_pixel(mean, logvar, latent_mask, c * h * w, frames)
        loss, terms = pixels + self.kl_weight * kl, (rec, kl)
        if self.outlier_weight:
            # A clip counts as much as it has frames, not latents: accumulated batches are weighted by frames.
            each = (outlier_penalty(z, self.outlier_r) * latent_mask).sum(1) / mint.clamp(latent_mask.sum(1), 1.0, None)
            outlier = weighted_mean(each, mask.sum(1))
            loss, terms = loss + self.outlier_weight * outlier, (*terms, outlier)
        if self.perceptual is not None:
            terms = (*terms, perceptual)
        if self.judge is not None:
            terms = (*terms, adversarial, ratio) if self.adaptive_limit else (*terms, adversarial)
        return loss, mask.sum(), *terms

"""The objective of a discriminator, and what it tells a generator."""

from collections.abc import Sequence

import mindspore as ms
from jaxtyping import Float
from mindspore import Tensor, mint, nn

from mg.models.discriminator.losses import adversarial_loss, clip_mean, lecam, weighted_mean
from mg.models.discriminator.network import PatchDiscriminator
from mg.models.discriminator.tubelets import cut_tubelets
from mg.ops.layout import SwapFrames


def _mean(values: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
    return weighted_mean(clip_mean(values, valid), weights)


class Judge(nn.Cell):
    """Shows videos to a discriminator: whole, or tubelets at given places.

    Args:
        discriminator: whose parameters these stay.
        tubelets: cuts per clip, 0 for whole clips.
        tubelet_size: frames, height and width of a cut.
    """

    def __init__(
        self, discriminator: PatchDiscriminator, tubelets: int = 0, tubelet_size: tuple[int, int, int] = (8, 64, 64)
    ) -> None:
        super().__init__(auto_prefix=False)
        self.discriminator = discriminator
        self.tubelets, self.size = tubelets, tuple(tubelet_size)
        self.inputs = ("tubelets",) if tubelets else ()
        self.swap = SwapFrames()

    def show(
        self, video: Float[Tensor, "b c t h w"], mask: Float[Tensor, "b t"], places: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the frames to judge (m, t, c, h, w), their mask (m, t), and the weight of each of the m (m,)."""
        x = video if video.shape[2] == 1 else self.swap(video)
        b, c, t, h, w = video.shape
        x, weights = x.reshape(b, t, c, h, w), mask.sum(1)
        if self.tubelets == 0:
            return x, mask, weights
        x, cut_mask = cut_tubelets(x, mask, places[0], self.size)
        share = mint.broadcast_to(weights.reshape(b, 1) / self.tubelets, (b, self.tubelets))
        return x, cut_mask, share.reshape(-1)

    def construct(
        self, video: Float[Tensor, "b c t h w"], mask: Float[Tensor, "b t"], *places: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (m, t2, h2, w2), which of their frames are valid (m, t2), and the weight of each clip (m,)."""
        x, mask, weights = self.show(video, mask, places)
        logits, valid = self.discriminator(x, mask)
        return logits, valid, weights


class DiscriminatorLoss(nn.Cell):
    """Mean over valid frames of an adversarial loss on real and made videos, with LeCAM and R1.

    The videos are made by `generator`, which gets no gradient. A clip counts as much as it has valid frames. R1 is the
    squared norm of the gradient of the sum of a clip's logits with respect to the clip, per logit (Mescheder et al.
    2018; for one logit per clip it is theirs). Terms: `real` and `fake`, the mean logits, `accuracy`, the share of
    logits on their right side of 0, and `lecam` and `r1` without their weights where these are not 0.

    Args:
        generator: construct(video, *made_of) -> made videos of the same shape, or a tuple that begins with them.
        judge: the discriminator and what it is shown.
        name: one of `ADVERSARIAL`.
        made_of: names of the generator's further inputs in a batch.
        lecam_weight: 0 is off.
        r1_weight: 0 is off; gamma / 2 in the paper.
        r1_every: the penalty of a step that has one is multiplied by this number.
    """

    def __init__(
        self,
        generator: nn.Cell,
        judge: Judge,
        name: str,
        made_of: Sequence[str] = ("noise",),
        lecam_weight: float = 0.0,
        r1_weight: float = 0.0,
        r1_every: int = 1,
    ) -> None:
        super().__init__(auto_prefix=False)
        self.generator, self.judge = generator, judge
        functions = adversarial_loss(name)
        self.real_loss, self.fake_loss = functions.real, functions.fake
        self.lecam_weight, self.r1_weight, self.r1_factor = lecam_weight, r1_weight, r1_weight * r1_every
        self.made = len(made_of)
        self.places = len(judge.inputs)
        self.inputs = ("video", "mask", *made_of, *judge.inputs)
        self.terms = ("real", "fake", "accuracy")
        if lecam_weight:
            self.inputs, self.terms = (*self.inputs, "lecam_real", "lecam_fake", "lecam_on"), (*self.terms, "lecam")
        if r1_weight:
            self.inputs, self.terms = (*self.inputs, "r1"), (*self.terms, "r1")
        self.gradient = ms.grad(self._total, 0)

    def _total(self, x: Tensor, mask: Tensor) -> Tensor:
        logits, valid = self.judge.discriminator(x, mask)
        return (logits.sum((2, 3)) * valid).sum()

    def _penalty(self, x: Tensor, mask: Tensor, weights: Tensor, valid: Tensor, patches: int) -> Tensor:
        slope = self.gradient(x, mask)  # (m, t, c, h, w)
        logits = mint.clamp(valid.sum(1), 1.0, None) * patches
        return weighted_mean((slope * slope).sum((1, 2, 3, 4)) / logits, weights)

    def construct(
        self, video: Float[Tensor, "b c t h w"], mask: Float[Tensor, "b t"], *rest: Tensor
    ) -> tuple[Tensor, ...]:
        """Return (loss, number of valid frames, *terms)."""
        made_of, places = rest[: self.made], rest[self.made : self.made + self.places]
        extra = rest[self.made + self.places :]
        made = self.generator.construct(video, *made_of)
        fake_video = ms.ops.stop_gradient(made[0] if isinstance(made, tuple) else made)
        x, x_mask, weights = self.judge.show(video, mask, places)
        y, _, _ = self.judge.show(fake_video, mask, places)
        real, valid = self.judge.discriminator(x, x_mask)
        fake, _ = self.judge.discriminator(y, x_mask)

        loss = _mean(self.real_loss(real) + self.fake_loss(fake), valid, weights)
        right = 0.5 * ((real > 0).astype(ms.float32) + (fake < 0).astype(ms.float32))
        terms = (_mean(real, valid, weights), _mean(fake, valid, weights), _mean(right, valid, weights))
        if self.lecam_weight:
            above, below = lecam(real, fake, extra[0], extra[1])
            kept = extra[2] * _mean(above + below, valid, weights)
            loss, terms = loss + self.lecam_weight * kept, (*terms, kept)
        if self.r1_weight:
            r1 = mint.zeros((), dtype=ms.float32)
            if len(extra[-1].shape) > 0:
                r1 = self._penalty(x, x_mask, weights, valid, real.shape[2] * real.shape[3])
                loss = loss + self.r1_factor * r1
            terms = (*terms, r1)
        return loss, mask.sum(), *terms

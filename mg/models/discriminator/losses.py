"""Adversarial losses as functions of logits, LeCAM, and the adaptive weight; all of them plain formulas."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mindspore as ms
from jaxtyping import Float
from mindspore import Tensor, mint

Elementwise = Callable[[Tensor], Tensor]


def clip_mean(values: Float[Tensor, "b t h w"], mask: Float[Tensor, "b t"]) -> Float[Tensor, " b"]:
    """Mean over the valid logits of each clip; 0 for a clip without any."""
    return (values.mean((2, 3)) * mask).sum(1) / mint.clamp(mask.sum(1), 1.0, None)


def weighted_mean(per_clip: Float[Tensor, " b"], weights: Float[Tensor, " b"]) -> Float[Tensor, ""]:
    """Mean over clips weighted by their numbers of valid frames; 0 when there are none."""
    return (per_clip * weights).sum() / mint.clamp(weights.sum(), 1.0, None)


def softplus(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """log(1 + exp(x))."""
    return ms.ops.softplus(x)


def _hinge_real(real: Tensor) -> Tensor:
    return 0.5 * mint.nn.functional.relu(1.0 - real)


def _hinge_fake(fake: Tensor) -> Tensor:
    return 0.5 * mint.nn.functional.relu(1.0 + fake)


def _half_softplus_minus(real: Tensor) -> Tensor:
    return 0.5 * softplus(-real)


def _half_softplus(fake: Tensor) -> Tensor:
    return 0.5 * softplus(fake)


def _minus(fake: Tensor) -> Tensor:
    return -fake


def _softplus_minus(logits: Tensor) -> Tensor:
    return softplus(-logits)


@dataclass(frozen=True)
class AdversarialLoss:
    """The three functions of one adversarial loss, element by element on logits."""

    real: Elementwise
    """Discriminator, real videos."""
    fake: Elementwise
    """Discriminator, made videos."""
    generator: Elementwise
    """Generator, made videos."""


ADVERSARIAL: Mapping[str, AdversarialLoss] = {
    "hinge": AdversarialLoss(_hinge_real, _hinge_fake, _minus),
    "vanilla": AdversarialLoss(_half_softplus_minus, _half_softplus, _minus),
    "non_saturating": AdversarialLoss(_softplus_minus, softplus, _softplus_minus),
}
"""By name. hinge: max(0, 1 - D(x)) / 2 + max(0, 1 + D(y)) / 2, generator -D(y). vanilla: cross-entropy, halved, with
the generator of hinge (VQGAN). non_saturating: cross-entropy, generator -log sigmoid(D(y)) (Goodfellow et al. 2014)."""


def adversarial_loss(name: str) -> AdversarialLoss:
    """Return a loss by name; raises ValueError with the names known."""
    if name not in ADVERSARIAL:
        raise ValueError(f"adversarial={name!r}: choose {', '.join(ADVERSARIAL)}")
    return ADVERSARIAL[name]


def lecam(
    real: Float[Tensor, "..."], fake: Float[Tensor, "..."], mean_real: Tensor, mean_fake: Tensor
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """LeCAM's two terms per logit: max(0, D(x) - mean_fake)^2 and max(0, mean_real - D(y))^2 (Tseng et al. 2021).

    The means are those of the logits of earlier steps: logits are kept from running away from the other side's.
    """
    above = mint.nn.functional.relu(real - mean_fake)
    below = mint.nn.functional.relu(mean_real - fake)
    return above * above, below * below


def adaptive_weight(fidelity: Tensor, adversarial: Tensor, limit: float) -> Float[Tensor, ""]:
    """Ratio of two gradients' norms at the generator's last layer, at most `limit` (Esser et al. 2021, eq. 7)."""
    ratio = mint.sqrt((fidelity * fidelity).sum()) / (mint.sqrt((adversarial * adversarial).sum()) + 1e-8)
    return mint.clamp(ratio, 0.0, limit)

"""Discriminators of videos and the adversarial objective, for any network that makes videos."""

from mg.models.discriminator.loss import DiscriminatorLoss, Judge
from mg.models.discriminator.losses import ADVERSARIAL, adaptive_weight
from mg.models.discriminator.memory import DiscriminatorMemory, GeneratorMemory
from mg.models.discriminator.network import PatchDiscriminator

__all__ = [
    "ADVERSARIAL", "DiscriminatorLoss", "DiscriminatorMemory", "GeneratorMemory", "Judge", "PatchDiscriminator",
    "adaptive_weight",
]  # fmt: skip

"""Assemble the autoencoder's objective: its loss, the discriminator as an opponent, and what they need in a batch."""

import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mg.config.tae_train import TaeLossConfig, TaeTrainConfig
from mg.errors import UserError
from mg.models.discriminator import DiscriminatorLoss, DiscriminatorMemory, GeneratorMemory, Judge, PatchDiscriminator
from mg.models.discriminator.tubelets import draw_tubelets
from mg.models.perceptual import Lpips, from_weights
from mg.models.perceptual.lpips import LEAST_SIDE
from mg.models.tae import TemporalAutoencoder
from mg.models.tae.loss import TaeLoss, draw_frames
from mg.rng import stream
from mg.trainers.player import Player

DISCRIMINATOR = "disc"
"""Name of the discriminator among the players: in the logs, and in checkpoints `disc.model`."""


@dataclass(frozen=True)
class Objective:
    """What the trainer needs for the objective of one run."""

    loss: TaeLoss
    memory: GeneratorMemory | None
    opponents: tuple[Player, ...]
    fingerprint: dict[str, object]
    """What a resumed run must share: all weights and losses, none of the steps at which parts begin."""
    config: TaeTrainConfig

    def inputs(self, index: int, mask: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
        """Draw what batch `index` needs besides clips and noise: frames for LPIPS, places of tubelets."""
        drawn, seed, disc = {}, self.config.train.seed, self.config.disc
        if "perceptual_frames" in self.loss.inputs:
            rng = stream(seed, "tae.perceptual_frames", index)
            drawn["perceptual_frames"] = draw_frames(rng, mask, self.config.loss.perceptual_frames)
        if "tubelets" in self.loss.inputs:
            rng = stream(seed, "tae.tubelets", index)
            drawn["tubelets"] = draw_tubelets(rng, mask, height, width, disc.tubelets, disc.tubelet_size)
        return drawn


def lpips_for(config: TaeLossConfig, value_range: tuple[float, float]) -> Lpips | None:
    """Return LPIPS with the weights of the configuration; None where it names none.

    Raises:
        UserError: the weights cannot be read or do not fit.
    """
    if config.perceptual_path is None:
        return None
    try:
        return from_weights(config.perceptual_path, value_range)
    except UserError as error:
        raise UserError(f"loss.perceptual_path: {error}; tools/convert_lpips.py makes such a file") from error


def build_objective(network: TemporalAutoencoder, config: TaeTrainConfig) -> Objective:
    """Build the loss, and the discriminator with its own where there is one.

    Raises:
        UserError: LPIPS's weights are missing or wrong, or the clips are too small for a part of the objective.
    """
    settings = config.loss
    perceptual = lpips_for(settings, (-1.0, 1.0)) if settings.lpips_weight else None
    if perceptual is not None and min(config.data.size) < LEAST_SIDE:
        raise UserError(f"data.size={config.data.size} is too small for LPIPS; give at least {LEAST_SIDE} pixels")
    judge = _judge(config)
    adversarial = {}
    if judge is not None:
        adversarial = {"judge": judge, "adversarial": settings.adversarial}
    loss = TaeLoss(
        network,
        settings.reconstruction,
        settings.kl_weight,
        settings.outlier_weight,
        settings.outlier_r,
        perceptual=perceptual,
        perceptual_weight=settings.lpips_weight,
        perceptual_frames=settings.perceptual_frames,
        adversarial_weight=settings.adversarial_weight,
        adaptive_limit=settings.adaptive_limit,
        **adversarial,
    )
    opponents = (_opponent(network, judge, config),) if judge is not None else ()
    memory = GeneratorMemory(settings.adversarial_start) if judge is not None else None
    return Objective(loss, memory, opponents, _fingerprint(config), config)


def _judge(config: TaeTrainConfig) -> Judge | None:
    if config.loss.adversarial == "none":
        return None
    disc = config.disc
    network = PatchDiscriminator(disc.network, seed=config.train.seed)
    shown = config.data.size
    if disc.tubelets:
        shown = tuple(min(a, b) for a, b in zip(disc.tubelet_size[1:], config.data.size, strict=True))
    try:
        network.check_size(*shown)
    except ValueError as error:
        raise UserError(f"disc.network.layers: {error}") from error
    return Judge(network, disc.tubelets, disc.tubelet_size)


def _opponent(network: TemporalAutoencoder, judge: Judge, config: TaeTrainConfig) -> Player:
    disc = config.disc
    loss = DiscriminatorLoss(
        network,
        judge,
        config.loss.adversarial,
        lecam_weight=disc.lecam_weight,
        r1_weight=disc.r1_weight,
        r1_every=disc.r1_every,
    )
    memory = DiscriminatorMemory(disc.lecam_decay, disc.r1_every)
    return Player(DISCRIMINATOR, judge.discriminator, loss, disc.optimizer, disc.start, memory)


def _fingerprint(config: TaeTrainConfig) -> dict[str, object]:
    """Return settings by name; parts that are off leave nothing, as in checkpoints older than they are."""
    loss, disc = config.loss, config.disc
    names = ["reconstruction", "kl_weight", "outlier_weight", "outlier_r"]
    if loss.lpips_weight:
        names.append("perceptual_frames")
    if loss.adversarial != "none":
        names += ["adversarial", "adversarial_weight", "adaptive_limit"]
    mark: dict[str, object] = {"loss": {name: getattr(loss, name) for name in names}}
    if loss.lpips_weight:
        path = Path(loss.perceptual_path)
        mark["perceptual"] = {"weight": loss.lpips_weight, "crc32": zlib.crc32(path.read_bytes())}
    if loss.adversarial != "none":
        kept = asdict(disc)
        for name in ("start", "optimizer"):
            del kept[name]
        mark["disc"] = kept
    return mark

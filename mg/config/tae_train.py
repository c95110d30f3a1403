"""Configuration of `scripts/train_tae.py`."""

from dataclasses import dataclass, field
from typing import Literal

from mg.config.clips import ClipSettings
from mg.config.discriminator import DiscriminatorConfig
from mg.config.durability import check_one_origin
from mg.config.guard import check_loss_scale
from mg.config.mixing import check_mix
from mg.config.parallel import ParallelConfig
from mg.config.trainer import TrainerConfig
from mg.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TaeModelConfig:
    """Which autoencoder to train and what it starts from."""

    preset: Literal["sd35", "reference", "tiny"] = "sd35"
    """Configuration of the network, one of mg.models.tae.PRESETS."""
    z_channels: int | None = None
    """Channels of the latent; none: the preset's. Weights to start from must have as many."""
    pretrained: str | None = None
    """Weights to start from (.safetensors or .ckpt), from tools/inflate_vae_to_tae.py for instance; none: random."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Type of the activations; the weights, statistics and the loss stay FP32."""
    use_recompute: bool = False
    """Compute activations again in the backward pass instead of keeping them."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.z_channels is not None and self.z_channels < 1:
            raise UserError(f"z_channels={self.z_channels} must be 1 or above")


@dataclass(frozen=True, kw_only=True)
class TaeLossConfig:
    """Training objective of the autoencoder (Movie Gen, 3.1.1); docs/objective.md has the formulas."""

    reconstruction: Literal["l1", "l2", "charbonnier"] = "l1"
    """Error per pixel value; charbonnier is a smooth l1."""
    kl_weight: float = 1e-6
    """Weight of the KL term, 0 or above."""
    outlier_weight: float = 0.0
    """Weight of the outlier penalty, 0 leaves it out; the paper has 1e5."""
    outlier_r: float = 3.0
    """Standard deviations beyond which a latent vector counts as an outlier, above 0."""
    perceptual_path: str | None = None
    """Weights of LPIPS, made by tools/convert_lpips.py; with them validation has val_lpips, too."""
    perceptual_weight: float | None = None
    """Weight of LPIPS; none: 1 with perceptual_path, 0 without."""
    perceptual_frames: int = 0
    """Frames per clip that LPIPS compares, drawn anew for every batch; 0: all of them."""
    adversarial: Literal["none", "hinge", "vanilla", "non_saturating"] = "none"
    """Adversarial loss, of autoencoder and discriminator alike; none: there is no discriminator."""
    adversarial_weight: float = 0.1
    """Weight of the adversarial term, above 0."""
    adversarial_start: int = 1
    """First step in which the autoencoder has the adversarial term, not before disc.start; until then it is free."""
    adaptive_limit: float = 1e4
    """The adversarial weight is multiplied by the ratio of gradients at the last layer, up to this; 0 is off."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("kl_weight", "outlier_weight", "perceptual_weight", "perceptual_frames", "adaptive_limit"):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"loss.{name}={getattr(self, name)} must be 0 or above")
        for name in ("outlier_r", "adversarial_weight"):
            if getattr(self, name) <= 0:
                raise UserError(f"loss.{name}={getattr(self, name)} must be above 0")
        if self.adversarial_start < 1:
            raise UserError(f"loss.adversarial_start={self.adversarial_start} must be 1 or above")
        if self.perceptual_weight and self.perceptual_path is None:
            raise UserError(
                f"loss.perceptual_weight={self.perceptual_weight} needs the weights of LPIPS: make them with "
                "tools/convert_lpips.py and name them in loss.perceptual_path, or set the weight to 0"
            )

    @property
    def lpips_weight(self) -> float:
        """Weight of LPIPS, the default filled in."""
        default = 0.0 if self.perceptual_path is None else 1.0
        return default if self.perceptual_weight is None else self.perceptual_weight


@dataclass(frozen=True, kw_only=True)
class TaeValidationConfig:
    """Clips on which PSNR and SSIM are measured during training."""

    csv_path: str | None = None
    """CSV with a column `video`; none: no validation."""
    video_folder: str | None = None
    """Folder of the videos; none: the training folder."""
    image_size: int = 256
    """Side of the centre crop in pixels."""
    num_frames: int = 16
    """Frames from the start of each clip."""
    videos: int = 4
    """Clips, from the start of the list, that are written beside their reconstructions; 0: none."""
    videos_every: int = 0
    """Steps between these videos, a multiple of train.validate_every; 0: at every validation."""

    def __post_init__(self) -> None:
        """Check ranges."""
        # SSIM has a window of 11 pixels.
        for name, least in (("image_size", 11), ("num_frames", 1), ("videos", 0), ("videos_every", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)} must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class TaeTrainConfig:
    """One training run of the temporal autoencoder."""

    output_path: str = "outputs/tae"
    """Folder of checkpoints, logs and the final weights; a run found there is resumed."""
    csv_path: str | None = None
    """CSV with a column `video`; none: every video and picture in video_folder."""
    mix: dict[str, float] | None = None
    """Several lists instead of csv_path, by weight: CSV or folder -> share of the samples, of any sum."""
    video_folder: str | None = None
    """Folder that the CSV's paths start from; none: the CSV's own."""
    device: Literal["auto", "Ascend", "GPU", "CPU"] = "auto"
    """Where to run."""
    mode: Literal["graph", "pynative"] = "graph"
    """pynative is for debugging."""
    export_dtype: Literal["fp32", "fp16"] = "fp32"
    """Type of the final weights; fp16 halves the file."""
    prefetch: int = 4
    """Batches prepared ahead, at least 1."""
    workers: int = 1
    """Threads that prepare batches; 0: the training's own, between the steps. The batches are the same."""
    model: TaeModelConfig = field(default_factory=TaeModelConfig)
    loss: TaeLossConfig = field(default_factory=TaeLossConfig)
    disc: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    data: ClipSettings = field(default_factory=lambda: ClipSettings(size=(256, 256), num_frames=16, batch_size=1))
    train: TrainerConfig = field(default_factory=lambda: TrainerConfig(steps=1000))
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    valid: TaeValidationConfig = field(default_factory=TaeValidationConfig)

    def __post_init__(self) -> None:
        """Check ranges."""
        check_one_origin(self.train, "model.pretrained", self.model.pretrained)
        check_loss_scale(self.train.loss_scale, self.model.dtype)
        check_mix("mix", self.mix)
        if self.mix is not None and self.csv_path is not None:
            raise UserError("mix and csv_path are both given; name the list in mix, with its weight")
        for name, least in (("prefetch", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)} must be at least {least}")
        every, step = self.valid.videos_every, self.train.validate_every
        if every and step and every % step:
            raise UserError(f"valid.videos_every={every} must be a multiple of train.validate_every={step}")
        if self.loss.adversarial != "none":
            self._check_adversarial()

    def _check_adversarial(self) -> None:
        if self.loss.adversarial_start < self.disc.start:
            raise UserError(
                f"loss.adversarial_start={self.loss.adversarial_start} is before disc.start={self.disc.start}: "
                "a discriminator that has learned nothing has nothing to say; start it first"
            )
        if self.disc.r1_weight and self.mode == "pynative":
            raise UserError(
                f"disc.r1_weight={self.disc.r1_weight} needs second derivatives, which mode=pynative leaves out; "
                "use mode=graph"
            )

"""Configuration of `scripts/train_tae.py`."""

from dataclasses import dataclass, field
from typing import Literal

from mg.config.clips import ClipSettings
from mg.config.durability import check_one_origin
from mg.config.guard import check_loss_scale
from mg.config.mixing import check_mix
from mg.config.trainer import TrainerConfig
from mg.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TaeModelConfig:
    """Which autoencoder to train and what it starts from."""

    preset: Literal["sd35", "reference", "tiny"] = "sd35"
    """Configuration of the network, one of mg.models.tae.PRESETS."""
    pretrained: str | None = None
    """Weights to start from (.safetensors or .ckpt), from tools/inflate_vae_to_tae.py for instance; none: random."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Type of the activations; the weights, statistics and the loss stay FP32."""
    use_recompute: bool = False
    """Compute activations again in the backward pass instead of keeping them."""


@dataclass(frozen=True, kw_only=True)
class TaeLossConfig:
    """Training objective of the autoencoder (Movie Gen, 3.1.1)."""

    reconstruction: Literal["l1", "l2"] = "l1"
    """Error per pixel value."""
    kl_weight: float = 1e-6
    """Weight of the KL term, 0 or above."""
    outlier_weight: float = 0.0
    """Weight of the outlier penalty, 0 leaves it out; the paper has 1e5."""
    outlier_r: float = 3.0
    """Standard deviations beyond which a latent vector counts as an outlier, above 0."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("kl_weight", "outlier_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"loss.{name}={getattr(self, name)} must be 0 or above")
        if self.outlier_r <= 0:
            raise UserError(f"loss.outlier_r={self.outlier_r} must be above 0")


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
    data: ClipSettings = field(default_factory=lambda: ClipSettings(size=(256, 256), num_frames=16, batch_size=1))
    train: TrainerConfig = field(default_factory=lambda: TrainerConfig(steps=1000))
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

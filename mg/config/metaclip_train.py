"""Configuration of `scripts/train_metaclip.py`."""

from dataclasses import dataclass, field
from typing import Literal

from mg.config.trainer import TrainerConfig
from mg.errors import UserError


@dataclass(frozen=True, kw_only=True)
class LongCaptionsConfig:
    """The captions to train on, and how many go into a step."""

    csv_path: str
    """CSV with a column `caption`, for the contrastive objective also `video`."""
    join_captions: int = 1
    """Make long captions by joining so many, drawn by seed; 1: use those in the list that are long by themselves."""
    joined_count: int = 64
    """How many long captions to make so (contrastive: for validation only, they have no picture)."""
    image_embeddings: str | None = None
    """Pictures for the contrastive objective: .safetensors or .npz, name of the video -> vector (projection size,)."""
    batch_size: int = 8
    """Long captions, or captions with pictures, per micro-batch."""
    short_batch_size: int | None = None
    """Short captions per micro-batch, which shall stay as they are; none: as many, or 0 where they cannot change."""
    seed: int = 0
    """Seed of what is joined and held back for validation; train.seed is that of the batches."""

    def __post_init__(self) -> None:
        """Check ranges."""
        least = {"join_captions": 1, "joined_count": 1, "batch_size": 1, "short_batch_size": 0, "seed": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise UserError(f"{name}={value} must be at least {low}")


@dataclass(frozen=True, kw_only=True)
class LongClipLossConfig:
    """Training objective."""

    objective: Literal["distill", "contrastive"] = "distill"
    """Long captions follow the mean of the short-context encoder's pieces, or captions their pictures."""
    distill_weight: float = 1.0
    """Weight of the distance that short captions have from where they were, 0 or above."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.distill_weight < 0:
            raise UserError(f"loss.distill_weight={self.distill_weight} must be 0 or above")


@dataclass(frozen=True, kw_only=True)
class LongClipValidationConfig:
    """Captions on which the mean cosine to the targets is measured."""

    csv_path: str | None = None
    """CSV with a column `caption`; none: a share of the training list is held back."""
    share: float = 0.1
    """That share, in [0, 1); at least one caption unless it is 0, which means no validation."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 <= self.share < 1:
            raise UserError(f"valid.share={self.share} must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class MetaclipTrainConfig:
    """Fine-tuning a CLIP text encoder for long captions (Movie Gen, section 3.1.4: MetaCLIP, 77 to 256 tokens)."""

    pretrained: str
    """Hugging Face folder of a CLIP with text projection; also the teacher, at its own length."""
    data: LongCaptionsConfig
    output_path: str = "outputs/metaclip"
    """Folder of checkpoints, logs and the encoder; a run found there is resumed."""
    max_length: int = 256
    """Tokens per caption after training, more than the folder's encoder has."""
    trainable: Literal["positions", "all"] = "positions"
    """Train the position table alone, or everything."""
    freeze_old_positions: bool | None = None
    """Keep the position rows that the folder has; none: yes for trainable=positions, no for all."""
    device: Literal["auto", "Ascend", "GPU", "CPU"] = "auto"
    """Where to run."""
    mode: Literal["graph", "pynative"] = "graph"
    """pynative is for debugging."""
    export_dtype: Literal["fp32", "fp16"] = "fp32"
    """Type of the final weights; fp16 halves the file."""
    loss: LongClipLossConfig = field(default_factory=LongClipLossConfig)
    train: TrainerConfig = field(default_factory=lambda: TrainerConfig(steps=1000))
    valid: LongClipValidationConfig = field(default_factory=LongClipValidationConfig)

    def __post_init__(self) -> None:
        """Check what goes together."""
        if self.max_length < 3:
            raise UserError(f"max_length={self.max_length} must be at least 3")
        contrastive, pictures = self.loss.objective == "contrastive", self.data.image_embeddings
        if contrastive and pictures is None:
            raise UserError("data.image_embeddings is missing: the contrastive objective needs pictures' embeddings")
        if not contrastive and pictures is not None:
            raise UserError(f"data.image_embeddings={pictures}: only loss.objective=contrastive looks at pictures")
        if contrastive and self.data.batch_size < 2:
            raise UserError("data.batch_size=1: the contrastive objective tells captions apart; give at least 2")

    @property
    def keeps_old_positions(self) -> bool:
        """Whether the position rows that the folder has stay as they are."""
        return self.trainable == "positions" if self.freeze_old_positions is None else self.freeze_old_positions

    @property
    def short_rows(self) -> int:
        """Short captions per micro-batch."""
        if self.data.short_batch_size is not None:
            return self.data.short_batch_size
        unmoved = self.trainable == "positions" and self.keeps_old_positions
        return 0 if unmoved else self.data.batch_size

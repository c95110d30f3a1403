"""What the transformer is trained on: latents, texts, and how batches are drawn from them."""

import math
from dataclasses import dataclass, field
from typing import Literal

from mg.config.prompt_dropout import PromptDropout
from mg.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TextPaths:
    """A path per text encoder; the classes below say of what."""

    ul2: str | None = None
    metaclip: str | None = None
    byt5: str | None = None

    @property
    def by_kind(self) -> dict[str, str]:
        """The paths that are given, in the order of the encoders."""
        paths = {"ul2": self.ul2, "metaclip": self.metaclip, "byt5": self.byt5}
        return {kind: path for kind, path in paths.items() if path is not None}


@dataclass(frozen=True, kw_only=True)
class TextFolders(TextPaths):
    """Where the captions' embeddings are, by encoder; an encoder without a folder is left out of the model.

    Attributes:
        ul2: folder of .npz files, or of text caches, that scripts/inference_text_enc.py wrote.
        metaclip: see ul2.
        byt5: see ul2.
    """


@dataclass(frozen=True, kw_only=True)
class EmptyTexts(TextPaths):
    """Embeddings of the empty prompt, by encoder, for folders of .npz; a text cache is asked for "" itself.

    Attributes:
        ul2: .npz file that scripts/inference_text_enc.py wrote for an empty line of a .txt.
        metaclip: see ul2.
        byt5: see ul2.
    """


@dataclass(frozen=True, kw_only=True)
class TextLengths:
    """Text tokens that the model is given, by encoder: longer texts are cut, shorter ones padded.

    Attributes:
        ul2: tokens, at least 1.
        metaclip: see ul2.
        byt5: see ul2.
    """

    ul2: int = 512
    metaclip: int = 256
    byt5: int = 128

    def __post_init__(self) -> None:
        """Check ranges."""
        for kind in ("ul2", "metaclip", "byt5"):
            if getattr(self, kind) < 1:
                raise UserError(f"text_lengths.{kind}={getattr(self, kind)} must be at least 1")


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How batches of latents, texts, noise and timesteps are drawn; raises UserError for values out of range."""

    tae_latent_folder: str | None = None
    """Folder of latents that scripts/inference_tae.py wrote."""
    text: TextFolders = field(default_factory=TextFolders)
    text_lengths: TextLengths = field(default_factory=TextLengths)
    empty_text: EmptyTexts = field(default_factory=EmptyTexts)
    fps: float | Literal["none", "video"] = "none"
    """Frame rate that the captions had in front (FPS-24 ...) when they were encoded; video: each video's own. A folder
    of .npz with an encoder.json says it itself."""
    attend_padding: bool = False
    """Let the model see the embeddings of padding, as the reference does."""
    frames: tuple[int, ...] | None = None
    """RGB frames of the buckets: videos are cut to the largest they fill; none: each length is a bucket of its own."""
    sample_latents: bool = True
    """Draw latents from their distribution, and where a longer video is cut; off: means, from the start."""
    batch_size: int = 1
    """Videos per micro-batch."""
    batch_sizes: dict[int, int] | None = None
    """Videos per micro-batch by RGB frames, for lengths that shall differ from batch_size."""
    image_batch_size: int | None = None
    """Images per micro-batch; none: batch_size."""
    image_ratio: float | None = None
    """Share of the micro-batches that are one-frame images, 0 to 1; none: as often as there are images in the list."""
    dropout: PromptDropout = field(default_factory=PromptDropout)
    timesteps: Literal["logit-normal", "uniform", "discrete-uniform"] = "logit-normal"
    """Distribution of the noise levels."""
    timestep_integer: bool = False
    """Round noise levels up to 1, 2, ..., 1000, as the reference does."""
    timestep_mean: float = 0.0
    """Of the normal inside logit-normal; above 0 shifts towards the noise."""
    timestep_std: float = 1.0
    """Of the normal inside logit-normal, above 0."""
    in_memory: bool | None = None
    """Keep latents and texts in memory; none: up to 2 GB of each."""
    max_bad: float = 0.1
    """Share of the list that may be unusable, in [0, 1); more are refused."""
    seed: int = 0
    """Seed of the order and of everything drawn."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("batch_size", "image_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}={value} must be at least 1")
        for frames, size in (self.batch_sizes or {}).items():
            if frames < 1 or size < 1:
                raise UserError(f"batch_sizes={self.batch_sizes}: frames and videos must be at least 1")
        if self.frames is not None and (not self.frames or min(self.frames) < 1):
            raise UserError(f"frames={self.frames}: give frame counts of at least 1, such as 1,64,128")
        if not isinstance(self.fps, str) and not (math.isfinite(self.fps) and self.fps > 0):
            raise UserError(f"fps={self.fps}: give a number above 0, none or video")
        if not 0 <= self.max_bad < 1:
            raise UserError(f"max_bad={self.max_bad} must be in [0, 1)")
        if self.image_ratio is not None and not 0 <= self.image_ratio <= 1:
            raise UserError(f"image_ratio={self.image_ratio} must be in 0 to 1")
        if not math.isfinite(self.timestep_mean) or not (math.isfinite(self.timestep_std) and self.timestep_std > 0):
            raise UserError(
                f"timestep_mean={self.timestep_mean}, timestep_std={self.timestep_std}: finite numbers, std above 0"
            )
        if self.seed < 0:
            raise UserError(f"seed={self.seed} must be 0 or above")

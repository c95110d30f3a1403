"""Configuration of `scripts/train.py`."""

from dataclasses import dataclass, field
from typing import Literal

from mg.config.durability import check_one_origin
from mg.config.generation import GenerationSettings, TextFolders, TextPaths
from mg.config.guard import check_loss_scale
from mg.config.mixing import check_mix
from mg.config.parallel import ParallelConfig
from mg.config.trainer import TrainerConfig
from mg.errors import UserError


def _at_least(section: str, config: object, **least: int) -> None:
    for name, low in least.items():
        value = getattr(config, name)
        if value is not None and value < low:
            raise UserError(f"{section}.{name}={value} must be at least {low}")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Which transformer to train and what it starts from."""

    preset: Literal["llama-1B", "llama-5B", "llama-30B", "tiny"] | None = None
    """Sizes of the network, one of mg.models.llama.PRESETS; none: those of the folder model.pretrained."""
    pretrained: str | None = None
    """Weights to start from, of the stage before for instance: a folder `transformer`, or a file; none: random."""
    max_length: tuple[int, int, int] | None = None
    """Length of the position tables along t, h, w in patches; those of model.pretrained are interpolated to it."""
    hidden_size: int | None = None
    """Width of the tokens; none: the preset's, as for the others below."""
    intermediate_size: int | None = None
    """Width inside the feed-forward parts."""
    num_hidden_layers: int | None = None
    """Number of blocks."""
    num_attention_heads: int | None = None
    """Heads of every attention."""
    qk_norm: bool | None = None
    """Normalise queries and keys, which steadies training at high learning rates."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Type of the activations; the weights, norms, softmax and the loss stay FP32."""
    recompute_every_nth_block: int | None = None
    """Compute the activations of every n-th block again in the backward pass; none: keep all."""

    SIZES = ("max_length", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "qk_norm")
    """Fields that replace one of the preset's."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.preset is None and self.pretrained is None:
            raise UserError("model.preset and model.pretrained are both missing; give the sizes or a folder with them")
        _at_least("model", self, recompute_every_nth_block=1)


@dataclass(frozen=True, kw_only=True)
class FlowLossConfig:
    """Training objective: the velocity of the straight path from noise to data (Movie Gen, section 3.1.2)."""

    sigma_min: float = 1e-5
    """Share of the noise that is left at the path's end, in [0, 1); 0 is rectified flow."""
    token_drop: float = 0.0
    """Share of the tokens that training leaves out of a step, in [0, 1); the loss is that of the others."""

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("sigma_min", "token_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"loss.{name}={getattr(self, name)} must be in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """The autoencoder of the latents: decodes samples, and encodes videos where data has no tae_latent_folder."""

    pretrained: str | None = None
    """Weights (.safetensors or .ckpt); none: neither."""
    use_tile: bool = False
    """Encode and decode in tiles: memory does not grow with the length of the video."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Type of the activations."""


@dataclass(frozen=True, kw_only=True)
class EncoderFolders(TextPaths):
    """Text encoders that run during training, for captions that data.text has no embeddings of.

    Attributes:
        ul2: Hugging Face folder of the encoder, with config.json and weights.
        metaclip: see ul2.
        byt5: see ul2.
    """


@dataclass(frozen=True, kw_only=True)
class OnlineConfig:
    """Encoding during training, instead of latents and embeddings on disk."""

    size: tuple[int, int] | str = "256px"
    """Videos: H W, or one side of a square; 256px: the nearest of 13 aspect ratios of that area; source: their own."""
    sample_n_frames: int = -1
    """Videos: frames from the start; -1: all of them."""
    sample_stride: int = 1
    """Videos: take every n-th frame."""
    text_encoders: EncoderFolders = field(default_factory=EncoderFolders)

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.sample_n_frames != -1 and self.sample_n_frames < 1:
            raise UserError(f"online.sample_n_frames={self.sample_n_frames}: give at least 1, or -1 for all frames")
        _at_least("online", self, sample_stride=1)


@dataclass(frozen=True, kw_only=True)
class FlowValidationConfig:
    """Videos on which the loss is measured during training, always with the same noise."""

    csv_path: str | None = None
    """CSV as the training's; none: no validation."""
    video_folder: str | None = None
    """Folder of the videos; none: the training folder."""
    tae_latent_folder: str | None = None
    """Folder of their latents; none: the training's."""
    text: TextFolders = field(default_factory=TextFolders)
    """Folders of their captions' embeddings; none: the training's."""
    sampling_steps: int = 10
    """Noise levels, evenly spaced: 10 are 100, 200, ..., 1000."""
    batch_size: int | None = None
    """Videos per batch; none: data.batch_size. The figures hardly depend on it."""
    max_items: int | None = None
    """Use so many of the list only, drawn by data.seed; none: all."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _at_least("valid", self, sampling_steps=1, batch_size=1, max_items=1)


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Videos made during training from captions of the validation list, else of the training's; mp4 if tae is given."""

    every: int = 0
    """Steps between them, a multiple of train.validate_every; 0 is off."""
    count: int = 4
    """How many captions."""
    num_inference_steps: int = 50
    """Steps of the sampler."""
    sample_method: Literal["linear", "linear-quadratic", "linear-quadratic-smooth"] = "linear-quadratic"
    """Noise levels that the sampler visits."""
    guidance_scale: float = 1.0
    """Strength of the prompt; 1 is no guidance."""
    fps: float = 16
    """Frames per second of the files."""
    seed: int = 0
    """Seed of the noise they start from, the same at every step."""

    def __post_init__(self) -> None:
        """Check ranges."""
        _at_least("sample", self, every=0, count=1, num_inference_steps=1, seed=0)
        if self.guidance_scale < 0:
            raise UserError(f"sample.guidance_scale={self.guidance_scale} must be 0 or above")
        if not 0 < self.fps <= 1000:
            raise UserError(f"sample.fps={self.fps}: give a number above 0, up to 1000")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run of the transformer (Movie Gen, section 3.2)."""

    csv_path: str | None = None
    """CSV with the columns `video` (videos and images, relative to video_folder) and `caption`."""
    mix: dict[str, float] | None = None
    """Several lists instead of csv_path, by weight: CSV -> share of the samples, of any sum."""
    output_path: str = "outputs/train"
    """Folder of checkpoints, logs, samples and the final weights; a run found there is resumed."""
    video_folder: str | None = None
    """Folder that the CSV's paths start from; none: the CSV's own."""
    device: Literal["auto", "Ascend", "GPU", "CPU"] = "auto"
    """Where to run."""
    mode: Literal["graph", "pynative"] = "graph"
    """pynative is for debugging."""
    export_dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Type of the final weights."""
    prefetch: int = 4
    """Batches prepared ahead, at least 1."""
    workers: int = 1
    """Threads that prepare batches; 0: the training's own, between the steps. The batches are the same."""
    model: TransformerConfig
    loss: FlowLossConfig = field(default_factory=FlowLossConfig)
    data: GenerationSettings = field(default_factory=GenerationSettings)
    tae: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    online: OnlineConfig = field(default_factory=OnlineConfig)
    train: TrainerConfig = field(default_factory=lambda: TrainerConfig(steps=1000))
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    valid: FlowValidationConfig = field(default_factory=FlowValidationConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)

    def __post_init__(self) -> None:
        """Check ranges and what goes together."""
        check_one_origin(self.train, "model.pretrained", self.model.pretrained)
        check_loss_scale(self.train.loss_scale, self.model.dtype)
        check_mix("mix", self.mix)
        if self.mix is not None and self.csv_path is not None:
            raise UserError("mix and csv_path are both given; name the list in mix, with its weight")
        for name, least in (("prefetch", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)} must be at least {least}")
        every, step = self.sample.every, self.train.validate_every
        if every and (not step or every % step):
            raise UserError(f"sample.every={every} must be a multiple of train.validate_every={step}, which must be on")
        if every and self.sample.guidance_scale != 1 and self.data.dropout.all == 0:
            raise UserError(
                f"sample.guidance_scale={self.sample.guidance_scale} needs a model that knows the empty prompt; set "
                "data.dropout.all above 0, or the scale to 1"
            )

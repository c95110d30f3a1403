"""Configuration of `tools/make_pipeline.py`."""

from dataclasses import dataclass
from typing import Literal

from mg.errors import UserError


@dataclass(frozen=True, kw_only=True)
class MakePipelineConfig:
    """Which parts to put together."""

    transformer: str
    """Folder with config.json and weights, as scripts/train.py writes it (<output>/transformer)."""
    tae: str
    """Weights of the autoencoder (.safetensors or .ckpt)."""
    output_path: str
    """Pipeline folder to write; of an earlier one in it, the parts are replaced."""
    ul2: str | None = None
    """Hugging Face folder of the UL2 it was trained with; give those encoders that the transformer reads."""
    metaclip: str | None = None
    """Folder of the MetaCLIP."""
    byt5: str | None = None
    """Folder of the ByT5."""
    text_dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Type that the text encoders compute in, as they did for the training."""
    dtype: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Type that the transformer's weights are stored in."""
    num_inference_steps: int = 50
    """Steps that the pipeline takes unless told otherwise."""
    sample_method: Literal["linear", "linear-quadratic", "linear-quadratic-smooth"] = "linear-quadratic"
    """Spacing of its steps."""
    guidance_scale: float | None = None
    """Its strength of the prompt; none: 7.5, or 1 for a transformer that cannot be guided."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.num_inference_steps < 1:
            raise UserError(f"num_inference_steps={self.num_inference_steps}: give at least 1")
        if self.guidance_scale is not None and not self.guidance_scale >= 0:
            raise UserError(f"guidance_scale={self.guidance_scale}: give at least 0")

    @property
    def encoders(self) -> dict[str, str]:
        """Folders of the text encoders that are given."""
        folders = {"ul2": self.ul2, "metaclip": self.metaclip, "byt5": self.byt5}
        return {kind: folder for kind, folder in folders.items() if folder is not None}

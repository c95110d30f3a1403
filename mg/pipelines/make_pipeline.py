"""Put a trained transformer, its autoencoder and its text encoders into one pipeline folder."""

from pathlib import Path

from mg import device
from mg.config.make_pipeline import MakePipelineConfig
from mg.errors import UserError
from mg.models.tae.loading import from_checkpoint
from mg.models.text_encoders.encoder import TextEncoder
from mg.pipelines.pipeline_folder import Conditioning, Parts, SchedulerConfig, read_transformer
from mg.pipelines.text_to_video import TextToVideoPipeline


def make_pipeline(config: MakePipelineConfig) -> TextToVideoPipeline:
    """Load the parts, check that they belong together, write the folder.

    Raises:
        UserError: a part is missing, damaged, or not the one the transformer was trained with.
    """
    device.setup("CPU")
    try:
        transformer, conditioning = read_transformer(Path(config.transformer))
    except UserError as error:
        raise UserError(f"--transformer {error}") from error
    missing = [kind for kind in transformer.kinds if kind not in config.encoders and kind not in conditioning.ones]
    if missing:
        raise UserError(f"--{missing[0]}: the transformer reads {missing[0]}; give the folder of that text encoder")
    encoders = {
        kind: read_encoder(config.encoders[kind], kind, conditioning, config.text_dtype)
        for kind in transformer.kinds
        if kind in config.encoders
    }
    try:
        tae = from_checkpoint(config.tae, sample_deterministic=True)
    except UserError as error:
        raise UserError(f"--tae {error}") from error
    scheduler = SchedulerConfig(
        num_inference_steps=config.num_inference_steps,
        sample_method=config.sample_method,
        guidance_scale=config.guidance_scale,
    )
    pipeline = TextToVideoPipeline.of(Parts(transformer, conditioning, tae, encoders, scheduler))
    pipeline.save_pretrained(config.output_path, config.dtype)
    return pipeline


def read_encoder(folder: str, kind: str, conditioning: Conditioning, dtype: str = "fp32") -> TextEncoder:
    """Load a text encoder with the length it was trained with: the folder's own, or that of the transformer's text.

    Args:
        folder: of the encoder.
        kind: "ul2", "metaclip" or "byt5".
        conditioning: of the transformer.
        dtype: that it computes in.

    Raises:
        UserError: it cannot be loaded, or with neither length it is the one that the transformer was trained with.
    """
    wanted, found = conditioning.trained_with.get(kind), []
    for length in (None, conditioning.text_lengths[kind]):
        try:
            encoder = TextEncoder.from_pretrained(folder, kind=kind, max_length=length, dtype=dtype)
        except UserError as error:
            raise UserError(f"--{kind} {error}") from error
        if wanted in (None, encoder.fingerprint):
            return encoder
        found.append(f"{encoder.fingerprint} with {encoder.max_length} tokens")
    raise UserError(
        f"--{kind} {folder}: is {' or '.join(found)}, but the transformer was trained with {wanted}; give that one, "
        "or write it with its length by TextEncoder.save_pretrained"
    )

"""Data and settings of a training of the transformer that takes no time: latents and embeddings of drawn numbers."""

import mindspore  # noqa: F401 - must be loaded before decord
import numpy as np

from mg.dataset.latents import Latent, LatentRecord, write_latent
from mg.dataset.text_npz import write_text_npz
from mg.models.text_encoders.features import TextFeatures

YAML = """
model: {preset: tiny, max_length: [1, 2, 2], hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1,
        num_attention_heads: 2}
data: {text_lengths: {ul2: 4}, batch_size: 2, dropout: {all: 0.5}}
train: {steps: 2, log_every: 1, ema_decay: 0.5}
"""


def write(folder, names="abc"):
    """Write latents, embeddings, their list.csv and base.yaml; one video per letter."""
    rng = np.random.default_rng(0)
    LatentRecord("tae0", 1.0, 0.0, 16, 8, 8).write(folder / "latents")
    for name in names:
        latent = rng.standard_normal((16, 1, 4, 4)).astype(np.float32)
        write_latent(folder / "latents" / f"{name}.npz", Latent(latent, np.zeros_like(latent)))
        embeddings = rng.standard_normal((1, 4, 6)).astype(np.float32)
        text = TextFeatures(embeddings, np.ones((1, 4), bool), np.ones((1, 4), int))
        write_text_npz(folder / "ul2" / f"{name}.npz", text, "enc0")
    (folder / "list.csv").write_text("video,caption\n" + "".join(f"{name}.mp4,{name}\n" for name in names))
    (folder / "base.yaml").write_text(YAML)


def options(folder):
    """Return the options of scripts/train.py for these data, without mode and output folder."""
    paths = f"--data.tae_latent_folder {folder}/latents --data.text.ul2 {folder}/ul2 --csv_path {folder}/list.csv"
    return f"--config {folder}/base.yaml --device CPU {paths}".split()

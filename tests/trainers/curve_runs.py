"""Short trainings of both models, whose loss curves stand in tests/golden; as a program it writes them again:

    .venv/bin/python tests/trainers/curve_runs.py --reason "why the numbers may change"
"""

import argparse
import hashlib
import json
import tempfile
from pathlib import Path

import mindspore as ms
import numpy as np

from mg import device
from mg.config.trainer import OptimizerConfig, ScheduleConfig, TrainerConfig
from mg.dataset.clips import latent_mask
from mg.models.llama import LlamaConfig, LlamaModel
from mg.models.llama.loss import FlowLoss
from mg.models.tae import PRESETS, TemporalAutoencoder
from mg.models.tae.loss import TaeLoss
from mg.rng import stream
from mg.trainers import Trainer

MODELS = ("tae", "transformer")
STEPS = 20
GOLDEN = Path(__file__).parents[1] / "golden"
RTOL = 2e-3
"""Other processors round otherwise, and twenty updates of Adam amplify it."""

TAE = {
    **PRESETS["tiny"], "ch": 8, "ch_mult": [1, 2], "norm_groups": 4, "z_channels": 4,
    "temporal_downsample_level": [0], "temporal_upsample_level": [1],
}  # fmt: skip
TRANSFORMER = LlamaConfig(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, in_channels=4,
    max_length=(2, 2, 3), text_widths=(("ul2", 8), ("byt5", 6)), qk_norm=True,
)  # fmt: skip


SETTINGS = {"accumulation": 2, "ema_decay": 0.9}
OPTIMIZER = {"lr": 3e-3, "weight_decay": 0.01, "decay_on": "matrices"}
SCHEDULE = {"name": "cosine", "warmup_ratio": 0.1}


def train_config(steps=STEPS, **changes):
    settings = dict(
        **SETTINGS, log_every=1, save_every=5, keep_last=0, max_bad_steps=0,
        optimizer=OptimizerConfig(**OPTIMIZER), schedule=ScheduleConfig(**SCHEDULE),
    )
    return TrainerConfig(steps=steps, **{**settings, **changes})


class Videos:
    """Two moving gradients of five frames per batch, the last frames of one of them masked."""

    def __init__(self, seed, bad):
        self.seed, self.bad = seed, bad

    def batch(self, index):
        rng = stream(self.seed, "curve", index)
        t, y, x = np.meshgrid(np.arange(5), np.arange(8), np.arange(8), indexing="ij")
        rate = rng.uniform(-1, 1, (2, 3, 1, 1, 1, 3))
        video = np.sin(rate[..., 0] * t + rate[..., 1] * y + rate[..., 2] * x).astype(np.float32)  # (2, 3, 5, 8, 8)
        mask = np.ones((2, 5), np.float32)
        mask[1, 1 + index % 4 :] = 0
        noise = rng.standard_normal((2, 4, 3, 4, 4)).astype(np.float32)
        if index == self.bad:
            video[0, 0, 0, 0, 0] = np.nan
        return {
            "video": video, "mask": mask, "latent_mask": latent_mask(mask, 2), "noise": noise,
            "ids": [f"{index}a", f"{index}b"],
        }  # fmt: skip


class Latents:
    """Two latents around two centres, with two text embeddings each, per batch."""

    def __init__(self, seed, bad):
        self.seed, self.bad = seed, bad

    def batch(self, index):
        rng = stream(self.seed, "curve", index)
        draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
        centre = stream(self.seed, "centre").standard_normal((2, 4, 1, 1, 1))
        latent = (2 * centre + 0.3 * draw(2, 4, 2, 4, 6)).astype(np.float32)
        if index == self.bad:
            latent[0, 0, 0, 0, 0] = np.inf
        return {
            "latent": latent, "noise": draw(2, 4, 2, 4, 6), "timestep": np.float32(rng.uniform(300, 700, 2)),
            "mask": np.ones((2, 5), np.float32), "ul2": draw(2, 3, 8), "byt5": draw(2, 2, 6),
            "names": [f"{index}a", f"{index}b"],
        }  # fmt: skip


def parts(model, seed=0, bad=None, dtype="fp32"):
    """Return network, loss and data of "tae" or "transformer"; micro-batch `bad` has a NaN."""
    if model == "tae":
        network = TemporalAutoencoder(TAE, seed=seed, dtype=dtype)
        return network, TaeLoss(network, "l1", kl_weight=1e-4, outlier_weight=1.0), Videos(seed, bad)
    network = LlamaModel(TRANSFORMER, seed=seed, dtype=dtype)
    return network, FlowLoss(network), Latents(seed, bad)


def trainer(model, output, seed=0, bad=None, dtype="fp32", **changes):
    """Return the trainer of "tae" or "transformer", seeded in network and data; micro-batch `bad` has a NaN."""
    network, loss, source = parts(model, seed, bad, dtype)
    return Trainer(network=network, loss=loss, batches=source, output_path=output, config=train_config(**changes))


def losses(output):
    return [json.loads(line)["loss"] for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]


def config_hash(model):
    """16 hex digits over the settings above, so that a curve is not compared with one of other settings."""
    sizes = TAE if model == "tae" else TRANSFORMER.to_dict()
    text = json.dumps([STEPS, sizes, SETTINGS, OPTIMIZER, SCHEDULE], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def golden_file(model):
    return GOLDEN / f"loss_curve_{model}.json"


def main():
    parser = argparse.ArgumentParser(description="Write the golden loss curves again.")
    parser.add_argument("--reason", required=True, help="why the numbers may change; stands in the files")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    args = parser.parse_args()
    device.setup("CPU", "graph")
    for model in args.models:
        with tempfile.TemporaryDirectory() as folder:
            trainer(model, folder).fit()
            content = {
                "reason": args.reason, "config": config_hash(model), "mindspore": ms.__version__, "device": "CPU, fp32",
                "rtol": RTOL, "losses": losses(folder),
            }  # fmt: skip
        golden_file(model).write_text(json.dumps(content, indent=1) + "\n")
        print(f"{golden_file(model)}: {content['losses'][0]:.4f} to {content['losses'][-1]:.4f}")


if __name__ == "__main__":
    main()

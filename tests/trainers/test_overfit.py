"""The autoencoder learns one clip by heart."""

import json

import curve_runs
import numpy as np
import pytest
from mindspore import Tensor

import mg.device
from mg.config.trainer import OptimizerConfig, ScheduleConfig
from mg.metrics import psnr
from mg.models.tae.loss import TaeLoss
from mg.trainers import Trainer

STEPS = 200


class OneClip(curve_runs.Videos):
    """The first clip of the first batch, whole, with other noise each time."""

    def batch(self, index):
        first = super().batch(0)
        noise = super().batch(index)["noise"]
        return {"video": first["video"][:1], "mask": first["mask"][:1], "latent_mask": first["latent_mask"][:1],
                "noise": noise[:1]}  # fmt: skip


@pytest.mark.slow
def test_the_autoencoder_learns_one_clip_by_heart(tmp_path):
    """Above 30 dB, from the latent's mean, and a reconstruction error below a tenth of that at the start."""
    network, _, _ = curve_runs.parts("tae")
    source = OneClip(0, None)
    config = curve_runs.train_config(
        STEPS, accumulation=1, ema_decay=0.0, save_every=STEPS, optimizer=OptimizerConfig(lr=1e-2),
        schedule=ScheduleConfig(name="cosine", warmup_steps=10),
    )  # fmt: skip
    Trainer(network=network, loss=TaeLoss(network, "l1"), batches=source, config=config, output_path=tmp_path).fit()
    errors = [json.loads(line)["rec"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    clip = source.batch(0)["video"]
    network.set_train(False)
    mg.device.setup("CPU", "pynative")  # spares two compilations
    _, mean, _ = network.encode(Tensor(clip))
    made = network.decode(mean, num_target_frames=clip.shape[2]).asnumpy()
    quality = psnr(*(np.moveaxis(x[0], 0, -1) for x in (clip, made)), 2.0)
    print(f"reconstruction error {errors[0]:.3f} to {np.mean(errors[-10:]):.4f}, {quality:.1f} dB")
    assert quality > 30 and np.mean(errors[-10:]) < 0.1 * errors[0]

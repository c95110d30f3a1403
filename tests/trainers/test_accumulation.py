"""Accumulated micro-batches equal the joint batch for both models, with the terms of their objectives.

PyNative: in graph mode every size of a batch would be compiled.
"""

import json

import mindspore as ms
import numpy as np
import pytest
from curve_runs import TAE, TRANSFORMER, Latents, Videos, train_config
from mindspore import nn

from mg.config.trainer import OptimizerConfig, ScheduleConfig
from mg.models.discriminator.loss import DiscriminatorLoss, Judge
from mg.models.discriminator.network import PatchConfig, PatchDiscriminator
from mg.models.llama import LlamaModel
from mg.models.llama.loss import FlowLoss
from mg.models.tae import TemporalAutoencoder
from mg.models.tae.loss import TaeLoss
from mg.pipelines.tae_objective import DiscriminatorMemory, GeneratorMemory
from mg.trainers import Trainer
from mg.trainers.player import Player
from mg.weights import read_weights

PARTS = 2
SGD = OptimizerConfig(name="sgd", lr=0.1, clip_grad_norm=0.0, weight_decay=0.0)


class Brightness(nn.Cell):
    """Stands for LPIPS: squared difference of the pictures' mean values."""

    def construct(self, a, b):
        difference = a.mean((1, 2, 3)) - b.mean((1, 2, 3))
        return difference * difference


class Uneven:
    """A source's batches, every second one without its second row: equal weights would be wrong."""

    def __init__(self, source):
        self.source = source

    def batch(self, index):
        batch = self.source.batch(index)
        return {name: value[:1] for name, value in batch.items()} if index % 2 else batch


class Joined:
    """All micro-batches of a step of another source as one batch."""

    def __init__(self, source):
        self.source = source

    def batch(self, index):
        return joint([self.source.batch(PARTS * index + part) for part in range(PARTS)])


def joint(batches):
    parts = {name: [batch[name] for batch in batches] for name in batches[0]}
    return {name: sum(part, []) if isinstance(part[0], list) else np.concatenate(part) for name, part in parts.items()}


def autoencoder():
    network = TemporalAutoencoder(TAE)
    judge = Judge(PatchDiscriminator(PatchConfig(base_channels=4, layers=1, norm_groups=2, time_strides=(2,))))
    loss = TaeLoss(
        network, kl_weight=1e-2, outlier_weight=1.0, outlier_r=0.5, perceptual=Brightness(), judge=judge,
        adversarial_weight=0.5,
    )  # fmt: skip
    against = DiscriminatorLoss(network, judge, "hinge")
    player = Player("disc", judge.discriminator, against, SGD, 1, DiscriminatorMemory(0.9, 1))
    return {"network": network, "loss": loss, "memory": GeneratorMemory(1), "opponents": [player]}, Videos(1, None)


def transformer():
    network = LlamaModel(TRANSFORMER)
    for name, param in network.parameters_and_names():
        if not param.asnumpy().any():  # what begins at 0 would pass on no gradient
            rng = np.random.default_rng(len(name))
            param.set_data(ms.Tensor(rng.standard_normal(param.shape).astype(np.float32) * 0.1))
    return {"network": network, "loss": FlowLoss(network)}, Uneven(Latents(0, None))


def run(make, output, parts):
    players, source = make()
    settings = dict(optimizer=SGD, schedule=ScheduleConfig(), ema_decay=0.0, save_every=1, accumulation=parts)
    Trainer(
        **players, batches=source if parts > 1 else Joined(source), output_path=output,
        config=train_config(1, **settings),
    ).fit()  # fmt: skip
    folder = output / "step-00000001"
    weights = {
        f"{file.stem}:{name}": value
        for file in folder.glob("*model.safetensors")
        for name, value in read_weights(file).items()
    }
    return weights, json.loads((output / "metrics.jsonl").read_text())


@pytest.mark.parametrize(
    ("make", "terms"),
    [
        (autoencoder, {"rec", "kl", "outlier", "perceptual", "adversarial", "disc.loss", "disc.real", "disc.fake",
                       "disc.grad_norm"}),
        (transformer, set()),
    ],
)  # fmt: skip
def test_accumulated_micro_batches_equal_the_joint_batch(make, terms, tmp_path):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    weights, row = run(make, tmp_path / "parts", PARTS)
    wanted, whole = run(make, tmp_path / "whole", 1)
    assert weights.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(weights[name], value, rtol=0, atol=1e-6, err_msg=name)
    for name in {"loss", "grad_norm", *terms}:
        assert whole[name] != 0 and row[name] == pytest.approx(whole[name], rel=1e-5), name

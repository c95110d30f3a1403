"""A network, a loss and data small enough to train in milliseconds; as a program: one training run.

python trainer_toy.py OUTPUT STEPS SECONDS_PER_BATCH
"""

import sys
import time

import mindspore as ms
import numpy as np
from mindspore import nn, ops

from mg.config.trainer import OptimizerConfig, ScheduleConfig, TrainerConfig
from mg.trainers import Trainer

FEATURES, HIDDEN, TARGETS = 4, 8, 3


def give(update, grads):
    """Set the gradients that an ApplyStep takes next."""
    for own, grad in zip(update.grads, grads, strict=True):
        own.set_data(ms.Tensor(grad))


class ToyNet(nn.Cell):
    def __init__(self):
        super().__init__()
        rng = np.random.default_rng(7)
        self.first = nn.Dense(FEATURES, HIDDEN)
        self.last = nn.Dense(HIDDEN, TARGETS)
        self.frozen = ms.Parameter(ms.Tensor(np.float32([1.0, 2.0])), requires_grad=False)
        for param in self.trainable_params():
            param.set_data(ms.Tensor(rng.standard_normal(param.shape).astype(np.float32) * 0.5))

    def construct(self, x):
        return self.last(ops.tanh(self.first(x)))


class ToyLoss(nn.Cell):
    """Squared error over the rows the mask marks; a gain of its own is trained too."""

    inputs = ("x", "y", "mask")
    terms = ("absolute",)

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.gain = ms.Parameter(ms.Tensor(np.float32([1.0])))

    def construct(self, x, y, mask):
        difference = (self.network(x) * self.gain - y) * mask
        valid = mask.sum() * TARGETS
        return (difference * difference).sum() / valid, valid, difference.abs().sum() / valid


class RootLoss(nn.Cell):
    """Finite at mask 0, but its gradient there is not."""

    inputs = ("x", "mask")
    terms = ()

    def __init__(self, network):
        super().__init__()
        self.network = network

    def construct(self, x, mask):
        return ops.sqrt(ops.abs(self.network(x) * mask)).mean(), mask.sum()


class ToySource:
    """Rows from (seed, index) alone; batches listed in `bad` hold a NaN, those in `wide` have other shapes."""

    def __init__(self, seed=0, bad=(), wide=(), rows=6, seconds=0.0):
        self.seed, self.bad, self.wide, self.rows, self.seconds = seed, bad, wide, rows, seconds

    def batch(self, index):
        time.sleep(self.seconds)
        rng = np.random.Generator(np.random.Philox(key=[self.seed, index]))
        rows = self.rows * 2 if index in self.wide else self.rows
        x = rng.standard_normal((rows, FEATURES)).astype(np.float32)
        y = np.sin(x[:, :TARGETS] * 2)
        mask = np.zeros((rows, 1), np.float32)
        mask[: 1 + index % rows] = 1  # another number of valid rows in every batch
        if index in self.bad:
            x[0, 0] = np.nan
        return {"x": x, "y": y, "mask": mask}


def toy_config(steps, **changes):
    settings = dict(
        optimizer=OptimizerConfig(lr=3e-2, weight_decay=0.05, clip_grad_norm=0.5),
        schedule=ScheduleConfig(warmup_steps=2),
        ema_decay=0.9, accumulation=2, log_every=1, save_every=2,
    )
    return TrainerConfig(steps=steps, **{**settings, **changes})


def toy_trainer(output, steps, source=None, **changes):
    extra = {name: changes.pop(name) for name in ("validate", "fingerprint", "hook", "mesh") if name in changes}
    network = ToyNet()
    return Trainer(
        network=network, loss=ToyLoss(network), batches=source or ToySource(),
        config=toy_config(steps, **changes), output_path=output, **extra,
    )


if __name__ == "__main__":
    ms.set_context(mode=ms.GRAPH_MODE)
    print(toy_trainer(sys.argv[1], int(sys.argv[2]), ToySource(seconds=float(sys.argv[3]))).fit())

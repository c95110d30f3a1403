"""Training of a real model with everything on, broken off again and again; as a program: all of its runs.

python kill_models.py MODEL OUTPUT trains OUTPUT/straight without a break, all checkpoints kept, and OUTPUT/broken in
one process after the other: killed in the middle of a save, killed right after the rename of one, told to stop, and the
last one, with the folder gone, from the copies in OUTPUT/remote. Each process is forked from this one, which has
imported everything and computed nothing. Prints JSON: what was found after each of the first three.

The autoencoder is trained with its discriminator. FP32, because PyNative takes four times as long in FP16; what is kept
of a loss scale is in test_half.py.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import curve_runs
from kill_toy import deadly_hook, forked
from mindspore import Tensor

import mg.device
from mg.config.discriminator import PatchConfig
from mg.config.trainer import OptimizerConfig, PlateauConfig, ScheduleConfig
from mg.models.discriminator import DiscriminatorLoss, DiscriminatorMemory, GeneratorMemory, Judge, PatchDiscriminator
from mg.models.tae.loss import TaeLoss
from mg.trainers import Trainer, checkpoint
from mg.trainers.player import Player

STEPS = 5
PLACES = ("model", "renamed", "TERM")
"""Where the first three processes end: at these points of their second save, and in their first step by SIGTERM."""
FIGURES = (5.0, 3.0, 3.5, 1.0, 2.0)
"""What the validations of the steps say."""
BEST, BAD = 4, 2
"""The step with the best of them, and the one whose second micro-batch is not finite."""
FROZEN = {"tae": "encoder.conv_in.*", "transformer": "latent_embedder.*"}
TIMES = ("step_time", "samples_per_s", "tokens_per_s", "frames_per_s", "data_wait")
SETTINGS = dict(
    accumulation=2, ema_decay=0.9, log_every=1, save_every=1, validate_every=1, max_bad_steps=1,
    keep_best=1, monitor="figure", lr_reduce_on_plateau=PlateauConfig(factor=0.5, patience=1, monitor="figure"),
    optimizer=OptimizerConfig(lr=3e-3, weight_decay=0.01), schedule=ScheduleConfig(),
)  # fmt: skip


class Deadly:
    """A source whose first batch comes with a signal to the process."""

    def __init__(self, source, number):
        self._source, self._number = source, number

    def batch(self, index):
        if self._number is not None:
            os.kill(os.getpid(), self._number)
            self._number = None
        return self._source.batch(index)


def adversaries(network):
    """Return the autoencoder's loss with a discriminator, and the opponent, which is heard from step 3 on."""
    discriminator = PatchDiscriminator(
        PatchConfig(base_channels=4, max_channels=4, layers=1, norm_groups=2, time_strides=(2,)), seed=1
    )
    judge = Judge(discriminator)
    loss = TaeLoss(network, "l1", kl_weight=1e-4, outlier_weight=1.0, judge=judge, adaptive_limit=10.0)
    learns = DiscriminatorLoss(network, judge, "hinge", lecam_weight=0.1)
    player = Player("disc", discriminator, learns, OptimizerConfig(lr=1e-3), memory=DiscriminatorMemory(0.5))
    return {"loss": loss, "opponents": (player,), "memory": GeneratorMemory(3)}


def validation(plain, batch):
    """Return what the trainer calls: a figure by the list above, and the loss of one batch."""
    given = [Tensor(batch[name]) for name in plain.inputs]

    def validate(step):
        return {"figure": FIGURES[step - 1], "val_loss": float(plain(*given)[0].asnumpy())}

    return validate


def train(model, output, place=None, **changes):
    """Train in this process; `place` is where it ends, None for nowhere."""
    mg.device.setup("CPU", "pynative")  # spares a compilation per process
    network, plain, source = curve_runs.parts(model, bad=2 * BAD - 1)
    rest = adversaries(network) if model == "tae" else {"loss": plain}
    settings = {**SETTINGS, "freeze": (FROZEN[model],), **changes}
    Trainer(
        network=network, batches=Deadly(source, signal.SIGTERM if place == "TERM" else None), output_path=output,
        config=curve_runs.train_config(STEPS, **settings), validate=validation(plain, source.batch(1000)),
        hook=deadly_hook(place), **rest,
    ).fit()  # fmt: skip


def state_of(folder):
    """Return what a checkpoint holds beside tensors, without the settings and the times that steps took."""
    state = json.loads((folder / "state.json").read_text())
    del state["config"]
    state["metrics"] = {key: value for key, value in state["metrics"].items() if key not in TIMES}
    return state


def main(model, output):
    root, found = Path(output), []
    broken, remote = root / "broken", f"file://{root}/remote"
    assert forked(lambda: train(model, root / "straight", keep_last=0)) == 0
    for place in PLACES:
        status = forked(lambda place=place: train(model, broken, place, keep_last=1, remote=remote))
        newest = checkpoint.newest(broken)
        shutil.copytree(newest.folder, root / f"after-{place}")
        left = sorted(path.name for path in broken.glob("step-*"))
        found.append({"signal": os.WTERMSIG(status), "code": os.WEXITSTATUS(status), "step": newest.step, "left": left})
    shutil.rmtree(broken)
    assert forked(lambda: train(model, broken, keep_last=1, remote=remote)) == 0
    print(json.dumps(dict(zip(PLACES, found, strict=True))))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The full objective in a run of `train_tae`: phases, resume to the bit, and what is refused before it starts."""

import json
from dataclasses import replace

import mindspore  # noqa: F401 - must be loaded before decord
import numpy as np
import pytest
from mindspore import Tensor

import mg.device
from mg.config import cli
from mg.config.clips import ClipSettings
from mg.config.discriminator import DiscriminatorConfig, PatchConfig
from mg.config.tae_train import TaeLossConfig, TaeModelConfig, TaeTrainConfig
from mg.config.trainer import OptimizerConfig, TrainerConfig
from mg.dataset.manifest import scan_folder
from mg.errors import UserError
from mg.models.discriminator import PatchDiscriminator
from mg.models.tae import PRESETS, TemporalAutoencoder
from mg.pipelines import train_tae as room
from mg.pipelines.reconstruct import read_clip, reconstruct_frames
from mg.pipelines.tae_objective import build_objective, lpips_for
from mg.pipelines.tae_watch import validator
from mg.pipelines.train_tae import train_tae
from mg.trainers.learner import Learner
from mg.weights import read_weights

MICRO = dict(
    PRESETS["tiny"], ch=4, ch_mult=[1, 1], num_res_blocks=1, norm_groups=2, z_channels=2, attn_type="spat_only",
    temporal_downsample_level=[0], temporal_upsample_level=[1],
)  # fmt: skip
NETWORK = PatchConfig(base_channels=4, max_channels=4, layers=1, norm_groups=2, time_strides=(2,))
LOSS = TaeLossConfig(adversarial="hinge", adversarial_start=5)
DISC = DiscriminatorConfig(network=NETWORK, start=3, lecam_weight=0.1, lecam_decay=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clip):
    folder = tmp_path_factory.mktemp("clips")
    for seed in range(3):
        clip(folder / f"{seed}.mp4", 9, 16, 24, seed=seed)
    return folder


@pytest.fixture
def config(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(room.PRESETS, "tiny", MICRO)
    return TaeTrainConfig(
        video_folder=str(folder),
        output_path=str(tmp_path / "run"),
        device="CPU",
        mode="pynative",  # compiles nothing; graph mode is tested on the parts
        model=TaeModelConfig(preset="tiny"),
        loss=LOSS,
        disc=DISC,
        data=ClipSettings(size=(16, 16), num_frames=4, batch_size=2, frame_lengths=(2, 4)),
        train=TrainerConfig(steps=6, log_every=1, ema_decay=0.9, optimizer=OptimizerConfig(lr=1e-3)),
    )


def rows_of(path):
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in row if name in NAMES or name.startswith("disc.")} for row in rows]


NAMES = ("step", "loss", "rec", "kl", "adversarial", "adaptive", "grad_norm")
FILES = ("model", "optimizer", "ema", "disc.model", "disc.optimizer")


@pytest.mark.slow
def test_three_phases_and_a_resume_to_the_bit(config, tmp_path):
    """The discriminator learns from step 3 on, the autoencoder listens from step 5 on; a break after step 4."""
    train_tae(replace(config, output_path=str(tmp_path / "whole")))
    train_tae(replace(config, train=replace(config.train, steps=4)))
    begun = read_weights(tmp_path / "run" / "step-00000004" / "disc.model.safetensors")
    train_tae(config)
    rows, again = rows_of(tmp_path / "whole"), rows_of(tmp_path / "run")
    assert rows == again and [row["step"] for row in rows] == list(range(1, 7))
    assert [any(name.startswith("disc.") for name in row) for row in rows] == [step >= 3 for step in range(1, 7)]
    assert [row["adversarial"] != 0 for row in rows] == [step >= 5 for step in range(1, 7)]
    assert [row["adaptive"] > 0 for row in rows] == [step >= 5 for step in range(1, 7)]
    assert [row["disc.lecam"] > 0 for row in rows[2:]] == [False, True, True, True]  # averages need a step
    for name in FILES:
        one, two = (
            read_weights(tmp_path / run / "step-00000006" / f"{name}.safetensors") for run in ("whole", "run")
        )
        assert one.keys() == two.keys() and all((one[key] == two[key]).all() for key in one), name
    states = [json.loads((tmp_path / run / "step-00000006" / "state.json").read_text()) for run in ("whole", "run")]
    assert "observed" in json.dumps(states[0]) and states[0]["opponents"] == states[1]["opponents"]
    ended = read_weights(tmp_path / "run" / "step-00000006" / "disc.model.safetensors")
    untrained = PatchDiscriminator(NETWORK, seed=config.train.seed).convs[0].weight.asnumpy()
    assert (begun["convs.0.weight"] != untrained).any() and (begun["convs.0.weight"] != ended["convs.0.weight"]).any()


def small(config, **options):
    return build_objective(TemporalAutoencoder(MICRO), replace(config, **options))


def test_what_the_objective_draws_for_a_batch(config, lpips_file):
    loss = replace(LOSS, perceptual_path=str(lpips_file), perceptual_frames=2)
    objective = small(config, loss=loss, disc=replace(DISC, tubelets=3, tubelet_size=(2, 12, 12)))
    mask = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], np.float32)
    drawn, again, other = (objective.inputs(index, mask, 16, 16) for index in (4, 4, 5))
    assert drawn["perceptual_frames"].shape == (2, 2) and drawn["tubelets"].shape == (2, 3, 3)
    assert set(drawn["perceptual_frames"][1]) == {0, 1} and drawn["tubelets"][1, :, 0].max() == 0
    assert all((drawn[name] == again[name]).all() for name in drawn)
    assert (drawn["tubelets"] != other["tubelets"]).any()
    assert {"perceptual_frames", "tubelets", "adversarial"} < set(objective.loss.inputs)
    assert "tubelets" in objective.opponents[0].loss.inputs
    assert objective.fingerprint["disc"]["tubelets"] == 3 and objective.fingerprint["perceptual"]["weight"] == 1.0


def test_neither_players_loss_trains_the_others_weights(config):
    objective = small(config)
    (player,) = objective.opponents
    main = Learner(objective.loss.network, objective.loss, config.train.optimizer, others=[player.network])
    other = Learner(player.network, player.loss, player.optimizer, others=[objective.loss.network])
    assert not {id(p) for p in main.params} & {id(p) for p in other.params}
    assert {id(p) for p in main.params} == {id(p) for p in objective.loss.network.trainable_params()}
    assert {id(p) for p in other.params} == {id(p) for p in player.network.trainable_params()}


def test_old_checkpoints_of_plain_runs_still_fit(config):
    """Parts that are off leave no trace in what a resumed run must share."""
    mark = small(config, loss=TaeLossConfig(), disc=DiscriminatorConfig()).fingerprint
    assert mark == {"loss": {"reconstruction": "l1", "kl_weight": 1e-6, "outlier_weight": 0.0, "outlier_r": 3.0}}


def test_validation_measures_lpips_where_weights_are_given(config, lpips_file, folder):
    lpips = lpips_for(TaeLossConfig(perceptual_path=str(lpips_file), perceptual_weight=0.0), (0.0, 255.0))
    network = TemporalAutoencoder(MICRO)
    mg.device.setup("CPU", "pynative")
    figures = validator(network, scan_folder(folder)[:1], 16, 3, distance=lpips)(1)
    clip = read_clip(scan_folder(folder)[0], 3, 16)
    result = reconstruct_frames(network, [clip.frames])[0]
    a, b = (Tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2), np.float32)) for x in (clip.frames, result))
    assert figures["val_lpips"] == pytest.approx(float(lpips(a, b).asnumpy().mean()), rel=1e-4) and len(figures) == 3


@pytest.mark.parametrize(
    "options, message",
    [
        ({"perceptual_weight": 0.5}, "needs the weights of LPIPS: make them with tools/convert_lpips.py"),
        ({"adversarial": "hinge", "adversarial_start": 0}, "adversarial_start=0 must be 1 or above"),
        ({"adversarial": "hinge", "adversarial_weight": 0.0}, "adversarial_weight=0.0 must be above 0"),
        ({"perceptual_frames": -1}, "perceptual_frames=-1 must be 0 or above"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        TaeLossConfig(**options)


def test_runs_that_cannot_be_meant_are_refused(config, tmp_path):
    with pytest.raises(UserError, match="loss.adversarial_start=5 is before disc.start=6"):
        replace(config, disc=replace(DISC, start=6))
    with pytest.raises(UserError, match="disc.r1_weight=1.0 needs second derivatives.*use mode=graph"):
        replace(config, disc=replace(DISC, r1_weight=1.0))
    with pytest.raises(UserError, match="disc.network.layers: frames of 8 x 8 are too small.*layers=2"):
        network = replace(NETWORK, layers=2)
        small(config, disc=replace(DISC, network=network, tubelets=1, tubelet_size=(2, 8, 8)))
    with pytest.raises(UserError, match="loss.perceptual_path: .*no such file.*tools/convert_lpips.py makes"):
        small(config, loss=replace(LOSS, perceptual_path=str(tmp_path / "none.safetensors")))


def test_unknown_losses_list_the_known():
    for option, known in (("reconstruction", "charbonnier"), ("adversarial", "non_saturating")):
        with pytest.raises(UserError, match=known):
            cli.parse(TaeTrainConfig, [f"--loss.{option}", "huber"])

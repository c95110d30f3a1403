"""The validation loss is the mean it says it is, and samples are what the network's velocity leads to."""

import json
import types

import mindspore  # noqa: F401 - must be loaded before decord
import numpy as np
import pytest
from mindspore import Tensor

from mg.config.train import SampleConfig
from mg.dataset.video import probe, read_video
from mg.pipelines.train_watch import FlowValidator, VideoSampler, decoder
from mg.rng import stream

SHAPE = (2, 4, 2, 4, 4)  # (b, c, t, h, w)


class Network:
    """Stands in for a transformer: its velocity is a constant, or depends on the text's first number."""

    config = types.SimpleNamespace(kinds=("ul2",))

    def __init__(self, constant=None):
        self.constant, self.levels, self.rows = constant, [], set()

    def set_train(self, mode):
        assert mode is False

    def __call__(self, x, timestep, mask, ul2):
        self.levels.append(float(timestep.asnumpy()[0]))
        self.rows.add(x.shape[0])
        velocity = ul2.asnumpy()[:, 0, 0] if self.constant is None else np.full(len(x), self.constant)
        return Tensor(np.broadcast_to(velocity.reshape(-1, 1, 1, 1, 1), x.shape).astype(np.float32))


def texts(value):
    ul2 = np.full((2, 2, 5), value, np.float32)
    return {"latent": np.zeros(SHAPE, np.float32), "mask": np.ones((2, 2), np.float32), "ul2": ul2}


def sampler(network, folder, decode=None, empty=None, **changes):
    config = SampleConfig(**{"num_inference_steps": 6, "sample_method": "linear", **changes})
    return VideoSampler(network, config, texts(2.0), empty, ["one", "two"], decode, folder)


def noise(row, seed=0):
    return stream(seed, "sample.noise", row).standard_normal(SHAPE[1:], np.float32)


def test_samples_follow_the_velocity_from_seeded_noise(tmp_path):
    network = Network(constant=0.75)
    found = sampler(network, tmp_path).sample()
    assert found.shape == (2, *SHAPE[1:]) and network.rows == {2}
    np.testing.assert_allclose(found, [noise(0) + 0.75, noise(1) + 0.75], atol=1e-5)
    np.testing.assert_allclose(network.levels, 1000 * np.arange(6, 0, -1) / 6, rtol=1e-6)
    np.testing.assert_allclose(sampler(network, tmp_path, seed=4).sample()[1], noise(1, seed=4) + 0.75, atol=1e-5)


def test_guidance_pushes_away_from_the_empty_prompt(tmp_path):
    found = sampler(Network(), tmp_path, empty=texts(0.5), guidance_scale=3.0).sample()
    np.testing.assert_allclose(found[0], noise(0) + 0.5 + 3.0 * (2.0 - 0.5), atol=1e-4)


def test_videos_and_a_contact_sheet_are_written(tmp_path):
    seen = []

    def decode(latents):
        seen.append(latents)
        return np.stack([np.full((3, 8, 32, 32), value, np.float32) for value in (-1.0, 0.5)])

    sampler(Network(1.0), tmp_path, decode, fps=12)(40)
    folder = tmp_path / "step-00000040"
    assert sorted(path.name for path in folder.iterdir()) == ["0.mp4", "1.mp4", "captions.json", "sheet.png"]
    assert json.loads((folder / "captions.json").read_text()) == ["one", "two"]
    np.testing.assert_allclose(seen[0][1], noise(1) + 1.0, atol=1e-5)
    info = probe(folder / "1.mp4")
    assert (info.num_frames, info.fps) == (8, 12)
    assert abs(float(read_video(folder / "1.mp4").mean()) - 191.25) < 4


def test_without_an_autoencoder_latents_are_written(tmp_path):
    sampler(Network(1.0), tmp_path)(7)
    latent = np.load(tmp_path / "step-00000007" / "0.npy")
    np.testing.assert_allclose(latent, (noise(0) + 1.0).transpose(1, 0, 2, 3), atol=1e-5)  # (t, c, h, w)


def test_a_diverged_network_does_not_end_the_training(tmp_path, caplog):
    sampler(Network(np.nan), tmp_path)(7)
    assert "step 7: no samples: NaN or Inf in the latent" in caplog.text
    assert not (tmp_path / "step-00000007").exists()


def test_a_disk_that_refuses_the_samples_does_not_end_the_training(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    sampler(Network(1.0), tmp_path / "taken")(7)
    assert "WARNING step 7: no samples: " in capsys.readouterr().err


def test_latents_are_unscaled_before_they_are_decoded():
    class Tae:
        scale_factor, shift_factor = 2.0, 0.25

        def decode(self, z, num_target_frames):
            assert (z.shape, num_target_frames) == ((1, *SHAPE[1:]), 16)
            return z[:, :3]

    latents = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    np.testing.assert_allclose(decoder(Tae(), 16)(latents), latents[:, :3] / 2 + 0.25, rtol=1e-6)


class Loss:
    """Stands in for the objective: timestep times the batch's factor, weighted by the batch's elements."""

    inputs = ("latent", "noise", "timestep", "mask", "ul2")

    def __init__(self):
        self.network = Network()

    def __call__(self, latent, noise, timestep, mask, ul2):
        levels = timestep.asnumpy()
        assert levels.shape == (len(latent),) and (levels == levels[0]).all()
        factor = float(noise.asnumpy().ravel()[0])
        return Tensor(np.float32(levels[0] * factor)), Tensor(np.float32(np.prod(latent.shape)))


def test_the_validation_loss_counts_elements_alike():
    batches = [{"latent": np.zeros((rows, 2, 1, 2, 2), np.float32), "noise": np.full(3, factor, np.float32),
                "mask": np.ones(2), "ul2": np.ones(2)} for rows, factor in ((1, 1.0), (3, 5.0))]  # fmt: skip
    validate = FlowValidator(Loss(), lambda: batches, 4)
    figures = validate(10)
    # (1 * 1 + 3 * 5) / 4 = 4 times the noise level.
    assert figures == pytest.approx(
        {"val_loss": 2500.0, "val_loss_250": 1000.0, "val_loss_500": 2000.0, "val_loss_750": 3000.0,
         "val_loss_1000": 4000.0}
    )  # fmt: skip
    assert list(figures) == validate.names
    assert validate(20) == figures

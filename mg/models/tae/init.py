"""Initialisation of the temporal autoencoder: a function of the seed and the parameters' names."""

import numpy as np
from mindspore import Parameter, Tensor, nn

from mg.models.tae.adapter import identity_taps
from mg.models.tae.config import TaeConfig
from mg.rng import stream

INITIAL_LOGVAR = -6.0


def initial_value(name: str, shape: tuple[int, ...], config: TaeConfig, seed: int) -> np.ndarray:
    """Value of one parameter before training.

    The network starts as a nearly linear codec: the last convolution of every residual block is zero, so that only
    the shortcuts and the changes of resolution act, and those keep the variance. The last projection of the temporal
    attention is zero unless the configuration says otherwise. Temporal convolutions pass frames through, temporal
    resampling averages neighbours. Norms are the identity, most biases zero.
    """
    if name.endswith("gamma"):
        return np.ones(shape, np.float32)
    if name == "encoder.conv_out.conv_temp.bias":
        # Start with little sampling noise: with variance 1 the first thousand steps would only learn to lower it.
        half = shape[0] // 2
        return np.concatenate([np.zeros(half), np.full(half, INITIAL_LOGVAR)]).astype(np.float32)
    if name.endswith(".conv_in.conv_temp.bias"):
        # Group norm takes away a clip's overall level and contrast; channels with a constant of their own keep them.
        return stream(seed, f"init.{name}").uniform(-1.0, 1.0, shape).astype(np.float32)
    if len(shape) == 1 or name.endswith(".conv2.conv_temp.weight"):
        return np.zeros(shape, np.float32)
    if "sample_temp." in name:
        return identity_taps(shape[0], 3) * 0.5 + np.roll(identity_taps(shape[0], 3), 1, -1) * 0.25 \
            + np.roll(identity_taps(shape[0], 3), -1, -1) * 0.25
    if ".conv_temp." in name:
        return identity_taps(shape[0], shape[-1])
    if ".attn_1." in name and ".proj_out." in name and config.zero_init_temporal_attention:
        return np.zeros(shape, np.float32)
    bound = (3.0 / float(np.prod(shape[1:]))) ** 0.5
    return stream(seed, f"init.{name}").uniform(-bound, bound, shape).astype(np.float32)


def initialise(network: nn.Cell, config: TaeConfig, seed: int) -> None:
    """Set every parameter of a network to its initial value."""
    parameter: Parameter
    for name, parameter in network.parameters_and_names():
        parameter.set_data(Tensor(initial_value(name, tuple(parameter.shape), config, seed)))

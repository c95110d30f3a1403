"""Initialisation of the temporal autoencoder: a function of the seed and the parameters' names."""

import numpy as np
from mindspore import Parameter, Tensor, nn

from mg.models.tae.adapter import identity_taps
from mg.models.tae.config import TaeConfig
from mg.rng import stream

INITIAL_LOGVAR = -6.0


def initial_value(name: str, shape: tuple[int, ...], config: TaeConfig, seed: int) -> np.ndarray:
    """Value of one parameter before training.

    Temporal convolutions pass frames through, the last projection of the temporal attention is zero unless the
    configuration says otherwise (so that an inflated network equals the image autoencoder), other weights are uniform
    with variance 1 / (3 fan_in), norms are the identity, biases zero.
    """
    if name.endswith("gamma"):
        return np.ones(shape, np.float32)
    if name == "encoder.conv_out.conv_temp.bias":
        # Start with little sampling noise: with variance 1 the first thousand steps would only learn to lower it.
        half = shape[0] // 2
        return np.concatenate([np.zeros(half), np.full(half, INITIAL_LOGVAR)]).astype(np.float32)
    if len(shape) == 1:
        return np.zeros(shape, np.float32)
    if ".conv_temp." in name or "sample_temp." in name:
        return identity_taps(shape[0], shape[-1])
    if ".attn_1.1.proj_out." in name and config.zero_init_temporal_attention:
        return np.zeros(shape, np.float32)
    bound = float(np.prod(shape[1:])) ** -0.5
    return stream(seed, f"init.{name}").uniform(-bound, bound, shape).astype(np.float32)


def initialise(network: nn.Cell, config: TaeConfig, seed: int) -> None:
    """Set every parameter of a network to its initial value."""
    parameter: Parameter
    for name, parameter in network.parameters_and_names():
        parameter.set_data(Tensor(initial_value(name, tuple(parameter.shape), config, seed)))

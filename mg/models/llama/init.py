"""Initialisation of the transformer: a function of the seed and the parameters' names."""

import numpy as np
from mindspore import Parameter, Tensor, nn

from mg.models.llama.config import LlamaConfig
from mg.rng import stream

INITIAL_STD = 0.02


def initial_value(name: str, shape: tuple[int, ...], config: LlamaConfig, seed: int) -> np.ndarray:
    """Value of one parameter before training, as in the reference.

    Noise of 0.02 for linear layers and position tables; zeros for the layer that makes the modulation and for the last
    one, so that the network starts as a velocity of zero; noise of 1 / sqrt(d) for the blocks' own modulation.
    """
    if "norm.weight" in name:
        return np.ones(shape, np.float32)
    if name in ("adaLN_modulation.1.weight", "final_layer.proj.weight") or name.endswith(".bias"):
        return np.zeros(shape, np.float32)
    std = config.hidden_size**-0.5 if name.endswith("scale_shift_table") else INITIAL_STD
    return stream(seed, f"init.{name}").standard_normal(shape, np.float32) * np.float32(std)


def initialise(network: nn.Cell, config: LlamaConfig, seed: int) -> None:
    """Set every parameter of a network to its initial value."""
    parameter: Parameter
    for name, parameter in network.parameters_and_names():
        parameter.set_data(Tensor(initial_value(name, tuple(parameter.shape), config, seed)))

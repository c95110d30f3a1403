"""The transformer's training objective: the squared error of the velocity (Movie Gen, section 3.1.2)."""

import math
from collections.abc import Mapping

import mindspore as ms
import numpy as np
from jaxtyping import Float
from mindspore import Tensor, nn, ops

from mg.models.llama.network import LlamaModel
from mg.schedulers.path import interpolate, tau_of, velocity

SIGMA_MIN = 1e-5
"""Share of the noise that is left at the path's end (Movie Gen, section 3.1.2)."""


class FlowLoss(nn.Cell):
    """Mean squared error between the predicted velocity and that of the straight path from noise to data, in FP32.

    With tau = 1 - timestep / 1000: the network sees tau * latent + (1 - (1 - sigma_min) * tau) * noise, its target is
    latent - (1 - sigma_min) * noise, the path's derivative with respect to tau (Movie Gen, eq. 2 and 3).

    construct(*inputs) -> (mean squared error, number of elements it is the mean of). The inputs, by name:
    latent and noise (b, c, t, h, w), scaled; timestep (b,), noise level in [0, 1000]; mask (b, m), 1 where a text token
    counts; one (b, m_k, d_k) per text encoder of the network; with token dropout, kept (b * k,) int32: the rows, k of
    each sample, of the (b * n) tokens that the network gets and that count in the loss.

    Args:
        network: the transformer to train.
        sigma_min: see above; 0 is rectified flow.
        token_drop: whether batches say which tokens are kept.
    """

    terms = ()

    def __init__(self, network: LlamaModel, sigma_min: float = SIGMA_MIN, token_drop: bool = False) -> None:
        super().__init__(auto_prefix=False)
        self.network = network
        self.sigma_min = sigma_min
        self.token_drop = token_drop
        self.inputs = ("latent", "noise", "timestep", "mask", *network.config.kinds, *(("kept",) if token_drop else ()))

    def units(self, batch: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Return how many tokens of video a batch has, those that token dropout leaves out not counted."""
        if self.token_drop:
            return {"tokens": len(batch["kept"])}
        b, _, *size = batch["latent"].shape
        return {"tokens": b * math.prod(self.network.config.tokens(*size))}

    def construct(
        self,
        latent: Float[Tensor, "b c t h w"],
        noise: Float[Tensor, "b c t h w"],
        timestep: Float[Tensor, " b"],
        mask: Float[Tensor, "b m"],
        *rest: Tensor,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """See the class."""
        state = interpolate(latent, noise, tau_of(timestep, 5), self.sigma_min)
        target = velocity(latent, noise, self.sigma_min)
        if self.token_drop:
            kept = rest[-1]
            found = self.network.token_velocity(state, timestep, mask, *rest[:-1], kept=kept)  # (b, k, c*p*q*r)
            patches = self.network.patch_targets(target)  # (b, n, c*p*q*r)
            target = ops.gather(patches.reshape(-1, patches.shape[2]), kept, 0).reshape(found.shape)
        else:
            found = self.network(state, timestep, mask, *rest)
        error = found - target
        return (error * error).mean(), Tensor(error.size, ms.float32)

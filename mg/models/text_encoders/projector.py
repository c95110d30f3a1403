"""The three encoders' tokens brought to one width and joined into one sequence."""

from collections.abc import Mapping, Sequence

import mindspore as ms
import numpy as np
from jaxtyping import Bool, Float
from mindspore import Parameter, Tensor, mint, nn

from mg.models.text_encoders.config import KINDS, WIDTHS
from mg.models.text_encoders.features import TextFeatures
from mg.ops import Linear, RMSNorm
from mg.rng import stream

INITIAL_STD = 0.02


class TextProjector(nn.Cell):
    """Linear without bias, then RMS norm, per encoder; the results joined along the tokens (Movie Gen, section 3.1.4).

    The order is always UL2, MetaCLIP, ByT5, whichever of them there are. Parameters are named as in the reference:
    `ul2_linear.weight` (out, width), `ul2_layernorm.weight` (out,), and so on.

    Args:
        out_features: width of the transformer.
        widths: size of each encoder's embeddings, by encoder; those left out have no part.
        eps: of the norms.
        seed: of the initial weights.

    Raises:
        ValueError: no encoder, or an unknown one.
    """

    def __init__(
        self, out_features: int, widths: Mapping[str, int] = WIDTHS, eps: float = 1e-5, seed: int = 0
    ) -> None:
        super().__init__()
        unknown = sorted(set(widths) - set(KINDS))
        if unknown or not widths:
            raise ValueError(f"text encoders {unknown or 'none'}: choose from {', '.join(KINDS)}")
        self.kinds = tuple(kind for kind in KINDS if kind in widths)
        for kind in self.kinds:
            linear = Linear(widths[kind], out_features, bias=False)
            noise = stream(seed, f"init.text_projector.{kind}_linear").standard_normal((out_features, widths[kind]))
            linear.weight = Parameter(Tensor(np.float32(noise * INITIAL_STD)), name="weight")
            setattr(self, f"{kind}_linear", linear)
            setattr(self, f"{kind}_layernorm", RMSNorm(out_features, eps))

    def construct(
        self,
        ul2: Float[Tensor, "b n1 d1"] | None = None,
        metaclip: Float[Tensor, "b n2 d2"] | None = None,
        byt5: Float[Tensor, "b n3 d3"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Project and join; give exactly the encoders that the projector was made for."""
        parts = ()
        if ul2 is not None:
            parts += (self.ul2_layernorm(self.ul2_linear(ul2)),)
        if metaclip is not None:
            parts += (self.metaclip_layernorm(self.metaclip_linear(metaclip)),)
        if byt5 is not None:
            parts += (self.byt5_layernorm(self.byt5_linear(byt5)),)
        return mint.cat(parts, 1) if len(parts) > 1 else parts[0]


def join_masks(features: Mapping[str, TextFeatures], masked: bool = True) -> Bool[np.ndarray, "b n"]:
    """Join the masks of the encoders in the order of their tokens: True where a key may be attended to.

    Args:
        features: by encoder.
        masked: False attends to padding too, as the reference does; its checkpoints need that.
    """
    masks = [features[kind].mask for kind in KINDS if kind in features]
    joined = np.concatenate(masks, 1)
    return joined if masked else np.ones_like(joined)


def ones_features(count: int, length: int, width: int) -> TextFeatures:
    """Embeddings of ones, all attended to: what the reference has in place of MetaCLIP (length 256, width 1280)."""
    shape = (count, length)
    return TextFeatures(np.ones((*shape, width), np.float32), np.ones(shape, bool), np.zeros(shape, np.int32))


def as_inputs(features: Mapping[str, TextFeatures], kinds: Sequence[str] = KINDS) -> dict[str, Tensor]:
    """Make the projector's inputs, float32, by encoder.

    Raises:
        ValueError: an encoder that the projector needs is missing, or one is there that it does not know.
    """
    if set(features) != set(kinds):
        raise ValueError(f"text features of {sorted(features)}; the projector takes exactly {list(kinds)}")
    return {kind: Tensor(features[kind].embeddings, ms.float32) for kind in kinds}

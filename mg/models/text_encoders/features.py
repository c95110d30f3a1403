"""What a text encoder gives."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class TextFeatures:
    """Embeddings of a batch of prompts by one encoder.

    Attributes:
        embeddings: float32; what stands where the mask is False means nothing.
        mask: True where there is a token.
        tokens: token ids, int32.
    """

    embeddings: Float[np.ndarray, "b n d"]
    mask: Bool[np.ndarray, "b n"]
    tokens: Int[np.ndarray, "b n"]

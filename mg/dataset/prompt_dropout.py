"""Prompt dropout for guidance: which prompts are replaced by the empty one, and the replacing."""

import numpy as np
from jaxtyping import Bool

from mg import rng
from mg.config.prompt_dropout import PromptDropout
from mg.models.text_encoders.features import TextFeatures


def drop_mask(
    seed: int,
    step: int,
    batch: int,
    *,
    encoders: int = 3,
    p_all: float,
    p_each: float,
    micro_step: int = 0,
    rank: int = 0,
) -> Bool[np.ndarray, "b encoders"]:
    """Draw whose prompts are replaced, a pure function of (seed, step, micro_step, rank).

    Args:
        seed: the run's, 0 or greater.
        step: training step, 0 or greater.
        batch: samples of this rank in this micro-step; a larger batch begins with the rows of a smaller one.
        encoders: number of text encoders.
        p_all: probability that a sample loses the prompts of all encoders together.
        p_each: otherwise, probability that an encoder loses its prompt, each by itself.
        micro_step: of gradient accumulation.
        rank: of data parallelism.

    Returns:
        True where the prompt is replaced by the empty one.

    Raises:
        UserError: a probability is outside 0 to 1, or the seed is negative.
    """
    PromptDropout(all=p_all, each=p_each, seed=seed)  # checks them
    draw = rng.stream(seed, "prompt-dropout", step, micro_step, rank).random((batch, 1 + encoders))
    return (draw[:, :1] < p_all) | (draw[:, 1:] < p_each)


def apply_drop(features: TextFeatures, empty: TextFeatures, dropped: Bool[np.ndarray, "b"]) -> TextFeatures:
    """Replace rows by the empty prompt: embeddings, mask and tokens.

    Args:
        features: of one encoder.
        empty: of the same encoder, one row: what it gives for "".
        dropped: True where a row is replaced; a column of `drop_mask`.

    Returns:
        New arrays; those given stay as they are.

    Raises:
        ValueError: the shapes do not fit.
    """
    rows = len(features.tokens)
    if empty.embeddings.shape != (1, *features.embeddings.shape[1:]) or dropped.shape != (rows,):
        raise ValueError(
            f"features {features.embeddings.shape} do not fit the empty prompt's {empty.embeddings.shape} and "
            f"{dropped.shape} rows to drop; encode the empty prompt alone, by the same encoder"
        )
    return TextFeatures(
        np.where(dropped[:, None, None], empty.embeddings, features.embeddings),
        np.where(dropped[:, None], empty.mask, features.mask),
        np.where(dropped[:, None], empty.tokens, features.tokens),
    )

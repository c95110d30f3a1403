"""Fine-tuning MetaCLIP for captions beyond its 77 tokens: which weights, towards what (Movie Gen, section 3.1.4)."""

from typing import Literal

import mindspore as ms
import numpy as np
from jaxtyping import Float, Int
from mindspore import Parameter, Tensor, mint, nn

from mg.models.text_encoders.network import TextTower

DEFAULT_LOGIT_SCALE = 1 / 0.07
"""Factor of the cosines where a checkpoint has none: what CLIP starts its training with."""


class PositionRows(nn.Cell):
    """A position table whose first rows stay as they are.

    They are a parameter of their own that is not trained: a gradient of zero alone would not keep weight decay, or an
    optimizer that mixes rows, from changing them.

    Args:
        table: all rows.
        kept: the number of those that stay, from the first on.
    """

    def __init__(self, table: Float[np.ndarray, "rows d"], kept: int) -> None:
        super().__init__()
        self.kept = Parameter(Tensor(table[:kept]), name="kept", requires_grad=False)
        self.added = Parameter(Tensor(table[kept:]), name="added")

    def construct(self, index: Int[Tensor, "*n"]) -> Float[Tensor, "*n d"]:
        return ms.ops.gather(mint.cat((self.kept, self.added), 0), index, 0)


def choose_trained(tower: TextTower, trainable: Literal["positions", "all"], kept: int = 0) -> None:
    """Mark the weights to train, and set the first position rows apart if they are to stay; see `join_positions`.

    Args:
        tower: a CLIP, altered in place.
        trainable: the position table alone, or everything.
        kept: position rows that are not trained; fewer than the table has.
    """
    if kept:
        embeddings = tower.model.text_model.embeddings
        table = embeddings.position_embedding.embedding_table.asnumpy()
        embeddings.position_embedding = PositionRows(table, kept)
    for name, param in tower.parameters_and_names():
        chosen = trainable == "all" or ".position_embedding." in name
        param.requires_grad = chosen and not name.endswith(".position_embedding.kept")


def join_positions(tower: TextTower) -> None:
    """Make one position table again, under its usual name, after `choose_trained`."""
    embeddings = tower.model.text_model.embeddings
    rows = embeddings.position_embedding
    if isinstance(rows, PositionRows):
        table = np.concatenate([rows.kept.asnumpy(), rows.added.asnumpy()])
        embeddings.position_embedding = nn.Embedding(*table.shape, embedding_table=Tensor(table))


def unit(x: Float[Tensor, "b p"]) -> Float[Tensor, "b p"]:
    """Scale rows to length 1; a row of zeros stays."""
    return x * mint.rsqrt(mint.clamp((x * x).sum(-1, keepdims=True), 1e-12, None))


class LongClipLoss(nn.Cell):
    """What long captions should give, plus the distance that short captions have moved.

    The first rows of a batch are long captions (`distill`: mean of 1 - cosine to a target; `contrastive`: CLIP's
    symmetric cross entropy between captions and their pictures), the others short ones (always 1 - cosine to the
    target, weighted). Targets have length 1.

    Args:
        network: a CLIP with projection.
        long_rows: rows of the first kind, at least 1; for `contrastive` no two of the same picture.
        short_rows: rows of the second kind; 0 leaves the term out.
        objective: see above.
        distill_weight: of the short captions' distance.
        logit_scale: what cosines are multiplied by before the softmax (`contrastive`), above 0.
    """

    inputs = ("tokens", "mask", "target")

    def __init__(
        self,
        network: TextTower,
        long_rows: int,
        short_rows: int = 0,
        objective: Literal["distill", "contrastive"] = "distill",
        distill_weight: float = 1.0,
        logit_scale: float = DEFAULT_LOGIT_SCALE,
    ) -> None:
        super().__init__(auto_prefix=False)
        if objective not in ("distill", "contrastive"):
            raise ValueError(f"objective={objective!r}: choose distill or contrastive")
        self.network = network
        self.long_rows, self.short_rows = long_rows, short_rows
        self.contrastive = objective == "contrastive"
        self.distill_weight, self.logit_scale = distill_weight, logit_scale
        self.terms = ("contrastive" if self.contrastive else "long", *(("short",) if short_rows else ()))
        self.diagonal = Tensor(np.eye(long_rows, dtype=np.float32))

    def cross_entropy(self, text: Float[Tensor, "k p"], image: Float[Tensor, "k p"]) -> Float[Tensor, ""]:
        """CLIP's objective: each caption finds its picture among the k, each picture its caption."""
        logits = self.logit_scale * mint.matmul(text, image.swapaxes(0, 1))  # (k, k)
        found = ms.ops.log_softmax(logits, -1) + ms.ops.log_softmax(logits.swapaxes(0, 1), -1)
        return -0.5 * (found * self.diagonal).sum() / self.long_rows

    def construct(
        self, tokens: Int[Tensor, "b n"], mask: Int[Tensor, "b n"], target: Float[Tensor, "b p"]
    ) -> tuple[Tensor, ...]:
        """Return (loss, number of rows, *terms)."""
        text = unit(self.network(tokens, mask)[0])  # (b, p)
        count = Tensor(self.long_rows + self.short_rows, ms.float32)
        k = self.long_rows
        if self.contrastive:
            first = self.cross_entropy(text[:k], target[:k])
        else:
            first = (1.0 - (text[:k] * target[:k]).sum(-1)).mean()
        if not self.short_rows:
            return first, count, first
        short = (1.0 - (text[k:] * target[k:]).sum(-1)).mean()
        return first + self.distill_weight * short, count, first, short

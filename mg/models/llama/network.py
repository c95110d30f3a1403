"""The Movie Gen transformer: noisy latent, noise level and text to the velocity (Movie Gen, section 3.1.3)."""

import mindspore as ms
import mindspore.ops.operations as prim
from jaxtyping import Float, Int
from mindspore import Tensor, mint, nn

from mg import device
from mg.models.llama.config import LlamaConfig, Size
from mg.models.llama.init import initialise
from mg.models.llama.modules import (
    Block,
    FinalLayer,
    PatchEmbedder,
    PositionTable,
    TimestepEmbedder,
    position_selector,
)
from mg.models.text_encoders.projector import TextProjector
from mg.ops import Linear


class LlamaModel(nn.Cell):
    """A LLaMa-style transformer over the patches of a latent, with attention to the text in every block.

    Latents are (b, c, t, h, w); an image is a latent of one frame. Weights are FP32; activations have the type asked
    for, norms, softmax, timestep and modulation are FP32.

    Args:
        config: sizes; one of `PRESETS`, for instance.
        dtype: "fp32", "fp16" or "bf16": type of the activations (FP32 where there are no BF16 kernels).
        recompute_every_nth_block: compute the activations of every n-th block again in the backward pass; None keeps
            all.
        seed: of the initial weights.
    """

    def __init__(
        self,
        config: LlamaConfig,
        dtype: str = "fp32",
        recompute_every_nth_block: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.patch_size, self.max_length, self.kinds = config.patch_size, config.max_length, config.kinds
        self.compute_type = device.compute_dtype(dtype)
        d = config.hidden_size
        self.layers = nn.CellList([Block(config) for _ in range(config.num_hidden_layers)])
        self.final_layer = FinalLayer(config)
        self.pos_embedding_table_t = PositionTable(config.max_length[0], d)
        self.pos_embedding_table_h = PositionTable(config.max_length[1], d)
        self.pos_embedding_table_w = PositionTable(config.max_length[2], d)
        self.latent_embedder = PatchEmbedder(config)
        self.timestep_embedder = TimestepEmbedder(config)
        self.adaLN_modulation = nn.SequentialCell(nn.SiLU(), Linear(d, 6 * d, bias=False))
        self.text_projector = TextProjector(d, dict(config.text_widths), config.rms_norm_eps, seed)
        self.transpose = prim.Transpose()
        initialise(self, config, seed)
        if recompute_every_nth_block is not None:
            for block in self.layers[::recompute_every_nth_block]:
                block.recompute()

    def construct(
        self,
        latent: Float[Tensor, "b c t h w"],
        timestep: Float[Tensor, " b"],
        text_mask: Float[Tensor, "b m"],
        *text: Float[Tensor, "b _ _"],
    ) -> Float[Tensor, "b c t h w"]:
        """Predict the velocity of a latent.

        Args:
            latent: scaled latent with noise.
            timestep: noise level in [0, 1000], 1000 is noise alone.
            text_mask: 1 where a text token may be attended to, the encoders' tokens one after the other.
            text: embeddings by encoder, in the order of `config.kinds`.

        Raises:
            UserError: the size is not a multiple of the patch or beyond the position tables.
        """
        return self.unpatchify(self.token_velocity(latent, timestep, text_mask, *text), latent.shape)

    def token_velocity(
        self,
        latent: Float[Tensor, "b c t h w"],
        timestep: Float[Tensor, " b"],
        text_mask: Float[Tensor, "b m"],
        *text: Float[Tensor, "b _ _"],
        kept: Int[Tensor, " k"] | None = None,
    ) -> Float[Tensor, "b n k"]:
        """Predict the velocity of every patch, numbers in the order (p, q, r, c).

        Args:
            latent: see `construct`, as the others.
            timestep: noise level.
            text_mask: of the text.
            text: embeddings.
            kept: rows of the (b * n) tokens that go through the blocks, as many of each latent (token dropout); the
                result has these alone.
        """
        b, _, t, h, w = latent.shape
        positions = self._positions((t, h, w))  # (n, d); first, because it checks the size
        x = self.latent_embedder(self.patchify(latent).astype(self.compute_type))  # (b, n, d)
        positions = positions.reshape(1, *positions.shape).astype(x.dtype)
        if b > 1:
            positions = mint.cat([positions] * b, 0)  # (b, n, d): sums of equal shapes are quicker
        if kept is not None:
            x, positions = _rows(x, kept), _rows(positions, kept)
        embedded = self.timestep_embedder(timestep)  # (b, d)
        modulation = self.adaLN_modulation(embedded).reshape(b, 6, -1)
        joined = self._joined(text)
        mask = text_mask.astype(ms.float32)
        for block in self.layers:
            x = block(x, positions, joined, mask, modulation)
        return self.final_layer(x, embedded).astype(ms.float32)

    def _joined(self, text: tuple[Tensor, ...]) -> Float[Tensor, "b m d"]:
        parts = [None, None, None]
        for i, kind in enumerate(self.kinds):
            parts[("ul2", "metaclip", "byt5").index(kind)] = text[i].astype(self.compute_type)
        return self.text_projector(parts[0], parts[1], parts[2])

    def _positions(self, size: Size) -> Float[Tensor, "n d"]:
        tables = (
            self.pos_embedding_table_t.embedding_table,
            self.pos_embedding_table_h.embedding_table,
            self.pos_embedding_table_w.embedding_table,
        )
        return mint.matmul(position_selector(size, self.patch_size, self.max_length), mint.cat(tables, 0))

    def patchify(self, latent: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b n k"]:
        """Cut a latent into patches: tokens in the order (t, h, w), the numbers of each in the order (c, p, q, r)."""
        b, c, t, h, w = latent.shape
        p, q, r = self.patch_size
        x = latent.reshape(b, c, t // p, p, h // q, q, w // r, r)
        return self.transpose(x, (0, 2, 4, 6, 1, 3, 5, 7)).reshape(b, -1, c * p * q * r)

    def unpatchify(
        self, tokens: Float[Tensor, "b n k"], shape: tuple[int, int, int, int, int]
    ) -> Float[Tensor, "b c t h w"]:
        """Join tokens, whose numbers are in the order (p, q, r, c), to a latent of a shape."""
        b, c, t, h, w = shape
        p, q, r = self.patch_size
        x = tokens.reshape(b, t // p, h // q, w // r, p, q, r, c)
        return self.transpose(x, (0, 7, 1, 4, 2, 5, 3, 6)).reshape(b, c, t, h, w)

    def patch_targets(self, latent: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b n k"]:
        """Cut a latent as `token_velocity` gives it: the numbers of each token in the order (p, q, r, c)."""
        b, c, t, h, w = latent.shape
        p, q, r = self.patch_size
        x = latent.reshape(b, c, t // p, p, h // q, q, w // r, r)
        return self.transpose(x, (0, 2, 4, 6, 3, 5, 7, 1)).reshape(b, -1, c * p * q * r)

    def check_size(self, t: int, h: int, w: int) -> Size:
        """Tokens along each axis of a latent of t x h x w; UserError for sizes the model cannot take."""
        return self.config.tokens(t, h, w)


def _rows(x: Float[Tensor, "b n d"], rows: Int[Tensor, " k"]) -> Float[Tensor, "b m d"]:
    b, _, d = x.shape
    return ms.ops.gather(x.reshape(-1, d), rows, 0).reshape(b, -1, d)

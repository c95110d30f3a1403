"""A plain PyTorch twin of the Movie Gen transformer, used to measure speed side by side and to check values.

Parameter names are those of the reference. Latents here are (n, t, c, h, w), as in the golden arrays.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class RMSNorm(nn.Module):
    """Root mean square norm."""

    def __init__(self, d, eps=1e-5):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(d)), eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def lin(i, o):
    """Linear layer without bias."""
    return nn.Linear(i, o, bias=False)


class Attention(nn.Module):
    """Multi-head attention."""

    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (lin(d, d) for _ in range(4))

    def forward(self, x, y, key_mask=None):
        def split(z):
            return z.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        m = None if key_mask is None else key_mask[:, None, None].bool()
        o = F.scaled_dot_product_attention(split(self.q_proj(x)), split(self.k_proj(y)), split(self.v_proj(y)), m)
        return self.o_proj(o.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, d, f):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = lin(d, f), lin(d, f), lin(f, d)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One block."""

    def __init__(self, d, f, heads):
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, d) / d**0.5)
        self.self_attn, self.cross_attn, self.mlp = Attention(d, heads), Attention(d, heads), MLP(d, f)
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(d), RMSNorm(d)

    def forward(self, h, pe, text, mod, mask):
        s1, c1, g1, s2, c2, g2 = (self.scale_shift_table + mod).chunk(6, 1)
        h = h + pe
        x = self.input_layernorm(h) * (1 + c1) + s1
        h = h + g1 * self.self_attn(x, x)
        h = h + self.cross_attn(h, text, mask)
        return h + g2 * self.mlp(self.post_attention_layernorm(h) * (1 + c2) + s2)


class Holder(nn.Module):
    """A module that only names its parts."""

    def __init__(self, **kw):
        super().__init__()
        for k, v in kw.items():
            setattr(self, k, v)


class TorchLlama(nn.Module):
    """The transformer."""

    def __init__(self, d=64, f=128, layers=2, heads=4, c=16, patch=(1, 2, 2), max_length=(4, 6, 6),
                 text=(4096, 1280, 1472)):  # fmt: skip
        super().__init__()
        self.patch, self.c, k = patch, c, c * math.prod(patch)
        self.latent_embedder = Holder(proj=lin(k, d))
        self.pos_embedding_table_t, self.pos_embedding_table_h, self.pos_embedding_table_w = (
            Holder(embedding_table=nn.Parameter(torch.randn(n, d) * 0.02)) for n in max_length
        )
        self.timestep_embedder = Holder(mlp=nn.Sequential(lin(256, d), nn.SiLU(), lin(d, d)))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), lin(d, 6 * d))
        self.text_projector = nn.Module()
        for name, w in zip(("ul2", "metaclip", "byt5"), text, strict=True):
            setattr(self.text_projector, name + "_linear", lin(w, d))
            setattr(self.text_projector, name + "_layernorm", RMSNorm(d))
        self.layers = nn.ModuleList(Layer(d, f, heads) for _ in range(layers))
        table = nn.Parameter(torch.randn(1, 2, d) / d**0.5)
        self.final_layer = Holder(scale_shift_table=table, input_layernorm=RMSNorm(d), proj=lin(d, k))

    def forward(self, x, timestep, ul2, metaclip, byt5, mask=None):
        n, t, c, h, w = x.shape
        p, q, r = self.patch
        a, b, e = t // p, h // q, w // r
        tok = x.reshape(n, a, p, c, b, q, e, r).permute(0, 1, 4, 6, 3, 2, 5, 7).reshape(n, a * b * e, -1)
        hid = self.latent_embedder.proj(tok)
        pt, ph, pw = (getattr(self, f"pos_embedding_table_{axis}").embedding_table for axis in "thw")
        pe = (pt[:a, None, None] + ph[None, :b, None] + pw[None, None, :e]).reshape(1, a * b * e, -1)
        freq = torch.exp(-math.log(10000) * torch.arange(128) / 128)
        ang = timestep[:, None].float() * freq
        temb = self.timestep_embedder.mlp(torch.cat([ang.cos(), ang.sin()], -1))
        mod = self.adaLN_modulation(temb).unflatten(-1, (6, -1))
        tp = self.text_projector
        given = (("ul2", ul2), ("metaclip", metaclip), ("byt5", byt5))
        text = torch.cat([getattr(tp, f"{s}_layernorm")(getattr(tp, f"{s}_linear")(v)) for s, v in given], 1)
        for layer in self.layers:
            hid = layer(hid, pe, text, mod, mask)
        f = self.final_layer
        shift, scale = (f.scale_shift_table + temb[:, None]).chunk(2, 1)
        out = f.proj(f.input_layernorm(hid) * (1 + scale) + shift)  # (p, q, r, c)
        return out.reshape(n, a, b, e, p, q, r, c).permute(0, 1, 4, 7, 2, 5, 3, 6).reshape(n, t, c, h, w)

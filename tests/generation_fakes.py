"""Stand-ins for the networks of a text-to-video pipeline whose answers can be computed by hand."""

import hashlib
from types import SimpleNamespace

import numpy as np
from mindspore import Tensor

from mg.models.llama import LlamaConfig
from mg.models.text_encoders.features import TextFeatures
from mg.pipelines.pipeline_folder import Conditioning
from mg.pipelines.text_to_video import TextToVideoPipeline

CONFIG = LlamaConfig(
    hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, max_length=(4, 6, 8),
    text_widths=(("ul2", 3), ("byt5", 2)),
)  # fmt: skip
LENGTHS = {"ul2": 6, "byt5": 4}


def said(text, words=6):
    """What the transformer understands of a text: a number, from the first words."""
    kept = text.split()[:words]
    return np.float32(sum(int(hashlib.sha256(word.encode()).hexdigest()[:4], 16) / 65536 for word in kept))


class Encoder:
    """One token per word, its embedding is `said` of the word in every place; encodes one text at a time."""

    dtype = "fp32"

    def __init__(self, kind, width, fingerprint="0123456789abcdef"):
        self.kind, self.width, self.fingerprint = kind, width, fingerprint
        self.texts, self.trims = [], set()

    def encode(self, texts, trim=False):
        self.texts.append(tuple(texts))
        self.trims.add(trim)
        embeddings, mask = np.zeros((len(texts), 8, self.width), np.float32), np.zeros((len(texts), 8), bool)
        for row, text in enumerate(texts):
            words = text.split()[:8]
            mask[row, : len(words)] = True
            for place, word in enumerate(words):
                embeddings[row, place] = said(word)
            if not trim:
                embeddings[row, len(words) :] = 9.0
        return TextFeatures(embeddings, mask, mask.astype(np.int32))


class Transformer:
    """`velocity(x, level, text)` by a rule; the text is one number per row, the masked sum of UL2's first values."""

    def __init__(self, rule=None, config=CONFIG):
        self.config, self.calls = config, []
        self.rule = rule or (lambda x, level, text: text + 0 * x)

    def set_train(self, mode):
        self.training = mode

    def check_size(self, t, h, w):
        return self.config.tokens(t, h, w)

    def __call__(self, x, timestep, mask, *text):
        x, timestep, mask, *text = (array.asnumpy() for array in (x, timestep, mask, *text))
        self.calls.append(SimpleNamespace(x=x, level=timestep, mask=mask, text=text))
        first = text[0]
        number = (first[:, :, 0] * mask[:, : first.shape[1]]).sum(1).reshape(-1, 1, 1, 1, 1)
        return Tensor(np.float32(self.rule(x, timestep.reshape(-1, 1, 1, 1, 1), number)))


class Tae:
    """Decodes the first three channels, each latent position to 8x8x8 equal pixels."""

    time_compress = spatial_compress = 8
    scale_factor, shift_factor = 2.0, 0.25

    def __init__(self, faulty=False):
        self.shapes, self.faulty = [], faulty

    def decode(self, z, num_target_frames):
        self.shapes.append(z.shape)
        z = z.asnumpy()[:, :3]
        pixels = np.kron(z, np.ones((1, 1, 8, 8, 8), np.float32))[:, :, :num_target_frames]
        return Tensor(np.full_like(pixels, np.nan) if self.faulty else pixels)


def pipeline(rule=None, tae=True, encoders=("ul2", "byt5"), **conditioning):
    """A pipeline of stand-ins; `conditioning` as in `Conditioning`."""
    widths = dict(CONFIG.text_widths)
    told = Conditioning(**{"text_lengths": LENGTHS, **conditioning})
    towers = {kind: Encoder(kind, widths[kind]) for kind in encoders}
    return TextToVideoPipeline(Transformer(rule), Tae() if tae else None, towers, told)

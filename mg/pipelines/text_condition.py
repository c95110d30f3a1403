"""Prompts to what the transformer reads of them: embeddings of fixed lengths and one mask."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from mg.dataset.text_npz import read_text_npz
from mg.errors import UserError
from mg.models.text_encoders.encoder import TextEncoder
from mg.models.text_encoders.features import TextFeatures
from mg.models.text_encoders.prompts import clean_prompt
from mg.pipelines.pipeline_folder import Conditioning


@dataclass(frozen=True)
class Condition:
    """One prompt as the transformer reads it.

    Attributes:
        mask: 1 where a text token may be attended to, the encoders' tokens one after the other.
        text: embeddings by encoder, in the transformer's order.
    """

    mask: Float[np.ndarray, "n"]
    text: tuple[Float[np.ndarray, "n_k d_k"], ...]


class TextConditioner:
    """Encodes prompts; each text once per call, and what the last call encoded is not encoded again.

    Args:
        widths: size of the embeddings by encoder, in the transformer's order.
        conditioning: lengths, and whether padding is attended to.
        encoders: those there are.
    """

    def __init__(
        self, widths: Mapping[str, int], conditioning: Conditioning, encoders: Mapping[str, TextEncoder]
    ) -> None:
        self.widths, self.conditioning, self.encoders = dict(widths), conditioning, dict(encoders)
        self._known: dict[str, Condition] = {}
        for kind, encoder in self.encoders.items():
            if kind in self.widths and encoder.width != self.widths[kind]:
                raise UserError(
                    f"text_encoder_{kind}: its embeddings have {encoder.width} values, the transformer reads "
                    f"{self.widths[kind]}; use the encoder it was trained with"
                )

    def missing(self) -> list[str]:
        """Encoders that prompts need and that are not there."""
        return [kind for kind in self.widths if kind not in self.encoders and kind not in self.conditioning.ones]

    def encode(self, prompts: Sequence[str]) -> dict[str, Condition]:
        """Encode prompts; the result is by prompt as given.

        Raises:
            UserError: an encoder is missing, or gives NaN or infinity.
        """
        cleaned = {prompt: clean_prompt(prompt) for prompt in prompts}
        new = [text for text in dict.fromkeys(cleaned.values()) if text not in self._known]
        known = {text: self._known[text] for text in cleaned.values() if text in self._known}
        if new:
            known.update(zip(new, self._encode(new), strict=True))
        self._known = known
        return {prompt: known[text] for prompt, text in cleaned.items()}

    def _encode(self, texts: list[str]) -> list[Condition]:
        if missing := self.missing():
            raise UserError(
                f"prompts need the text encoder {missing[0]}, which the pipeline lacks; add its folder "
                f"text_encoder_{missing[0]}, or give embeddings by --text_emb.{missing[0]}_dir"
            )
        conditions = []
        for text in texts:
            row = {}
            for kind in self.widths:
                if kind in self.conditioning.ones:
                    continue
                # One at a time: with others beside it the last bits of an embedding would be other ones. What a tower
                # gives for padding is wanted only by a transformer that attends to it.
                features = self.encoders[kind].encode([text], trim=not self.conditioning.attend_padding)
                row[kind] = TextFeatures(features.embeddings[0], features.mask[0], features.tokens[0])
            conditions.append(self.condition(row))
        return conditions

    def condition(self, row: Mapping[str, TextFeatures], source: str = "text encoder") -> Condition:
        """Cut or pad one prompt's embeddings, without a batch axis, to the transformer's lengths and join the masks.

        Raises:
            UserError: NaN, infinity or another width; the message names the source.
        """
        masks, text = [], []
        for kind, width in self.widths.items():
            length = self.conditioning.text_lengths[kind]
            if kind in self.conditioning.ones:
                embeddings, mask = np.ones((length, width), np.float32), np.ones(length, bool)
            else:
                embeddings, mask = fitted(row[kind], length, keep_padding=self.conditioning.attend_padding)
            if embeddings.shape[1] != width:
                raise UserError(
                    f"{source} {kind}: embeddings of {embeddings.shape[1]} values, the transformer reads {width}; "
                    "use the encoder it was trained with"
                )
            if not np.isfinite(embeddings).all():
                raise UserError(f"{source} {kind}: NaN or infinity in the embeddings; use fp32, or other weights")
            masks.append(np.ones(length, bool) if self.conditioning.attend_padding else mask)
            text.append(embeddings)
        return Condition(np.concatenate(masks).astype(np.float32), tuple(text))

    def read(self, files: Mapping[str, Path]) -> Condition:
        """Read one prompt's embeddings from .npz files, by encoder.

        Raises:
            UserError: a file is missing, damaged, of another width, or of another encoder than the transformer's.
        """
        for kind in self.widths:
            if kind not in files and kind not in self.conditioning.ones:
                raise UserError(f"the transformer reads {kind} embeddings: give their folder, --text_emb.{kind}_dir")
        row = {}
        for kind, path in files.items():
            features, made_by = read_text_npz(path)
            wanted = self.conditioning.trained_with.get(kind)
            if made_by and wanted and made_by != wanted:
                raise UserError(
                    f"{path}: embeddings of another {kind} encoder ({made_by}) than the transformer was trained with "
                    f"({wanted}); encode the prompts with that one"
                )
            row[kind] = TextFeatures(features.embeddings[0], features.mask[0], features.tokens[0])
        return self.condition(row, " and ".join(map(str, files.values())))

    def zeros(self) -> Condition:
        """No text at all: nothing to attend to."""
        lengths = self.conditioning.text_lengths
        text = tuple(np.zeros((lengths[kind], width), np.float32) for kind, width in self.widths.items())
        return Condition(np.zeros(sum(len(part) for part in text), np.float32), text)


def fitted(
    features: TextFeatures, length: int, keep_padding: bool = False
) -> tuple[Float[np.ndarray, "n d"], Bool[np.ndarray, "n"]]:
    """Cut or pad one prompt's embeddings (n, d) and mask (n,) to a length; padding is zeros unless it is to be kept."""
    embeddings, mask = features.embeddings[:length], features.mask[:length]
    if not keep_padding:
        embeddings = np.where(mask[:, None], embeddings, np.float32(0))
    short = length - len(mask)
    return np.pad(embeddings, ((0, short), (0, 0))), np.pad(mask, (0, short))

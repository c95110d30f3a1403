"""Text to tokens: the rule for what is read, the tokenizer, padding and masks."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int

from mg.errors import UserError
from mg.files import write_json
from mg.models.text_encoders.config import LENGTHS, Kind, read_json
from mg.models.text_encoders.prompts import clean_prompt, quoted_text

FILE = "mg_processor.json"
"""File in an encoder's folder with the options of its processor; a folder without it has the defaults."""


@dataclass(frozen=True, kw_only=True)
class ProcessorConfig:
    """What an encoder reads of a prompt, apart from the encoder itself.

    Attributes:
        max_length: tokens per prompt, the closing one included; longer prompts are cut.
        text: "all" of the prompt, or only what is "quoted" in it (ByT5: text to be drawn; Movie Gen, section 3.1.4).

    Raises:
        UserError: a value is out of range.
    """

    max_length: int
    text: Literal["all", "quoted"] = "all"

    def __post_init__(self) -> None:
        """Check both."""
        if not isinstance(self.max_length, int) or self.max_length < 2:
            raise UserError(f"max_length={self.max_length}: give at least 2, one token and the closing one")
        if self.text not in ("all", "quoted"):
            raise UserError(f"text={self.text}: choose all or quoted")

    @classmethod
    def of(cls, folder: Path, kind: Kind, **given: Any) -> "ProcessorConfig":
        """Put options together: those given (None: not given), else the folder's own, else the encoder's defaults."""
        options = {"max_length": LENGTHS[kind], "text": "quoted" if kind == "byt5" else "all"}
        path = folder / FILE
        if path.is_file():
            stored = read_json(path, "write the encoder again")
            unknown = sorted(set(stored) - set(options))
            if unknown:
                raise UserError(f"{path}: unknown option {unknown[0]}; remove it")
            options.update(stored)
        options.update({name: value for name, value in given.items() if value is not None})
        return cls(**options)


class Processor:
    """Turns prompts into token ids of one length and their mask.

    Args:
        tokenizer: of the transformers library.
        config: what is read, and how long.
        vocab_size: ids must be below it, if given.
    """

    def __init__(self, tokenizer: Any, config: ProcessorConfig, vocab_size: int | None = None) -> None:
        self.tokenizer, self.config = tokenizer, config
        if vocab_size is not None and len(tokenizer) > vocab_size:
            raise UserError(
                f"{tokenizer.name_or_path}: the tokenizer knows {len(tokenizer)} tokens, the encoder only {vocab_size};"
                " put the encoder's own tokenizer files beside it"
            )
        if tokenizer.pad_token_id is None:
            raise UserError(f"{tokenizer.name_or_path}: the tokenizer has no padding token; name one in its files")

    @classmethod
    def from_pretrained(cls, folder: Path, config: ProcessorConfig, vocab_size: int | None = None) -> "Processor":
        """Load the tokenizer of a Hugging Face folder; nothing is fetched and no code of the folder runs.

        Raises:
            UserError: files missing or damaged.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        # The library and its Rust half raise whatever comes (OSError, ValueError, TypeError, KeyError, Exception
        # itself) for a missing or damaged file; all of it means the same here.
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(
                f"{folder}: no usable tokenizer files ({reason}); fetch tokenizer.json, spiece.model or vocab.json and "
                "merges.txt, with tokenizer_config.json, again"
            ) from error
        return cls(tokenizer, config, vocab_size)

    def __call__(self, texts: Sequence[str]) -> tuple[Int[np.ndarray, "b n"], Bool[np.ndarray, "b n"]]:
        """Tokenize prompts.

        Returns:
            Token ids (int32), padded to `max_length`, and True where there is a token. A prompt of which nothing is
            read (no quotes) has no token at all; an empty prompt that is read has those which the tokenizer adds.
        """
        read = [clean_prompt(text) for text in texts]
        if self.config.text == "quoted":
            read = [quoted_text(text) for text in read]
        length = self.config.max_length
        out = self.tokenizer(
            read, max_length=length, truncation=True, padding="max_length", padding_side="right", return_tensors="np"
        )
        tokens = out["input_ids"].reshape(-1, length).astype(np.int32)
        mask = out["attention_mask"].reshape(-1, length).astype(bool)
        if self.config.text == "quoted":
            nothing = np.array([not text for text in read], bool)
            tokens[nothing], mask[nothing] = self.tokenizer.pad_token_id, False
        return tokens, mask

    def save_pretrained(self, folder: Path) -> None:
        """Write the tokenizer's files and the options into a folder."""
        self._unused()
        self.tokenizer.save_pretrained(str(folder))
        write_json(folder / FILE, asdict(self.config))

    def identity(self) -> str:
        """Everything that decides about the tokens, as text, for a fingerprint."""
        tokenizer, fast = self.tokenizer, self._unused()
        # A slow tokenizer has no description of itself, but its vocabulary and its class.
        inside = fast.to_str() if fast is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
        return json.dumps([type(tokenizer).__name__.removesuffix("Fast"), inside, asdict(self.config)])

    def _unused(self) -> Any:
        """Return the fast tokenizer, None for a slow one, without the cutting and padding that its last use left in it.

        They would be written into its files and its description; each use sets them again.
        """
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        if fast is not None:
            fast.no_truncation()
            fast.no_padding()
        return fast

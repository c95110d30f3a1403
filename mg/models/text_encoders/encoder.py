"""A text encoder as users meet it: a Hugging Face folder in, embeddings of prompts out."""

import dataclasses
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from jaxtyping import Bool, Float, Int
from mindspore import Tensor

from mg import device
from mg.errors import UserError
from mg.files import writable_folder, write_json
from mg.log import get_logger
from mg.models.text_encoders.adapter import PROJECTION, TowerWeights, file_name
from mg.models.text_encoders.config import KINDS, Kind, TowerConfig, read_config
from mg.models.text_encoders.features import TextFeatures
from mg.models.text_encoders.network import TextTower
from mg.models.text_encoders.processor import Processor, ProcessorConfig
from mg.weights import check_finite, load_into, open_weights, write_weights

MAX_BATCH = 32
"""Prompts that go through the network at once."""

_SHORTEST = 16
_PICKLES = ("*.bin", "*.pt", "*.pth")


class TextEncoder:
    """One of Movie Gen's three text encoders (section 3.1.4): UL2, MetaCLIP or ByT5.

    Make one with `from_pretrained`. Embeddings are those of the tower's last layer, one per token.

    Attributes:
        kind: "ul2", "metaclip" or "byt5".
        width: size of an embedding.
        processor: text to tokens.
        tower: the network.
    """

    def __init__(self, config: TowerConfig, processor: Processor, tower: TextTower, dtype: str = "fp32") -> None:
        self.config, self.processor, self.tower, self.dtype = config, processor, tower, dtype
        self.kind: Kind = config.kind
        self.width = config.width
        self._shapes: set[tuple[int, int]] = set()

    @property
    def max_length(self) -> int:
        """Tokens per prompt."""
        return self.processor.config.max_length

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        kind: Kind | None = None,
        max_length: int | None = None,
        num_layers: int | None = None,
        dtype: str = "fp32",
        text: str | None = None,
    ) -> "TextEncoder":
        """Load an encoder from a Hugging Face folder: config.json, .safetensors (one or sharded), tokenizer files.

        Args:
            folder: of a T5 (UL2, ByT5) or CLIP (MetaCLIP), whole model or text part.
            kind: None to tell by the configuration.
            max_length: tokens per prompt; None for what the folder says, else 512, 256 and 128. A position table that
                is too short is lengthened, see `extend_positions`.
            num_layers: use the first so many blocks only (then the last norm); None for all.
            dtype: of weights and activations, "fp32", "fp16" or "bf16" (FP32 where there are no BF16 kernels).
            text: "all" of a prompt or only what is "quoted" in it; None for what the folder says, else "quoted" for
                ByT5 and "all" for the others.

        Raises:
            UserError: files missing, damaged or of another model; a value out of range.
        """
        folder = Path(folder)
        if kind is not None and kind not in KINDS:
            raise UserError(f"kind={kind}: choose {', '.join(KINDS)}")
        stored = read_config(folder, kind)
        config = _cut(stored, num_layers)
        options = ProcessorConfig.of(folder, config.kind, max_length=max_length, text=text)
        if config.positions is not None:
            config = _with_positions(config, options.max_length)
        processor = Processor.from_pretrained(folder, options, config.values.get("vocab_size"))
        weights = TowerWeights(config.kind, open_weights(_weights_of(folder)), config.layers, config.positions)
        if config.positions is not None and weights.stored_positions not in (None, config.positions):
            get_logger().info(
                "%s: position table from %d to %d; rows beyond the old ones are untrained",
                folder, weights.stored_positions, config.positions,
            )  # fmt: skip
        tower = TextTower(config, projection=PROJECTION in weights)
        _set_dtype(tower, device.compute_dtype(dtype))
        load_into(tower.model, weights, path=folder)
        for name, param in tower.parameters_and_names():  # one at a time: a copy of UL2 would not fit
            check_finite({name: param.float().asnumpy()}, folder)
        return cls(config, processor, tower, dtype)

    def tokenize(self, texts: Sequence[str]) -> tuple[Int[np.ndarray, "b n"], Bool[np.ndarray, "b n"]]:
        """Turn prompts into token ids (int32) and their mask, both padded to `max_length`."""
        return self.processor(texts)

    def encode(self, texts: Sequence[str], trim: bool = False) -> TextFeatures:
        """Embed prompts, any number of them.

        Args:
            texts: prompts; an empty one is the null prompt of guidance.
            trim: do not compute the embeddings of padding (they come as zeros); the others are the same.
        """
        return self.encode_tokens(*self.tokenize(texts), trim=trim)

    def encode_tokens(
        self, tokens: Int[np.ndarray, "b n"], mask: Bool[np.ndarray, "b n"], trim: bool = False
    ) -> TextFeatures:
        """Embed prompts that are tokens already; see `encode`. Prompts without a single token give zeros."""
        embeddings = np.zeros((*tokens.shape, self.width), np.float32)
        for start in range(0, len(tokens), MAX_BATCH):
            rows = np.arange(start, min(start + MAX_BATCH, len(tokens)))
            rows = rows[mask[rows].any(1)]
            if len(rows) == 0:
                continue
            length = self._length(mask[rows]) if trim else tokens.shape[1]
            part = self._run(tokens[rows, :length], mask[rows, :length])
            # What the tower gives for padding depends on how much of it there is: with `trim` none is kept.
            embeddings[rows, :length] = np.where(mask[rows, :length, None], part, 0) if trim else part
        return TextFeatures(embeddings, mask, tokens)

    def pooled(self, tokens: Int[np.ndarray, "b n"], mask: Bool[np.ndarray, "b n"]) -> Float[np.ndarray, "b p"]:
        """Embed whole texts in the space shared with pictures: the projected end-of-text token (CLIP).

        Raises:
            UserError: the encoder has no projection.
        """
        if not self.tower.projection:
            raise UserError(f"{self.kind}: no {PROJECTION} in its weights, so it has no embedding of whole texts")
        parts = [
            self.tower(Tensor(tokens[i : i + MAX_BATCH]), Tensor(mask[i : i + MAX_BATCH].astype(np.int32)))[0]
            for i in range(0, len(tokens), MAX_BATCH)
        ]
        return np.concatenate([part.float().asnumpy() for part in parts])

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with anything that could change an embedding: weights, sizes, tokenizer, rules."""
        digest = hashlib.sha256()
        options = {name: self.config.values[name] for name in sorted(self.config.values) if name not in _UNRELATED}
        digest.update(json.dumps([self.kind, self.dtype, self.config.layers, options], default=str).encode())
        digest.update(self.processor.identity().encode())
        for name, param in sorted(self.tower.parameters_and_names()):
            digest.update(f"{name} {param.dtype} {tuple(param.shape)}".encode())
            digest.update(np.ascontiguousarray(param.asnumpy()).tobytes())
        return digest.hexdigest()[:16]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors, tokenizer files and processor options; `from_pretrained` reads them.

        Raises:
            UserError: the folder cannot be written.
        """
        folder = writable_folder(folder, "folder")
        values = {**self.config.values, _LAYERS[self.kind]: self.config.layers}
        values["architectures"] = [type(self.tower.model).__name__]
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
            part = Path(temporary)
            self.processor.save_pretrained(part)
            write_json(part / "config.json", values)
            tensors = {
                file_name(self.kind, name): param.float().asnumpy()
                for name, param in self.tower.model.parameters_and_names()
            }
            write_weights(part / "model.safetensors", tensors, {"format": "pt"}, dtype=self.dtype)
            # Each file is whole and lands at once. Without its configuration, the last one, a folder is refused: a kill
            # in between never leaves new weights with the options of old ones.
            (folder / "config.json").unlink(missing_ok=True)
            for file in sorted(part.iterdir(), key=lambda file: file.name == "config.json"):
                shutil.move(file, folder / file.name)

    def _length(self, mask: np.ndarray) -> int:
        """Shortest of 16, 32, 64, ... that holds every token, so that few shapes are compiled."""
        needed = int(np.flatnonzero(mask.any(0))[-1]) + 1
        length = _SHORTEST
        while length < needed:
            length *= 2
        return min(length, mask.shape[1])

    @functools.cached_property
    def _graph(self) -> Callable[[Tensor, Tensor], Tensor]:
        # In PyNative the CPU has no kernel for the numbering of tokens that mindone's T5 begins with.
        return ms.jit(self.tower.construct)

    def _run(self, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Run the network on a batch, filled up to a batch size that is compiled already where there is one."""
        b, n = tokens.shape
        size = min((rows for rows, length in self._shapes if length == n and rows >= b), default=b)
        self._shapes.add((size, n))
        fill = ((0, size - b), (0, 0))
        tokens, mask = np.pad(tokens, fill, mode="edge"), np.pad(mask.astype(np.int32), fill, mode="edge")
        needs_graph = self.kind != "metaclip" and device.is_cpu() and ms.get_context("mode") == ms.PYNATIVE_MODE
        out = (self._graph if needs_graph else self.tower)(Tensor(tokens), Tensor(mask))
        return (out[1] if self.tower.projection else out).float().asnumpy()[:b]


_LAYERS = {"ul2": "num_layers", "byt5": "num_layers", "metaclip": "num_hidden_layers"}
# Entries of a configuration that no embedding depends on.
_UNRELATED = ("architectures", "transformers_version", "_name_or_path", "dtype", "torch_dtype")


def _weights_of(folder: Path) -> Path:
    for name in ("model.safetensors.index.json", "model.safetensors"):
        if (folder / name).is_file():
            return folder / name
    if not any(folder.glob("*.safetensors*")) and any(next(folder.glob(kind), None) for kind in _PICKLES):
        raise UserError(
            f"{folder}: its weights are pickles, which could run code; convert them first: "
            f"python tools/download_convert_st.py {folder}"
        )
    return folder


def _cut(config: TowerConfig, layers: int | None) -> TowerConfig:
    if layers is None:
        return config
    if not 1 <= layers <= config.layers:
        raise UserError(f"num_layers={layers}: the encoder has {config.layers} layers; choose 1 to {config.layers}")
    return dataclasses.replace(config, layers=layers, values={**config.values, _LAYERS[config.kind]: layers})


def _with_positions(config: TowerConfig, positions: int) -> TowerConfig:
    values: dict[str, Any] = {**config.values, "max_position_embeddings": positions}
    return dataclasses.replace(config, positions=positions, values=values)


def _set_dtype(tower: TextTower, dtype: ms.Type) -> None:
    """Give the weights a type, which the activations follow."""
    for name, param in tower.parameters_and_names():
        # T5's second feed-forward matrix exceeds FP16; its code converts to and from FP32 by itself.
        wide = dtype == ms.float16 and name.endswith(".wo.weight")
        param.set_dtype(ms.float32 if wide else dtype)


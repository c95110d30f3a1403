"""Time the text encoders against PyTorch's transformers, in turn, from the same folder and on the same padded batch.

Both run FP32 on the CPU, MindSpore in graph mode after compilation, PyTorch eager as transformers ships it. `tiny` are
the three shipped encoders, `byt5-small` has the sizes of google/byt5-small with random weights. Tokenizing is not
timed: both sides use the same tokenizer. Batches are as large as `TextEncoder.encode` makes them. One timed run of a
tiny encoder is a stream of batches: a single one is a few milliseconds.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from paired import at_least_one, compare, serve

from mg.config import cli

TINY = Path(__file__).resolve().parent.parent / "assets/text"
CAPTION = 'A dog runs through deep snow towards a sign that says "HELLO", while the camera follows it slowly.'
BYT5_SMALL = {"d_model": 1472, "d_ff": 3584, "d_kv": 64, "num_heads": 6, "num_layers": 12, "num_decoder_layers": 4}


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["ul2", "metaclip", "byt5", "byt5-small"],
                        choices=["ul2", "metaclip", "byt5", "byt5-small"], help="the first three: tiny")  # fmt: skip
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--batches", type=int, help="batches per timed run; default 20 for tiny, 1 for byt5-small")
    parser.add_argument("--runs", type=int, default=5, help="counted pairs, after one warm-up pair")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=["mindspore", "torch"], help=argparse.SUPPRESS)
    return at_least_one(parser.parse_args(argv), "batch_size", "batches", "runs")


def _byt5_small(folder: Path) -> Path:
    """Write a folder with the sizes of byt5-small and random weights."""
    import torch
    from transformers import T5Config, T5EncoderModel

    shutil.copytree(TINY / "byt5", folder)
    values = json.loads((folder / "config.json").read_text())
    torch.manual_seed(0)
    T5EncoderModel(T5Config(**{**values, **BYT5_SMALL, "vocab_size": 384})).save_pretrained(folder)
    return folder


def _batch(folder: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask of captions of different lengths, padded to the encoder's length."""
    from mg.models.text_encoders.config import read_config
    from mg.models.text_encoders.processor import Processor, ProcessorConfig

    config = read_config(Path(folder))
    options = ProcessorConfig.of(Path(folder), config.kind, text="all", max_length=config.positions)
    texts = [CAPTION * (1 + row % 3) for row in range(size)]
    return Processor.from_pretrained(Path(folder), options)(texts)


def _mindspore(args: argparse.Namespace) -> Callable[[], np.ndarray]:
    from mg import device
    from mg.models.text_encoders import TextEncoder

    device.setup("CPU")
    tokens, mask = _batch(args.folder, args.batch_size)
    encoder = TextEncoder.from_pretrained(args.folder, max_length=tokens.shape[1])
    return lambda: [encoder.encode_tokens(tokens, mask).embeddings for _ in range(args.batches)][-1]


def _torch(args: argparse.Namespace) -> Callable[[], np.ndarray]:
    import torch
    from transformers import CLIPTextModelWithProjection, T5EncoderModel

    tokens, mask = (torch.tensor(array).long() for array in _batch(args.folder, args.batch_size))
    kind = CLIPTextModelWithProjection if "clip" in Path(args.folder).name else T5EncoderModel
    model = kind.from_pretrained(args.folder, dtype=torch.float32).eval()

    def run() -> np.ndarray:
        with torch.no_grad():
            batches = (model(input_ids=tokens, attention_mask=mask) for _ in range(args.batches))
            return [out.last_hidden_state.numpy() for out in batches][-1]

    return run


def main(argv: list[str]) -> None:
    """Compare, or be one of the two processes."""
    args = _arguments(argv)
    if args.worker:
        serve({"mindspore": _mindspore, "torch": _torch}[args.worker](args))
        return
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.models:
            folder = _byt5_small(Path(temporary) / name) if name == "byt5-small" else TINY / name
            batches = args.batches or (1 if name == "byt5-small" else 20)
            options = ["--folder", str(folder), "--batch_size", str(args.batch_size), "--batches", str(batches)]
            shape = _batch(str(folder), args.batch_size)[0].shape
            label = f"{name}, {batches} batches of {shape[0]} prompts of {shape[1]} tokens"
            compare(__file__, options, args.runs, label)


if __name__ == "__main__":
    cli.run(main)

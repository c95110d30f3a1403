"""Encode a list of prompts, row by row: embeddings as files or as a cache."""

import hashlib
import itertools
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int
from tqdm import tqdm

from mg import device
from mg.config.encode_text import EncodeTextConfig
from mg.dataset.manifest import IMAGE_SUFFIXES
from mg.dataset.prompt_list import PromptRow, read_prompts
from mg.dataset.text_cache import EncoderRecord
from mg.dataset.video import probe
from mg.errors import BadClip, NoGoodClip, UserError
from mg.files import writable_folder, write_json
from mg.log import get_logger
from mg.models.text_encoders.encoder import TextEncoder
from mg.models.text_encoders.prompts import fps_prefix
from mg.pipelines.convert_hf import fetch
from mg.pipelines.text_outputs import CacheShards, Job, NpzFiles

LISTED = 1000
"""Rows that could not be used and are listed in the summary; of the others it has the number."""
_TOLD = 20
_ROWS_PER_TEXT = 64
_SECONDS = 30


def run(config: EncodeTextConfig) -> dict:
    """Load the encoder and encode the prompts; see `encode_prompts`.

    Raises:
        UserError: bad options, list of prompts, encoder or output folder.
        NoGoodClip: not one row could be used.
    """
    total = count_rows(config)  # mistakes in the list are told before anything is loaded
    writable_folder(config.output_path, "--output_path")
    device.setup(config.device, config.mode)
    return encode_prompts(config, _encoder(config), total)


def _encoder(config: EncodeTextConfig) -> TextEncoder:
    folder = config.model_name
    try:
        if not Path(folder).is_dir():
            folder = str(fetch(folder))
        return TextEncoder.from_pretrained(
            folder,
            kind=None if config.kind == "auto" else config.kind,
            max_length=config.model_max_length,
            num_layers=config.num_layers,
            dtype=config.dtype,
            text=None if config.text == "auto" else config.text,
        )
    except UserError as error:
        about = str(error).startswith(folder)  # not a length or a number of layers, which name themselves
        raise UserError(f"--model_name {error}" if about else str(error)) from error


def count_rows(config: EncodeTextConfig) -> int:
    """Count the rows of the list, of all shards, and so check that it can be read to its end.

    Raises:
        UserError: it cannot, or there is no --video_folder where one is needed.
    """
    if config.fps == "video" and not Path(config.video_folder).is_dir():
        raise UserError(f"--video_folder {config.video_folder} is not a folder; give the folder that holds the videos")
    return sum(1 for _ in read_prompts(config.prompts_file, config.columns))


def encode_prompts(config: EncodeTextConfig, encoder: TextEncoder, total: int | None = None) -> dict:
    """Encode this process' rows of a list and write embeddings, `encoder.json` and `summary.json`.

    Memory holds one batch, and for the cache one shard; which texts came already is remembered on disk.

    Args:
        config: what to encode and where to; the options of the encoder are not looked at.
        encoder: an encoder that is loaded.
        total: what `count_rows` gives, None to count.

    Returns:
        What stands in the summary: rows of this process, of which encoded, duplicates of these (also of reused ones),
        reused from an earlier run and skipped; the first of the skipped ones with reasons; encoder and config.

    Raises:
        UserError: the list, the output folder, or an encoder that gives NaN or infinity.
        NoGoodClip: not one row could be used; the summary lists the reasons.
    """
    total = count_rows(config) if total is None else total
    folder = Path(config.output_path)
    record = EncoderRecord.of(encoder, None if config.format == "cache" else config.fps)
    with _sink(config, record) as sink:
        encoding = _Encoding(config, encoder, sink)
        encoding.run(total)
    counts = {name: encoding.counts[name] for name in ("rows", "encoded", "duplicates", "reused", "skipped")}
    report = {**counts, "bad": encoding.bad, "encoder": asdict(record), "config": asdict(config)}
    i, n = config.part
    path = folder / ("summary.json" if n == 1 else f"summary-{i}of{n}.json")
    write_json(path, report)
    if counts["skipped"] and counts["skipped"] == counts["rows"]:
        first = f"row {encoding.bad[0]['row']} {encoding.bad[0]['error']}"
        raise NoGoodClip(f"none of the {counts['rows']} rows could be used ({first}); see {path}")
    return report


def _sink(config: EncodeTextConfig, record: EncoderRecord) -> NpzFiles | CacheShards:
    folder = Path(config.output_path)
    if config.format == "cache":
        return CacheShards(folder, record, config.dtype, config.part)
    return NpzFiles(folder, record, half=config.dtype == "fp16", overwrite=config.overwrite)


class _Memory:
    """Remembers what came first with a key: a dictionary in a temporary file, so that a million rows cost no memory."""

    def __init__(self) -> None:
        self._base = sqlite3.connect("")  # a file without a name, gone with the connection
        self._base.execute("PRAGMA journal_mode = OFF")
        self._base.execute("CREATE TABLE first (key BLOB PRIMARY KEY, value TEXT) WITHOUT ROWID")

    def first(self, key: bytes, value: str) -> str:
        """Return the value that came first with this key, which is the given one if none did."""
        try:
            if self._base.execute("INSERT OR IGNORE INTO first VALUES (?, ?)", (key, value)).rowcount:
                return value
            return self._base.execute("SELECT value FROM first WHERE key = ?", (key,)).fetchone()[0]
        except sqlite3.Error as error:
            raise UserError(f"temporary files cannot be written ({error}); name a roomier folder in TMPDIR") from error


class _Encoding:
    """One pass over a list.

    Attributes:
        counts: rows, and of them encoded, duplicates, reused, skipped.
        bad: the first rows that were skipped, with reasons.
    """

    def __init__(self, config: EncodeTextConfig, encoder: TextEncoder, sink: NpzFiles | CacheShards) -> None:
        self.counts: Counter[str] = Counter()
        self.bad: list[dict] = []
        self._config, self._encoder, self._sink = config, encoder, sink
        self._contents, self._outputs = _Memory(), _Memory()
        self._jobs: dict[bytes, Job] = {}
        self._waiting = 0  # rows of the jobs

    def run(self, total: int) -> None:
        """Encode everything.

        Args:
            total: rows of the list, for the progress bar.
        """
        i, n = self._config.part
        rows = self._good(itertools.islice(self._checked(), i, None, n))
        # No bar where nobody watches (a file, a pipe): a line now and then says how far it is.
        with tqdm(total=len(range(i, total, n)), unit="prompt", desc="encoding", disable=None) as progress:
            told = time.monotonic()
            while chunk := list(itertools.islice(rows, self._config.batch_size)):
                tokens, mask = self._encoder.tokenize([row.text for row in chunk])
                for row, row_tokens, row_mask in zip(chunk, tokens, mask, strict=True):
                    self._take(row, row_tokens, row_mask)
                progress.update(self.counts["rows"] - progress.n)
                if progress.disable and time.monotonic() - told > _SECONDS:
                    told = time.monotonic()
                    get_logger().info("%d of %d prompts read", self.counts["rows"], progress.total)
            self._flush()
            progress.update(self.counts["rows"] - progress.n)

    def _checked(self) -> Iterator[PromptRow]:
        """Yield all rows, of other processes too; one whose file belongs to an earlier, different row has an error."""
        for row in read_prompts(self._config.prompts_file, self._config.columns):
            if self._config.format == "npz" and row.error is None:
                content = hashlib.sha256(f"{row.name}\n{row.text}".encode()).hexdigest()[:32]
                first = self._outputs.first(row.output.encode(), f"{content} {row.row}")
                if first.split()[0] != content:
                    row = replace(row, error=f"has the file {row.output} in common with row {first.split()[1]}")
            yield row

    def _good(self, rows: Iterator[PromptRow]) -> Iterator[PromptRow]:
        """Yield usable rows with the text to encode; note the others."""
        for row in rows:
            self.counts["rows"] += 1
            if row.error is None:
                row = self._with_rate(row)
            if row.error is None:
                yield row
                continue
            self.counts["skipped"] += 1
            if len(self.bad) < LISTED:
                self.bad.append({"row": row.row, "name": row.name, "error": row.error})
            if self.counts["skipped"] <= _TOLD:
                with tqdm.external_write_mode():
                    get_logger().warning("skipped: row %d %s", row.row, row.error)

    def _with_rate(self, row: PromptRow) -> PromptRow:
        fps = self._config.fps
        if fps == "video":
            path = Path(self._config.video_folder) / row.name
            if path.suffix.lower() in IMAGE_SUFFIXES:
                return row
            try:
                fps = probe(path).fps
            except BadClip as error:
                return replace(row, error=f"{row.name}: {error.reason}")
        return row if fps == "none" else replace(row, text=fps_prefix(row.text, fps))

    def _take(self, row: PromptRow, tokens: Int[np.ndarray, "n"], mask: Bool[np.ndarray, "n"]) -> None:
        """Reuse, copy or put in line one row."""
        key = self._sink.identity(row, tokens, mask)
        number, _, output = self._contents.first(key, f"{row.row} {row.output}").partition(" ")
        repeated = int(number) != row.row
        if job := self._jobs.get(key):
            job.rows.append(row)
            self._waiting += 1
        elif repeated and output == row.output:  # the very same row again
            self.counts["duplicates"] += 1
        elif self._sink.holds(row, tokens, mask):
            self.counts["reused"] += 1
        elif repeated:
            self._sink.copy(output, row)
            self.counts["duplicates"] += 1
        else:
            self._jobs[key] = Job(tokens, mask, [row])
            self._waiting += 1
        if len(self._jobs) == self._config.batch_size or self._waiting >= _ROWS_PER_TEXT * self._config.batch_size:
            self._flush()

    def _flush(self) -> None:
        """Encode and write what is in line."""
        jobs = list(self._jobs.values())
        if not jobs:
            return
        tokens, mask = np.stack([job.tokens for job in jobs]), np.stack([job.mask for job in jobs])  # (b, n)
        features = self._encoder.encode_tokens(tokens, mask, trim=self._sink.trim)
        finite = np.isfinite(features.embeddings).all(2) | ~mask  # (b, n)
        if not finite.all():
            row = jobs[int(np.argmin(finite.all(1)))].rows[0]
            raise UserError(f"row {row.row} ({row.name}): the encoder gives NaN or infinity; use --dtype fp32 or bf16")
        self._sink.write(jobs, features)
        self.counts["encoded"] += len(jobs)
        self.counts["duplicates"] += self._waiting - len(jobs)
        self._jobs, self._waiting = {}, 0

"""The data of one training run of the transformer: what is trained on, validated on and sampled from."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mg.config.encode_latents import TaeOptions
from mg.config.generation import GenerationSettings, TextFolders
from mg.config.prompt_dropout import PromptDropout
from mg.config.train import TrainConfig
from mg.dataset.buckets import parse_size
from mg.dataset.cuts import Cut
from mg.dataset.generation import GenerationSource
from mg.dataset.item_plan import FILE_NAME as ITEM_PLANS
from mg.dataset.item_plan import ItemPlan, read_plans, write_plans
from mg.dataset.latent_sources import LatentFolder, LatentSource, OnlineLatents
from mg.dataset.manifest import Item, read_lists, read_manifest
from mg.dataset.quarantine import FILE_NAME as BAD_VIDEOS
from mg.dataset.text_sources import OnlineTexts, TextSource, knows_rates, open_texts
from mg.errors import NoGoodClip, TooManyBadClips, UserError
from mg.models.llama import LlamaConfig
from mg.models.tae import TemporalAutoencoder
from mg.models.text_encoders.encoder import TextEncoder
from mg.pipelines.encode_latents import encode_frames, load_tae, record_of
from mg.rng import stream
from mg.trainers.sources import record_to_read

Batch = dict[str, Any]
_SEARCHED = 64
_NO_DROPOUT = PromptDropout(all=0.0, each=0.0)


@dataclass(frozen=True)
class TrainData:
    """Everything that is read.

    Attributes:
        source: of the training.
        valid: of the validation, a video per batch and nothing random in it but the noise; None without.
        tae: the autoencoder, None without.
    """

    source: GenerationSource
    valid: GenerationSource | None
    tae: TemporalAutoencoder | None

    @property
    def made_by(self) -> dict[str, str]:
        """Fingerprints of the autoencoder ("tae") and the text encoders, by name, as far as known."""
        found = {"tae": self.source.latents.record.tae}
        found.update((kind, text.fingerprint) for kind, text in self.source.texts.items())
        return {name: mark for name, mark in found.items() if mark}

    @property
    def text_widths(self) -> dict[str, int]:
        """Size of an embedding by encoder."""
        return {kind: text.width for kind, text in self.source.texts.items()}

    def write_plans(self, folder: Path) -> None:
        """Write which items are used into a run's folder, where `open_data` finds it when the run goes on.

        Raises:
            UserError: a disk that refuses.
        """
        plans = {"train": self.source.plan} | ({"valid": self.valid.plan} if self.valid else {})
        if read_plans(folder / ITEM_PLANS) != plans:
            write_plans(folder / ITEM_PLANS, plans)


def open_data(config: TrainConfig, records: Path | None = None) -> TrainData:
    """Open the lists, the latents, the embeddings and what encodes missing ones.

    The items used are those that the plans of the run to go on with name, if they are of these lists.

    Args:
        config: of the run.
        records: folder for the list of bad files; None: the output folder.

    Raises:
        UserError: files or folders missing, damaged, or of models that do not belong together.
    """
    lists = _lists(config)
    with record_to_read(Path(config.output_path), config.train, ITEM_PLANS) as place:
        plans = read_plans(place)
    held = []
    if config.valid.csv_path is not None:
        try:
            held = _items(config.valid.csv_path, config.valid.video_folder or config.video_folder)
        except UserError as error:
            raise UserError(f"valid.{error}") from error
    options = TaeOptions(**asdict(config.tae)) if config.tae.pretrained else None
    tae = load_tae(options) if options else None
    try:
        texts = _texts(config, config.data)
        if not texts:
            raise UserError("text: no encoder is named; give the folder of at least one encoder's embeddings")
        knows_rates(texts, config.data.fps)  # told now, not when the network is trained
        latents = _latents(config, config.data, tae)
        bad_list = (records or Path(config.output_path)) / BAD_VIDEOS
        source = GenerationSource(
            lists, config.data, latents, texts, weights=config.mix, bad_list=bad_list, plan=plans.get("train")
        )
    except (NoGoodClip, TooManyBadClips):  # with an exit code of their own
        raise
    except UserError as error:
        raise UserError(f"data.{error}") from error
    valid = _validation(config, held, source, tae, plans.get("valid")) if held else None
    data = TrainData(source, valid, tae)
    if tae is not None:
        _check_tae(data.made_by, record_of(tae).tae, config)
    return data


def _lists(config: TrainConfig) -> dict[str, list[Item]]:
    """Return the lists to train on by name; one alone has none."""
    if config.mix is None:
        if config.csv_path is None:
            raise UserError("--csv_path is missing; name a CSV with the columns video,caption")
        return {"": _items(config.csv_path, config.video_folder)}
    for path in config.mix:
        if Path(path).is_dir():
            raise UserError(f"mix: {path} is a folder; name a CSV with the columns video,caption")
    try:
        return read_lists(config.mix, config.video_folder)
    except UserError as error:
        raise UserError(f"mix: {error}") from error


def _items(csv_path: str, video_folder: str | None) -> list[Item]:
    return read_manifest(csv_path, video_folder or Path(csv_path).parent)


def _latents(config: TrainConfig, data: GenerationSettings, tae: TemporalAutoencoder | None) -> LatentSource:
    if data.tae_latent_folder is not None:
        return LatentFolder(data.tae_latent_folder, data.in_memory)
    if tae is None:
        raise UserError("tae_latent_folder is missing: name the latents, or --tae.pretrained to encode on the way")
    online = config.online
    frames = None if online.sample_n_frames == -1 else online.sample_n_frames
    counts = None if data.frames is None else (1, *data.frames)
    cut = Cut(parse_size(online.size), frames, online.sample_stride, counts)
    return OnlineLatents(lambda clip: encode_frames(tae, [clip])[0], record_of(tae), cut, data.in_memory)


def _texts(config: TrainConfig, data: GenerationSettings) -> dict[str, TextSource]:
    texts = open_texts(data)
    for kind, folder in config.online.text_encoders.by_kind.items():
        if kind in texts:
            continue
        try:
            # At its own length, then cut as stored embeddings are: both ways give the same.
            encoder = TextEncoder.from_pretrained(folder, kind=kind)
        except UserError as error:
            raise UserError(f"text.{kind}: online.text_encoders.{kind}: {error}") from error
        texts[kind] = OnlineTexts(encoder, getattr(data.text_lengths, kind), data.in_memory, data.fps)
    return texts


def _validation(
    config: TrainConfig,
    items: Sequence[Item],
    source: GenerationSource,
    tae: TemporalAutoencoder | None,
    plan: ItemPlan | None,
) -> GenerationSource:
    """Open the validation's data and check that the models behind it are those of the training's."""
    valid, folders = config.valid, {**config.data.text.by_kind, **config.valid.text.by_kind}
    settings = replace(
        config.data,
        tae_latent_folder=valid.tae_latent_folder or config.data.tae_latent_folder,
        text=TextFolders(**folders),
        batch_size=1, batch_sizes=None, image_batch_size=None, image_ratio=None,
        dropout=_NO_DROPOUT, sample_latents=False,
    )  # fmt: skip
    try:
        latents = source.latents
        if settings.tae_latent_folder != config.data.tae_latent_folder:
            latents = LatentFolder(settings.tae_latent_folder, settings.in_memory, source.latents.record.tae or None)
        texts = source.texts if settings.text == config.data.text else _texts(config, settings)
        found = GenerationSource(items, settings, latents, texts, plan=plan, replaces=False)
    except UserError as error:
        raise UserError(f"valid.{error}") from error
    for kind, text in found.texts.items():
        of = source.texts.get(kind)
        if of is None or of.width != text.width or (of.fingerprint and text.fingerprint not in ("", of.fingerprint)):
            raise UserError(f"valid.text.{kind}: not of the encoder that data.text has; encode the captions with that")
        if of.fps != text.fps:
            raise UserError(
                f"valid.text.{kind}: captions encoded with --fps {text.fps}, those of data.text with --fps {of.fps}; "
                "encode both alike"
            )
    return found


def _check_tae(made_by: Mapping[str, str], mark: str, config: TrainConfig) -> None:
    if made_by.get("tae", mark) != mark:
        raise UserError(
            f"data.tae_latent_folder: {config.data.tae_latent_folder} was encoded by the autoencoder {made_by['tae']}, "
            f"tae.pretrained={config.tae.pretrained} is {mark}; name the one that encoded it"
        )


def check_origin(said: Mapping[str, Any], made_by: Mapping[str, str], where: str) -> None:
    """Refuse to go on training on latents or embeddings that other models made.

    Args:
        said: what the folder that the training starts from says of itself.
        made_by: see `TrainData.made_by`.
        where: the folder, for the message.

    Raises:
        UserError: the first difference.
    """
    before = said.get("trained_with", {})
    for name in ("tae", "ul2", "metaclip", "byt5"):
        if before.get(name) and made_by.get(name) and before[name] != made_by[name]:
            what, option = ("latents", "data.tae_latent_folder") if name == "tae" else ("texts", f"data.text.{name}")
            raise UserError(
                f"{option}: these {what} were encoded by {name} {made_by[name]}, but {where} was trained with "
                f"{before[name]}; encode them again with that one, or start from other weights"
            )


def latent_sizes(source: GenerationSource) -> dict[str, tuple[int, int, int]]:
    """Return the (t, h, w) of the latents of every bucket."""
    record = source.latents.record
    sizes = {}
    for name in source.buckets:
        frames, height, width = map(int, name.split("x"))
        space = record.spatial_compression
        sizes[name] = (-(-frames // record.time_compression), height // space, width // space)
    return sizes


def fingerprint_of(data: TrainData) -> dict[str, Any]:
    """Return what a resumed run must share: settings that decide about batches, and the items; folders may move."""
    settings = asdict(data.source.settings)
    for name in ("tae_latent_folder", "text", "empty_text", "in_memory", "max_bad"):
        del settings[name]
    digest = hashlib.sha256()
    for item in data.source.items:
        digest.update(f"{item.name}\0{item.caption}\0".encode("utf-8", "surrogateescape"))
    source = data.source
    mix = [] if source.weights is None else [[source.weights[name], count] for name, count in source.lists.items()]
    return {**settings, "items": digest.hexdigest()[:16], "mix": mix, "made_by": data.made_by}


class KeptTokens:
    """Adds to every batch which tokens of each sample the network is given: round((1 - rate) * n) of n, at least one.

    Args:
        source: of batches with `latent` (b, c, t, h, w).
        config: of the network.
        rate: share of the tokens that are dropped.
        seed: of what is drawn.
    """

    def __init__(self, source: GenerationSource, config: LlamaConfig, rate: float, seed: int) -> None:
        self._source, self._config, self._rate, self._seed = source, config, rate, seed

    def size(self, index: int) -> int:
        """Return the number of rows of batch `index`."""
        return self._source.size(index)

    def batch(self, index: int, rows: Sequence[int] | None = None) -> Batch:
        """Return batch `index`, or some rows of it, with `kept` int32 (b * k,), of the (b * n) tokens of these rows.

        A pure function of the index: the tokens kept of a row are the same whatever else is asked for.
        """
        batch = self._source.batch(index, rows)
        size = batch["latent"].shape[2:]
        n = int(np.prod(self._config.tokens(*size)))
        k = max(1, round((1.0 - self._rate) * n))
        draw = stream(self._seed, "token-drop", index)
        whole = [np.sort(draw.permutation(n)[:k]) for _ in range(self.size(index))]
        rows = range(len(whole)) if rows is None else rows
        kept = [place * n + whole[row] for place, row in enumerate(rows)]
        return {**batch, "kept": np.concatenate(kept).astype(np.int32)}


def validation_batches(source: GenerationSource, size: int, most: int | None) -> Callable[[], Iterator[Batch]]:
    """Return a function that gives each video once, in batches of up to `size` of one shape.

    A video that has become unreadable is left out. The function raises NoGoodClip if all are.

    Args:
        source: with one video per batch, and no other in the place of an unreadable one.
        size: videos per batch; what is left over of a shape is a smaller one.
        most: use so many videos only; None: all.
    """
    count = len(source.items)
    count = count if most is None else min(count, most)

    def batches() -> Iterator[Batch]:
        waiting: dict[str, list[Batch]] = {}
        given = 0
        for index in range(count):
            try:
                one = source.batch(index)
            except NoGoodClip:  # told in the log when it was met
                continue
            given += 1
            same = waiting.setdefault(one["bucket"], [])
            same.append(one)
            if len(same) == size:
                yield _joined(waiting.pop(one["bucket"]))
        for same in waiting.values():
            yield _joined(same)
        if not given:
            path, reason = next(iter(source.bad.items()))
            raise NoGoodClip(f"valid.csv_path: none of its {count} videos is readable any more; {path}: {reason}")

    return batches


def sample_batches(data: TrainData, count: int) -> tuple[Batch, Batch, list[str], int]:
    """Choose videos to sample: their texts and shapes, the same with empty prompts, captions, and RGB frames.

    They are of one shape, that of videos if there are any; at most `count`.
    """
    base = data.valid or data.source
    items = base.items[:: max(1, len(base.items) // (_SEARCHED * count))]  # opening all once more would take long
    items = [item for item in items if item.name not in base.quarantine.names]
    plain = replace(
        base.settings, batch_size=1, batch_sizes=None, image_batch_size=None, image_ratio=None, dropout=_NO_DROPOUT
    )
    source = GenerationSource(items, plain, base.latents, base.texts)
    empty = GenerationSource(items, replace(plain, dropout=PromptDropout(all=1.0)), base.latents, base.texts)
    has_videos = any(not name.startswith("1x") for name in source.buckets)
    groups: dict[str, list[int]] = {}
    for index in range(len(items)):
        name = source.batch(index)["bucket"]
        groups.setdefault(name, []).append(index)
        if len(groups[name]) == count and not (has_videos and name.startswith("1x")):
            break
    bucket = max(groups, key=lambda name: (not name.startswith("1x"), len(groups[name])))
    chosen = groups[bucket][:count]
    batch, nothing = (_joined([which.batch(index) for index in chosen]) for which in (source, empty))
    captions = {item.name: item.caption or "" for item in source.items}
    return batch, nothing, [captions[name] for name in batch["names"]], int(bucket.partition("x")[0])


def _joined(parts: Sequence[Batch]) -> Batch:
    """Put batches of one shape together."""
    arrays = {name for name, value in parts[0].items() if isinstance(value, np.ndarray)}
    joined: Batch = {name: np.concatenate([part[name] for part in parts]) for name in arrays}
    joined["names"] = [name for part in parts for name in part["names"]]
    return joined

"""Training batches of the transformer, each a pure function of (seed, index): latents, texts, noise, noise levels."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import floor
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mg import rng
from mg.config.generation import GenerationSettings
from mg.dataset.buckets import nearest_frames
from mg.dataset.epochs import Epochs
from mg.dataset.item_plan import ItemPlan, lists_mark
from mg.dataset.latent_sources import LatentFolder, LatentSource, Shape, usable
from mg.dataset.manifest import Item
from mg.dataset.prompt_dropout import drop_mask
from mg.dataset.quarantine import Quarantine
from mg.dataset.text_sources import KINDS, TextSource, open_texts
from mg.errors import BadClip, NoGoodClip, UserError
from mg.log import get_logger
from mg.schedulers.timesteps import sample_timesteps

Batch = dict[str, "np.ndarray | list[str] | str"]
_OF_LIST = " of list "
_NO_EMPTY = (
    "no embedding of the empty prompt, dropped prompts are masked out; for guidance encode a .txt with an empty line "
    "into the same cache, or name its file in empty_text"
)


class GenerationSource:
    """Draws training batches out of a list of captioned videos and pictures.

    A batch has one shape (frames x height x width). Pictures are videos of one frame; they never share a batch with
    longer ones, and with `image_ratio` their share of the batches is exact: over any run of batches it is off by less
    than one batch. Within each kind, every item is used equally often (see `Epochs`).

    Several lists are mixed by weight: within the videos, and within the pictures, each list has its share of the
    samples, exact over any hundred batches, and its own items are used equally often.

    Which items are used, and in which batches, is decided once. An item that has become unreadable since is named in
    the log and replaced by another of its bucket and list: which one depends on the seed and the sample alone.

    Args:
        items: with captions; a list, or several by name.
        settings: what is drawn how.
        latents: where latents come from; None for the folder of the settings.
        texts: encoder -> where its embeddings come from; None for the folders of the settings.
        weights: name of a list -> share of the samples, of any sum; needed for several lists.
        bad_list: file that bad items are listed in, see `Quarantine`; None: only `quarantine` knows them.
        plan: what an earlier source of the same lists has decided; of others it is passed over. None: what is usable
            now is used.
        replaces: put others in the place of items that have become unreadable; otherwise `batch` raises NoGoodClip.

    Attributes:
        plan: what is decided here; a source that is given it has the same batches.
        latents: see above.
        texts: see above, in the order of `KINDS`.
        quarantine: everything found unusable so far.
        weights: see above.
        null_prompts: encoder -> whether a dropped prompt is the encoded empty prompt; otherwise it is masked out.
        online: whether a batch runs networks: then build batches in the main thread only.

    Raises:
        UserError: folders that are missing or of other models.
        TooManyBadClips: more than `max_bad` of the items are unusable.
        NoGoodClip: nothing is usable.
    """

    def __init__(
        self,
        items: Sequence[Item] | Mapping[str, Sequence[Item]],
        settings: GenerationSettings,
        latents: LatentSource | None = None,
        texts: Mapping[str, TextSource] | None = None,
        *,
        weights: Mapping[str, float] | None = None,
        bad_list: str | Path | None = None,
        plan: ItemPlan | None = None,
        replaces: bool = True,
    ) -> None:
        sets = items if isinstance(items, Mapping) else {"": items}
        if weights is None and len(sets) > 1:
            raise ValueError("several lists need weights")
        if not sets or not all(sets.values()):
            raise NoGoodClip("the list of videos is empty; name at least one")
        if latents is None:
            if settings.tae_latent_folder is None:
                raise UserError("tae_latent_folder is missing: name the folder that scripts/inference_tae.py wrote")
            latents = LatentFolder(settings.tae_latent_folder, settings.in_memory)
        texts = open_texts(settings) if texts is None else texts
        self.settings, self.latents, self._replaces = settings, latents, replaces
        self.texts = {kind: texts[kind] for kind in KINDS if kind in texts}
        self.online = latents.online or any(source.online for source in self.texts.values())
        self.weights = weights
        self.lists = {name: len(members) for name, members in sets.items()}
        self._items = [item for members in sets.values() for item in members]
        self._list_of = [name for name, members in sets.items() for _ in members]
        self.quarantine = Quarantine(len(self._items), settings.max_bad, bad_list)
        self._keys, faults = self._look(sets.values(), plan)
        self._note(faults)
        self._shapes = dict(self.plan.shapes)
        self._sort()
        self._empty = self._empty_prompts()
        self.null_prompts = {kind: empty is not None for kind, empty in self._empty.items()}
        self._offset = float(rng.stream(settings.seed, "generation.images").random())

    def _look(
        self, lists: Iterable[Sequence[Item]], began: ItemPlan | None
    ) -> tuple[dict[int, tuple[str, ...]], dict[int, BadClip]]:
        """Decide which items are used; return the texts' keys of those that are usable now, and what is wrong."""
        mark = lists_mark(lists)
        shapes, faults = usable(self._items, self.latents)
        if began is None or began.lists != mark:
            keys = self._find_texts(shapes, faults)
            self.plan = ItemPlan(mark, {number: shapes[number] for number in keys})
            return keys, faults
        self.plan = began
        faults.update(began.changed(self._items, shapes))
        if left := len(self._items) - len(began.shapes):
            get_logger().info("%d files stay left out, which could not be used when the run began", left)
        return self._find_texts(began.shapes, faults), faults

    def _find_texts(self, shapes: Mapping[int, Shape], faults: dict[int, BadClip]) -> dict[int, tuple[str, ...]]:
        """Return the texts' keys of each item without fault; those without text are added to the faults."""
        keys = {}
        for number in sorted(shapes.keys() - faults.keys()):
            try:
                item, fps = self._items[number], shapes[number].fps
                keys[number] = tuple(source.key(item, fps) for source in self.texts.values())
            except BadClip as error:
                faults[number] = error
        return keys

    def _note(self, faults: Mapping[int, BadClip]) -> None:
        """Log and count what is unusable; refuse a list with too much of it."""
        if faults and len(faults) == len(self._items):
            raise NoGoodClip(f"none of the {len(faults)} rows is usable; the first: {faults[min(faults)]}")
        errors = [faults[number] for number in sorted(faults)]
        rows = {id(error): self._items[number].row for number, error in faults.items()}
        # Only what batches are planned with is asked for, by its name.
        planned = {id(faults[number]): self._items[number].name for number in faults.keys() & self.plan.shapes.keys()}
        tell, named = lambda error: f"row {rows[id(error)]}, {error}", lambda error: planned.get(id(error))
        self.quarantine.add_all(errors, "left out", tell, named)

    def _sort(self) -> None:
        """Sort the items into buckets, pictures apart."""
        settings, ratio = self.settings, self.settings.image_ratio
        images: dict[str, list[int]] = {}
        videos: dict[str, list[int]] = {}
        self._sizes: dict[str, tuple[int, int, int]] = {}  # (t, h, w) of a bucket's latents
        total = len(self._shapes)
        numbers = {name: n for n, name in enumerate(self.lists)}
        for number, shape in list(self._shapes.items()):
            bucket = self._bucket(shape)
            if bucket is None:
                del self._shapes[number]
                continue
            name, size = bucket
            self._sizes[name] = size
            # Lists by their numbers: files may be called otherwise when a run is resumed.
            group = name if self.weights is None else f"{name}{_OF_LIST}{numbers[self._list_of[number]]}"
            (images if shape.frames == 1 else videos).setdefault(group, []).append(number)
        if not self._shapes:
            raise UserError(f"frames={settings.frames}: every video is shorter; give a smaller one")
        if short := total - len(self._shapes):
            get_logger().warning("%d videos are left out, shorter than all of frames=%s", short, settings.frames)
        if ratio is None:
            images, videos = {}, {**images, **videos}
        elif (ratio > 0 and not images) or (ratio < 1 and not videos):
            what = "videos" if images else "pictures"
            raise UserError(f"image_ratio={ratio}: there are no {what} in the list; add some, or change the ratio")
        self._groups = {**images, **videos}
        self._images, self._videos = self._epochs(images, "image"), self._epochs(videos, "video")

    def _epochs(self, groups: Mapping[str, Sequence[int]], kind: str) -> Epochs:
        sizes = {group: self._count(group) for group in groups}
        weights = None
        if self.weights is not None:
            # A list's share is parted among its buckets by their items: each of them is used equally often.
            whole: dict[str, int] = {}
            for numbers in groups.values():
                name = self._list_of[numbers[0]]
                whole[name] = whole.get(name, 0) + len(numbers)
            weights = {}
            for group, numbers in groups.items():
                name = self._list_of[numbers[0]]
                weights[group] = self.weights[name] * len(numbers) / whole[name]
        return Epochs(groups, sizes, self.settings.seed, f"generation.{kind}", weights)

    def _bucket(self, shape: Shape) -> tuple[str, tuple[int, int, int]] | None:
        """Return the name and the latent size (t, h, w) that an item is used in, None if it is too short."""
        record = self.latents.record
        time, height, width = shape.size
        frames = 1 if shape.frames == 1 else time * record.time_compression
        if self.settings.frames is not None and frames > 1:
            kept = nearest_frames(shape.frames, [count for count in self.settings.frames if count > 1])
            if kept is None:
                return None
            frames, time = kept, -(-kept // record.time_compression)
        name = f"{frames}x{height * record.spatial_compression}x{width * record.spatial_compression}"
        return name, (time, height, width)

    def _count(self, bucket: str) -> int:
        """Items per batch of a bucket, or of a list's part of it."""
        settings, frames = self.settings, int(bucket.partition("x")[0])
        usual = settings.batch_size
        if frames == 1 and settings.image_batch_size is not None:
            usual = settings.image_batch_size
        return (settings.batch_sizes or {}).get(frames, usual)

    def _empty_prompts(self) -> dict[str, np.ndarray | None]:
        dropout = self.settings.dropout
        if not (dropout.all or dropout.each):
            return dict.fromkeys(self.texts)
        empty = {kind: source.empty() for kind, source in self.texts.items()}
        for kind in (kind for kind, embedding in empty.items() if embedding is None):
            get_logger().warning("text.%s: %s", kind, _NO_EMPTY)
        return empty

    @property
    def buckets(self) -> dict[str, int]:
        """Every bucket, frames x height x width, and its items per batch."""
        return {name: self._count(name) for name in sorted(self._sizes)}

    @property
    def batches_per_epoch(self) -> float:
        """Batches of one pass over all videos and pictures, or over the videos where an image ratio is set."""
        return (self._videos if self._videos.items else self._images).per_epoch

    @property
    def samples_per_epoch(self) -> int:
        """Videos and pictures of one pass over all of them, or the videos where an image ratio is set."""
        return self._videos.items or self._images.items

    def drawn(self, batches: int) -> dict[str, int]:
        """Return how many samples of each list the first so many batches hold."""
        images = self._images_before(batches)
        found = dict.fromkeys(self.lists, 0)
        for epochs, number in ((self._images, images), (self._videos, batches - images)):
            for group, count in epochs.drawn(number).items():
                found[self._list_of[self._groups[group][0]]] += count
        return found

    @property
    def bad(self) -> Mapping[str, str]:
        """Path -> reason, for everything found unusable so far."""
        return self.quarantine.reasons

    @property
    def items(self) -> list[Item]:
        """The items that batches are planned with, also those that have become unreadable."""
        return [self._items[number] for number in sorted(self._shapes)]

    def size(self, index: int) -> int:
        """Return the number of rows of batch `index`."""
        return len(self._numbers(index)[1])

    def is_image(self, index: int) -> bool:
        """Whether an image ratio makes batch `index` one of pictures."""
        return self._images_before(index + 1) > self._images_before(index)

    def _images_before(self, index: int) -> int:
        ratio = self.settings.image_ratio
        return 0 if ratio is None else floor(index * ratio + self._offset)

    def batch(self, index: int, rows: Sequence[int] | None = None) -> Batch:
        """Build batch `index` >= 0, or some of its rows.

        Args:
            index: its number.
            rows: which rows of it; None: all. Each row is the same whatever else is asked for.

        Returns:
            "latent": float32 (b, c, t, h, w), drawn and scaled; "noise": standard normal of the same shape;
            "timestep": float32 (b,), noise level in (0, 1000]; "mask": float32 (b, n), 1 where a text token counts, n
            the sum of all encoders' lengths; one float32 (b, n_k, d_k) per encoder, by its name; "names": the videos;
            "bucket": frames x height x width in RGB frames and pixels.

        Raises:
            NoGoodClip: nothing in the bucket is readable any more, or one item is not and must not be replaced.
        """
        settings = self.settings
        group, numbers = self._numbers(index)
        bucket = group.partition(_OF_LIST)[0]
        size = len(numbers)
        rows = range(size) if rows is None else rows
        chosen, mean, std, texts = self._gather(index, group, {row: numbers[row] for row in rows})
        draw = rng.stream(settings.seed, "generation.draw", index)
        whole = (size, *mean.shape[1:])  # all rows are drawn, so that each is the same with and without the others
        latent = self._scaled(mean, std, draw, whole, rows)
        how = (settings.timesteps, settings.timestep_integer, settings.timestep_mean, settings.timestep_std)
        return {
            "latent": latent,
            "noise": draw.standard_normal(whole, np.float32)[rows],
            "timestep": sample_timesteps(draw, size, *how)[rows],
            **self._texts_of(index, texts, size, rows),
            "names": [self._items[number].name for number in chosen],
            "bucket": bucket,
        }

    def _numbers(self, index: int) -> tuple[str, Sequence[int]]:
        """Return the group that batch `index` is of, and its items."""
        before = self._images_before(index)
        return self._images.batch(before) if self.is_image(index) else self._videos.batch(index - before)

    def _scaled(
        self, mean: np.ndarray, std: np.ndarray, draw: np.random.Generator, whole: tuple[int, ...], rows: Sequence[int]
    ) -> Float[np.ndarray, "b c t h w"]:
        record = self.latents.record
        z = mean
        if self.settings.sample_latents:
            z = mean + std * draw.standard_normal(whole, np.float32)[rows]
        return (z - np.float32(record.shift_factor)) * np.float32(record.scaling_factor)

    def _gather(
        self, index: int, group: str, numbers: Mapping[int, int]
    ) -> tuple[list[int], np.ndarray, np.ndarray, list[list[np.ndarray]]]:
        """Read the items of a batch, for an unreadable one the next candidate."""
        bucket = group.partition(_OF_LIST)[0]
        found, parts, texts = [], [], []
        for row, number in numbers.items():
            for candidate in self._candidates(index, row, group, number):
                if self._items[candidate].name in self.quarantine.names:
                    continue
                try:
                    part = self._read(index, row, candidate, self._sizes[bucket])
                    pairs = zip(self.texts.values(), self._keys[candidate], strict=True)
                    text = [None if source.online else source.get([key])[0] for source, key in pairs]
                except BadClip as error:
                    self.quarantine.add(error, self._items[candidate].name)
                    continue
                found.append(candidate)
                parts.append(part)
                texts.append(text)
                break
            else:
                raise NoGoodClip(f"nothing of the size {bucket} is readable; the first: {next(iter(self.bad.items()))}")
        self._encode_online(found, texts)
        mean, std = (np.stack(values) for values in zip(*parts, strict=True))  # (b, c, t, h, w)
        return found, mean, std, texts

    def _encode_online(self, numbers: Sequence[int], texts: list[list[np.ndarray]]) -> None:
        """Fill in the texts that are encoded on the way, those of a batch together."""
        for place, source in enumerate(self.texts.values()):
            if source.online:
                embeddings = source.get([self._keys[number][place] for number in numbers])
                for row, embedding in zip(texts, embeddings, strict=True):
                    row[place] = embedding

    def _candidates(self, index: int, row: int, group: str, first: int) -> Iterator[int]:
        """Yield an item and, where that may be replaced, all others of its bucket and list in an order of the row."""
        yield first
        if not self._replaces:
            return
        same = [number for number in self._groups[group] if number != first]
        for place in rng.stream(self.settings.seed, "generation.replace", index, row).permutation(len(same)):
            yield same[place]

    def _read(
        self, index: int, row: int, number: int, size: tuple[int, int, int]
    ) -> tuple[Float[np.ndarray, "c t h w"], Float[np.ndarray, "c t h w"]]:
        item = self._items[number]
        mean, std = self.latents.get(item)
        start = 0
        spare = mean.shape[1] - size[0]
        if spare > 0 and self.settings.sample_latents:
            start = int(rng.stream(self.settings.seed, "generation.start", index, row).integers(spare + 1))
        mean, std = mean[:, start : start + size[0]], std[:, start : start + size[0]]
        if mean.shape[1:] != size:
            raise BadClip(item.path, f"its latents have become {mean.shape[1:]} instead of {size}")
        return mean, std

    def _texts_of(
        self, index: int, texts: list[list[np.ndarray]], size: int, rows: Sequence[int]
    ) -> dict[str, np.ndarray]:
        """Return the embeddings of every encoder, padded, and the mask; prompts are dropped for guidance here."""
        settings, count = self.settings, len(texts)
        dropout = settings.dropout
        dropped = drop_mask(dropout.seed, index, size, encoders=len(KINDS), p_all=dropout.all, p_each=dropout.each)
        dropped = dropped[rows]
        batch, masks = {}, []
        for place, (kind, source) in enumerate(self.texts.items()):
            length = getattr(settings.text_lengths, kind)
            embeddings = np.zeros((count, length, source.width), np.float32)  # (b, n_k, d_k)
            mask = np.zeros((count, length), np.float32)  # (b, n_k)
            for row in range(count):
                text = self._empty[kind] if dropped[row, KINDS.index(kind)] else texts[row][place]
                if text is not None:
                    tokens = min(len(text), length)
                    embeddings[row, :tokens] = text[:tokens]
                    mask[row, :tokens] = 1.0
            batch[kind] = embeddings
            masks.append(mask)
        batch["mask"] = np.concatenate(masks, 1) if masks else np.zeros((count, 0), np.float32)
        return batch

"""Training batches for the temporal autoencoder, each a pure function of (seed, index)."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import floor
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mg import rng
from mg.config.clips import ClipSettings
from mg.dataset.augment import pick, recolor, reshape
from mg.dataset.chunks import ChunkedClips
from mg.dataset.fps import resample_times
from mg.dataset.frames import FrameReader, VideoFiles
from mg.dataset.headers import Limits
from mg.dataset.manifest import Item
from mg.dataset.mixing import Mix, weighted
from mg.dataset.passes import ClipPasses, Draw, Passes, WindowPasses
from mg.dataset.quarantine import Quarantine
from mg.dataset.transforms import to_tensor
from mg.errors import BadClip, NoGoodClip

Batch = dict[str, "np.ndarray | list[str]"]

_OPENED_AT_ONCE = 8


def latent_mask(mask: Float[np.ndarray, "b t"], time_compression: int) -> Float[np.ndarray, "b n"]:
    """Return which latent frames are valid: those that stand for at least one valid frame.

    Args:
        mask: 1 where a frame is valid, else 0.
        time_compression: frames per latent frame; the last one may stand for fewer.

    Returns:
        float32 (b, ceil(t / time_compression)).
    """
    return np.maximum.reduceat(mask, np.arange(0, mask.shape[1], time_compression), axis=1).astype(np.float32)


@dataclass(frozen=True)
class _Kind:
    """Data sets that batches of videos, or of images, are mixed from."""

    names: list[str]
    passes: list[Passes]
    mix: Mix

    def draw(self, number: int) -> tuple[Passes, Draw]:
        which, count = self.mix.pick(number)
        return self.passes[which], self.passes[which].draw(count)


class ClipSource:
    """Cuts training batches out of lists of clips.

    Every pass over a list takes each clip once (`coverage: random`) or cuts all of it into clips (`coverage: all`), in
    an order of its own. Several lists are mixed by weight: over any hundred samples each has its share, rounded.
    Pictures serve the image batches only (then those use nothing else); without pictures, image batches are single
    frames of videos; with `coverage: random` they share the order with the video batches.

    A bad clip is named once in the log, noted, and replaced by a good one of its list: which one depends on the seed
    and the number of the sample alone.

    Args:
        items: a list of clips, or several by name.
        settings: how clips are cut and altered.
        weights: name of a list -> share of the samples, of any sum; needed for several lists.
        reader: where frames come from; None: the chunks of the settings, or the files themselves.
        bad_list: file that bad clips are listed in, see `Quarantine`; None: only `quarantine` knows them.

    Attributes:
        settings: see above.
        weights: see above.
        quarantine: the bad clips found so far.

    Raises:
        UserError: chunks that are damaged, or of another list.
        NoGoodClip: there is nothing to train on.
        TooManyBadClips: more files are missing than `max_bad` allows.
    """

    def __init__(
        self,
        items: Sequence[Item] | Mapping[str, Sequence[Item]],
        settings: ClipSettings,
        *,
        weights: Mapping[str, float] | None = None,
        reader: FrameReader | None = None,
        bad_list: str | Path | None = None,
    ) -> None:
        """Look which files are there, and with `coverage: all` how long they are."""
        self.settings, self.weights = settings, weights
        self._sets = dict(items) if isinstance(items, Mapping) else {"": items}
        if weights is None and len(self._sets) > 1:
            raise ValueError("several lists need weights")
        # Streams are named by the lists' numbers: files may be called otherwise when a run is resumed.
        self._streams = {name: f"order.{n}" if weights else "order" for n, name in enumerate(self._sets)}
        self._reader = reader or _open_reader(settings)
        total = [item for members in self._sets.values() for item in members]
        if not all(self._sets.values()) or not total:
            raise NoGoodClip("the list of clips is empty; name at least one clip")
        if settings.image_ratio < 1 and all(item.is_image for item in total):
            raise NoGoodClip(f"image_ratio: {settings.image_ratio}, but there are only pictures; set it to 1")
        self.quarantine = Quarantine(len(total), settings.max_bad, bad_list)
        self.quarantine.add_all(self._missing(total), "missing or known to be bad")
        self._videos, self._images = self._kinds(weights)
        self._offset = float(rng.stream(settings.seed, "mix").random())

    def _missing(self, items: Sequence[Item]) -> Iterator[BadClip]:
        for item in items:
            try:
                self._reader.check(item)
            except BadClip as error:
                yield error

    def _kinds(self, weights: Mapping[str, float] | None) -> tuple[_Kind | None, _Kind | None]:
        """Return what video batches are made of and what image batches are made of, None for the same order."""
        settings = self.settings
        videos = {name: [item for item in items if not item.is_image] for name, items in self._sets.items()}
        images = {name: [item for item in items if item.is_image] for name, items in self._sets.items()}
        plain = self._plain(videos, "")
        whole = settings.coverage == "all"
        passes = {name: self._windows(name, one.items) for name, one in plain.items()} if whole else plain
        pictures = self._plain(images, "")
        if not pictures and whole:  # frames for the image batches, which must not take away the videos' windows
            pictures = self._plain(videos, ".frames")
        return self._kind(passes, weights, "video"), self._kind(pictures, weights, "image")

    def _plain(self, items: Mapping[str, Sequence[Item]], what: str) -> dict[str, ClipPasses]:
        return {
            name: ClipPasses(members, self.settings.seed, self._streams[name] + what)
            for name, members in items.items() if members
        }  # fmt: skip

    def _windows(self, name: str, items: Sequence[Item]) -> WindowPasses:
        settings = self.settings
        with ThreadPoolExecutor(_OPENED_AT_ONCE) as pool:
            planned = list(pool.map(self._planned, items))
        counts = [count for count, _ in planned]
        self.quarantine.add_all((error for _, error in planned if error is not None), "damaged")
        stream = self._streams[name]
        return WindowPasses(items, counts, settings.num_frames, settings.shuffle_files, settings.seed, stream)

    def _planned(self, item: Item) -> tuple[int, BadClip | None]:
        # What the file says, also of one that is known to be bad by now: a resumed run must lay out the same windows.
        try:
            header = self._reader.header(item)
        except BadClip as error:
            return 1, error
        fps = self.settings.fps
        frames = header.num_frames
        return frames if fps is None or not header.seconds else max(1, round(header.seconds * fps)), None

    def _kind(self, passes: Mapping[str, Passes], weights: Mapping[str, float] | None, name: str) -> _Kind | None:
        if not passes:
            return None
        shares = weighted({key: 1.0 if weights is None else weights[key] for key in passes})
        return _Kind(list(passes), list(passes.values()), Mix(shares, self.settings.seed, f"sets.{name}", even=True))

    @property
    def lists(self) -> dict[str, int]:
        """Number of clips of each list."""
        return {name: len(items) for name, items in self._sets.items()}

    @property
    def bad(self) -> Mapping[str, str]:
        """Path -> reason, for every clip found bad so far."""
        return self.quarantine.reasons

    @property
    def samples_per_epoch(self) -> int:
        """Samples of the video batches that take each video once (`coverage: all`: each of its clips), on average.

        Of the image batches where there are only those; with weights, of all lists together.
        """
        kind = self._images if self._videos is None else self._videos
        return round(sum(one.size for one in kind.passes))

    @property
    def batches_per_epoch(self) -> float:
        """Batches, image batches among them, until the videos have been used once on average."""
        batches = self.samples_per_epoch / self.settings.batch_size
        ratio = self.settings.image_ratio
        # Without pictures and windows, image batches use the videos up as well.
        return batches if self._videos is None or self._images is None or ratio == 1 else batches / (1 - ratio)

    @property
    def fingerprint(self) -> str:
        """Stands for the clips, their lengths and weights, as far as they decide about the batches."""
        digest = hashlib.sha256()
        for name, items in self._sets.items():
            weight = "" if self.weights is None else str(float(self.weights[name]))
            digest.update("\0".join([weight, *(item.name for item in items), ""]).encode("utf-8", "surrogateescape"))
        for one in self._videos.passes if self._videos else ():
            if isinstance(one, WindowPasses):
                digest.update(one.counts.tobytes())
        return digest.hexdigest()[:16]

    def drawn(self, batches: int) -> dict[str, int]:
        """Return how many samples of each list the first so many batches hold."""
        size, images = self.settings.batch_size, self._images_before(batches)
        found = dict.fromkeys(self._sets, 0)
        parts = [(self._videos, batches * size)]
        if self._images is not None:
            parts = [(self._videos, (batches - images) * size), (self._images, images * size)]
        for kind, number in parts:
            if kind is not None:
                for name, count in zip(kind.names, kind.mix.counts(number), strict=True):
                    found[name] += count
        return found

    def size(self, index: int) -> int:
        """Return the number of rows of batch `index`, the same for all."""
        return self.settings.batch_size

    def batch(self, index: int, rows: Sequence[int] | None = None) -> Batch:
        """Build batch `index` >= 0, or some of its rows.

        Args:
            index: its number.
            rows: which rows of it; None: all. Each row is the same whatever else is asked for, see `rank_rows`.

        Returns:
            "video": float32 (b, 3, t, h, w) in [-1, 1], t = num_frames, or 1 in an image batch;
            "mask": float32 (b, t), 1 where a frame is real, 0 where the last one is repeated as padding;
            "fps": float32 (b,), frames per second of each clip, 0 for images;
            "ids": the clips' names.

        Raises:
            NoGoodClip: not one clip of the list is readable.
            TooManyBadClips: more files are bad than `max_bad` allows.
        """
        is_image = self.is_image(index)
        settings = self.settings
        rows = range(settings.batch_size) if rows is None else rows
        length = 1 if is_image else settings.num_frames
        video = np.empty((len(rows), 3, length, *settings.size), dtype=np.float32)  # (b, 3, t, h, w)
        mask = np.zeros((len(rows), length), dtype=np.float32)  # (b, t)
        rates = np.zeros(len(rows), dtype=np.float32)  # (b,)
        ids = []
        for place, row in enumerate(rows):
            video[place], valid, rates[place], name = self._sample(index, row, is_image)
            mask[place, :valid] = 1.0
            ids.append(name)
        return {"video": video, "mask": mask, "fps": rates, "ids": ids}

    def is_image(self, index: int) -> bool:
        """Whether batch `index` holds one-frame images; the realised share is never off by a whole batch."""
        return self._images_before(index + 1) > self._images_before(index)

    def _images_before(self, index: int) -> int:
        return floor(index * self.settings.image_ratio + self._offset)

    def _sample(self, index: int, row: int, is_image: bool) -> tuple[np.ndarray, int, float, str]:
        """Return one clip (3, t, h, w), its number of real frames, its frame rate and its name."""
        settings = self.settings
        position = index * settings.batch_size + row
        passes, first = self._place(index, row, is_image)
        draw = rng.stream(settings.seed, "augment", position).random(16)
        for one in self._candidates(passes.items, first, position):
            try:
                self.quarantine.check(one.item.path)
                return *self._cut(one, draw, is_image), one.item.name
            except BadClip as error:
                self.quarantine.add(error)
        first_bad = next(iter(self.bad.items()))
        raise NoGoodClip(f"none of the {len(passes.items)} clips is readable; the first: {first_bad}")

    def _place(self, index: int, row: int, is_image: bool) -> tuple[Passes, Draw]:
        """Return the list this sample comes from and what it is."""
        size = self.settings.batch_size
        if self._images is None:
            return self._videos.draw(index * size + row)
        images = self._images_before(index)
        if is_image:
            return self._images.draw(images * size + row)
        return self._videos.draw((index - images) * size + row)

    def _candidates(self, pool: Sequence[Item], first: Draw, position: int) -> Iterator[Draw]:
        yield first
        for other in rng.stream(self.settings.seed, "replace", position).permutation(len(pool)):
            if pool[other] is not first.item:
                yield Draw(pool[other])

    def _cut(self, one: Draw, draw: np.ndarray, is_image: bool) -> tuple[np.ndarray, int, float]:
        settings, item = self.settings, one.item
        order: Sequence[int] = range(len(self._reader.times(item)))
        rate = self._reader.fps(item)
        if settings.fps is not None and not item.is_image:
            order, rate = resample_times(self._reader.times(item), settings.fps), settings.fps
        total = len(order)
        length = 1 if is_image else settings.num_frames
        wanted = length
        if settings.frame_lengths is not None and not is_image:
            wanted = settings.frame_lengths[pick(draw[0], len(settings.frame_lengths))]
        stride = 1 + pick(draw[1], min(settings.max_stride, max(1, (total - 1) // max(1, wanted - 1))))
        valid = min(wanted, total)
        spare = total - (valid - 1) * stride
        first = pick(draw[2], spare) if one.start is None else min(one.start, spare - 1)
        frames = self._reader.read(item, order[first : first + (valid - 1) * stride + 1 : stride])  # (valid, h, w, 3)
        clip = to_tensor(reshape(frames, settings, draw))  # (3, valid, h, w)
        clip = recolor(clip, settings, draw)
        if valid < length:
            clip = np.concatenate([clip, np.repeat(clip[:, -1:], length - valid, axis=1)], axis=1)  # (3, t, h, w)
        return clip, valid, 0.0 if is_image else rate / stride


def _open_reader(settings: ClipSettings) -> FrameReader:
    limits = Limits(settings.max_pixels, settings.max_seconds)
    if settings.chunks is not None:
        return ChunkedClips(settings.chunks, settings.cache_short_side, limits)
    return VideoFiles(int(settings.cache_gb * 1e9), settings.cache_short_side, limits)


def rank_rows(batch_size: int, rank: int, ranks: int) -> range:
    """Return the rows of each global batch that one of several processes takes: rank, rank + ranks, ...

    The rows of all ranks together are the batch, so that what is trained on does not depend on their number.

    Raises:
        ValueError: the batch cannot be shared out evenly, or there is no such rank.
    """
    if not 0 <= rank < ranks or batch_size % ranks:
        raise ValueError(f"a batch of {batch_size} rows for rank {rank} of {ranks}: ranks must divide the batch")
    return range(rank, batch_size, ranks)

"""Training batches for the temporal autoencoder, each a pure function of (seed, index)."""

import functools
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import floor

import numpy as np

from mg import rng
from mg.config.clips import ClipSettings
from mg.dataset.manifest import Item
from mg.dataset.transforms import crop_resize, to_tensor
from mg.dataset.video import probe, read_video
from mg.errors import BadClip, NoGoodClip, UserError
from mg.log import get_logger

Batch = dict[str, "np.ndarray | list[str]"]

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32).reshape(3, 1, 1, 1)


class ClipSource:
    """Cuts training batches out of a list of clips.

    Every pass over the list takes each clip once, in an order of its own. Pictures in the list serve the image batches
    only (then those use nothing else); without pictures, image batches are single frames of videos and share the order
    with the video batches. A bad clip is named once in the log, noted in `bad`, and replaced by a good one.

    Attributes:
        bad: path -> reason, for every clip found bad so far.

    Raises:
        NoGoodClip: there is nothing to train on.
    """

    def __init__(
        self, items: Sequence[Item], settings: ClipSettings, cache_frames: bool = True, cache_bytes: int = 4 * 2**30
    ) -> None:
        """Sort the items; `cache_bytes` limits the memory of decoded clips, `cache_frames` = False keeps none."""
        self.settings = settings
        self.bad: dict[str, str] = {}
        videos = [item for item in items if not item.is_image]
        images = [item for item in items if item.is_image]
        if not items:
            raise NoGoodClip("the list of clips is empty; name at least one clip")
        if not videos and settings.image_ratio < 1:
            raise NoGoodClip(f"image_ratio: {settings.image_ratio}, but there are only pictures; set it to 1")
        self._videos = videos
        self._images = images
        self._cache = _FrameCache(cache_bytes if cache_frames else 0)
        self._keep = cache_frames
        self._offset = float(rng.stream(settings.seed, "mix").random())
        self._lock = threading.Lock()

    def batch(self, index: int) -> Batch:
        """Build batch `index` >= 0.

        Returns:
            "video": float32 (b, 3, t, h, w) in [-1, 1], t = num_frames, or 1 in an image batch;
            "mask": float32 (b, t), 1 where a frame is real, 0 where the last one is repeated as padding;
            "ids": the clips' names.

        Raises:
            NoGoodClip: not one clip of the list is readable.
        """
        is_image = self.is_image(index)
        settings = self.settings
        length = 1 if is_image else settings.num_frames
        video = np.empty((settings.batch_size, 3, length, *settings.size), dtype=np.float32)  # (b, 3, t, h, w)
        mask = np.zeros((settings.batch_size, length), dtype=np.float32)  # (b, t)
        ids = []
        for row in range(settings.batch_size):
            video[row], valid, name = self._sample(index, row, is_image)
            mask[row, :valid] = 1.0
            ids.append(name)
        return {"video": video, "mask": mask, "ids": ids}

    def is_image(self, index: int) -> bool:
        """Whether batch `index` holds one-frame images; the realised share is never off by a whole batch."""
        return self._images_before(index + 1) > self._images_before(index)

    def _images_before(self, index: int) -> int:
        return floor(index * self.settings.image_ratio + self._offset)

    def _sample(self, index: int, row: int, is_image: bool) -> tuple[np.ndarray, int, str]:
        """Return one clip (3, t, h, w), its number of real frames and its name."""
        settings = self.settings
        position = index * settings.batch_size + row
        pool, place = self._place(index, row, is_image)
        epoch, offset = divmod(place, len(pool))
        order = _epoch_order(settings.seed, epoch, len(pool))
        draw = rng.stream(settings.seed, "augment", position).random(16)
        for item in self._candidates(pool, int(order[offset]), position):
            try:
                return *self._cut(item, draw, is_image), item.name
            except BadClip as error:
                self._report(error)
        raise NoGoodClip(f"none of the {len(pool)} clips is readable; the first: {next(iter(self.bad.items()))}")

    def _place(self, index: int, row: int, is_image: bool) -> tuple[list[Item], int]:
        """Return the list this sample comes from and the running number of the sample in it."""
        size = self.settings.batch_size
        if not self._images:
            return self._videos, index * size + row
        images = self._images_before(index)
        return (self._images, images * size + row) if is_image else (self._videos, (index - images) * size + row)

    def _candidates(self, pool: list[Item], first: int, position: int) -> Iterator[Item]:
        yield pool[first]
        for other in rng.stream(self.settings.seed, "replace", position).permutation(len(pool)):
            if other != first:
                yield pool[other]

    def _report(self, error: BadClip) -> None:
        with self._lock:
            known = error.path in self.bad
            self.bad[error.path] = error.reason
        if not known:
            get_logger().warning("skipping a bad clip: %s", error)

    def _cut(self, item: Item, draw: np.ndarray, is_image: bool) -> tuple[np.ndarray, int]:
        settings = self.settings
        path = str(item.path)
        if path in self.bad:  # its reason is known: do not decode it again on every pass
            raise BadClip(path, self.bad[path])
        total = self._count(item)
        length = 1 if is_image else settings.num_frames
        wanted = length
        if settings.frame_lengths is not None and not is_image:
            wanted = settings.frame_lengths[_pick(draw[0], len(settings.frame_lengths))]
        stride = 1 + _pick(draw[1], min(settings.max_stride, max(1, (total - 1) // max(1, wanted - 1))))
        valid = min(wanted, total)
        first = _pick(draw[2], total - (valid - 1) * stride)
        frames = self._read(item, range(first, first + (valid - 1) * stride + 1, stride))  # (valid, h, w, 3)
        frames = _augment(frames, settings, draw)
        clip = to_tensor(frames)  # (3, valid, h, w)
        clip = _recolor(clip, settings, draw)
        if valid < length:
            clip = np.concatenate([clip, np.repeat(clip[:, -1:], length - valid, axis=1)], axis=1)  # (3, t, h, w)
        return clip, valid

    def _count(self, item: Item) -> int:
        if self._keep:
            return len(self._whole(item))
        return 1 if item.is_image else probe(item.path).num_frames

    def _read(self, item: Item, indices: range) -> np.ndarray:
        if self._keep:
            return self._whole(item)[indices.start : indices.stop : indices.step]
        return read_video(item.path, indices)

    def _whole(self, item: Item) -> np.ndarray:
        path = str(item.path)
        frames = self._cache.get(path)
        if frames is None:
            frames = read_video(item.path, short_side=self.settings.cache_short_side)
            self._cache.put(path, frames)
        return frames


@functools.lru_cache(maxsize=8)
def _epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return rng.stream(seed, "order", epoch).permutation(count)


def _pick(uniform: float, count: int) -> int:
    """Turn a number in [0, 1) into one of 0..count-1."""
    return min(int(uniform * count), count - 1)


def _augment(frames: np.ndarray, settings: ClipSettings, draw: np.ndarray) -> np.ndarray:
    """Crop, scale, mirror, turn and reverse; uint8 (t, h', w', 3) -> (t, h, w, 3)."""
    h, w = frames.shape[1:3]
    shrink = min(h / settings.size[0], w / settings.size[1])  # below 1 the source is enlarged anyway
    widest = max(1.0, min(1.0 / settings.min_scale, shrink))
    narrowest = min(1.0 / settings.max_scale, widest)
    window = 1.0 / (narrowest + draw[3] * (widest - narrowest))
    position = (float(draw[4]), float(draw[5])) if settings.random_crop else (0.5, 0.5)
    frames = crop_resize(frames, settings.size, window, position)
    if settings.flip and draw[6] < 0.5:
        frames = frames[:, :, ::-1]
    if settings.transpose:
        frames = np.rot90(frames, _pick(draw[7], 4), axes=(1, 2))
    if settings.time_flip and draw[8] < 0.5:
        frames = frames[::-1]
    return frames


def _recolor(clip: np.ndarray, settings: ClipSettings, draw: np.ndarray) -> np.ndarray:
    """Change brightness, contrast and saturation of a whole clip alike; float32 (3, t, h, w) in [-1, 1]."""
    if settings.color_jitter > 0:
        brightness, contrast, saturation = settings.color_jitter * (2.0 * draw[9:12] - 1.0)
        luma = (clip * _LUMA).sum(axis=0, keepdims=True)  # (1, t, h, w)
        clip = luma + (clip - luma) * np.float32(1.0 + saturation)
        clip = np.clip(clip * np.float32(1.0 + contrast) + np.float32(brightness), -1.0, 1.0)
    if draw[12] < settings.grayscale_prob:
        clip = np.repeat((clip * _LUMA).sum(axis=0, keepdims=True), 3, axis=0)  # (3, t, h, w)
    return clip


class _FrameCache:
    """Decoded clips by path; the least recently used ones go when `limit` bytes are full. Safe to share by threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._clips: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: str) -> np.ndarray | None:
        with self._lock:
            if path in self._clips:
                self._clips.move_to_end(path)
            return self._clips.get(path)

    def put(self, path: str, frames: np.ndarray) -> None:
        with self._lock:
            if frames.nbytes > self._limit or path in self._clips:
                return
            self._clips[path] = frames
            self._used += frames.nbytes
            while self._used > self._limit:
                self._used -= self._clips.popitem(last=False)[1].nbytes


class Prefetcher:
    """Yields batches start, start + 1, ... of a source without end, built ahead of time by threads.

    The batches are those of `source.batch`, whatever the number of workers. An error surfaces where its batch is due,
    with the batch number as a note. Close it, or use it as a context manager, to stop the threads.

    Args:
        source: anything with a thread-safe `batch(index)`.
        start: the first index.
        depth: how many batches are built or kept ahead, at least 1.
        workers: threads, at least 1.
    """

    def __init__(self, source: ClipSource, start: int = 0, depth: int = 4, workers: int = 1) -> None:
        """Start building at once."""
        if depth < 1 or workers < 1:
            raise UserError(f"depth and workers: {depth} and {workers} must both be at least 1")
        self._source = source
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
        self._ahead: deque[tuple[int, Future[Batch]]] = deque()
        self._next = start
        self._closed = False
        for _ in range(depth):
            self._submit()

    def _submit(self) -> None:
        self._ahead.append((self._next, self._pool.submit(self._source.batch, self._next)))
        self._next += 1

    def __iter__(self) -> "Prefetcher":
        """Return itself: there is one position, and iterating again goes on from it."""
        return self

    def __next__(self) -> Batch:
        """Return the next batch, waiting for it if need be."""
        if self._closed:
            raise RuntimeError("the prefetcher is closed")
        index, future = self._ahead.popleft()
        self._submit()
        try:
            return future.result()
        except BaseException as error:
            error.add_note(f"while building batch {index}")
            self.close()
            raise

    def close(self) -> None:
        """Drop the batches ahead and stop the threads; harmless when done twice."""
        self._closed = True
        self._ahead.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "Prefetcher":
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()

"""Encode a list of videos and pictures into latents, a file each, which the transformer is trained on."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from mg import device
from mg.config.encode_latents import EncodeLatentsConfig, LoaderOptions, TaeOptions, VideoOptions
from mg.dataset.buckets import Bucket, parse_size
from mg.dataset.cuts import Cut
from mg.dataset.latents import SUFFIX, Latent, LatentRecord, Origin, latent_file, read_latent, write_latent
from mg.dataset.manifest import Item, read_manifest, scan_folder
from mg.dataset.transforms import to_tensor
from mg.errors import BadClip, NoGoodClip, UserError
from mg.files import writable_folder
from mg.log import get_logger
from mg.models.tae import PRESETS, TemporalAutoencoder
from mg.models.tae.loading import fingerprint, from_checkpoint
from mg.parallel.mesh import Mesh
from mg.pipelines.encode_summary import LISTED, write_summary
from mg.pipelines.latent_moments import LatentMoments
from mg.pipelines.shares import Share

_TOLD = 20
_WAITING = 2**30  # bytes of decoded frames that wait for others of their shape


def load_tae(options: TaeOptions) -> TemporalAutoencoder:
    """Load the autoencoder, for inference.

    Raises:
        UserError: weights or tile sizes that do not fit; the message names the option.
    """
    try:
        network = from_checkpoint(
            options.pretrained,
            None if options.preset == "auto" else PRESETS[options.preset],
            sample_deterministic=True,
            use_tile=options.use_tile,
            encode_tile=options.encode_tile,
            encode_overlap=options.encode_overlap,
            decode_tile=options.decode_tile,
            decode_overlap=options.decode_overlap,
            dtype=options.dtype,
        )
    except UserError as error:
        raise UserError(f"--tae.pretrained {error}") from error
    except (ValueError, TypeError, OSError) as error:  # tile sizes, metadata of another make, a name too long
        raise UserError(f"--tae {options.pretrained}: not usable ({error})") from error
    network.set_train(False)
    return network


def record_of(network: TemporalAutoencoder) -> LatentRecord:
    """Describe an autoencoder as `latents.json` does."""
    return LatentRecord(
        tae=fingerprint(network),
        scaling_factor=float(network.scale_factor),
        shift_factor=float(network.shift_factor),
        channels=network.out_channels,
        time_compression=network.time_compress,
        spatial_compression=network.spatial_compress,
    )


def encode_frames(network: TemporalAutoencoder, clips: Sequence[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Encode clips (t, h, w, 3) uint8 of one shape together.

    Returns:
        Mean and standard deviation of each latent, float32 (c, t, h, w), unscaled.

    Raises:
        UserError: the network gives NaN or infinity.
    """
    x = Tensor(np.stack([to_tensor(clip) for clip in clips]))  # (b, 3, t, h, w)
    _, mean, logvar = network.encode(x)
    mean, std = mean.asnumpy(), np.exp(0.5 * logvar.asnumpy())  # (b, c, t, h, w)
    if not (np.isfinite(mean).all() and np.isfinite(std).all()):
        raise UserError("--tae: the network gives NaN or infinity for a clip; use --tae.dtype fp32, or other weights")
    return list(zip(mean, std, strict=True))


def encode_videos(config: EncodeLatentsConfig, network: TemporalAutoencoder | None = None) -> dict:
    """Encode the videos of the config's shard; write their latents, `latents.json` and `summary.json`.

    Processes that are started together share out the videos, or the tiles of each.

    Args:
        config: what to encode and where to.
        network: an autoencoder that is loaded; None to load that of the config, and to join other processes.

    Returns:
        What stands in the summary: rows of the shard, of which encoded, duplicates, reused from an earlier run and
        skipped; the first of the skipped ones with reasons; shapes; mean and deviation of all values encoded, from
        which scaling factors can be made; record and config. Of several processes, all but the one that leads have
        their own videos.

    Raises:
        UserError: bad options, list, weights, or an output folder of another autoencoder, or degrees of parallelism
            that do not fit.
        NoGoodClip: not one video could be used; the summary lists the reasons.
    """
    items, cut = videos_of(config.video_data)
    folder = writable_folder(config.output_path, "--output_path")
    network, mesh = joined_tae(config, network)
    record = record_of(network)
    claim(folder, record, config.overwrite)
    share = Share(mesh, folder)
    run = _Encoding(replace(config, shard=shard_of(share, config)), cut, network, record, folder, share.writes)
    run.run(items)
    share.leave(run.report())
    return write_summary(config, record, folder, share)


def joined_tae(
    config: EncodeLatentsConfig, network: TemporalAutoencoder | None
) -> tuple[TemporalAutoencoder, Mesh | None]:
    """Set up the device, join the other processes and load the autoencoder, unless there is one already.

    Raises:
        UserError: weights, tile sizes or degrees that do not fit.
    """
    if network is not None:
        return network, None
    device.setup(config.device, config.mode)
    mesh = Mesh.joined(config.parallel)
    network = load_tae(config.tae)
    if mesh:
        mesh.share_tiles(network)
    return network, mesh


def shard_of(share: Share, config: EncodeLatentsConfig) -> str:
    """Tell a process' share of the config's shard as a shard of everything, i/n."""
    return "{}/{}".format(*share.within(*config.part))


def videos_of(data: VideoOptions) -> tuple[list[Item], Cut]:
    """List the videos that the options name, and how they are cut.

    Raises:
        UserError: a list or folder that is missing, or a size that is none.
    """
    cut = Cut(parse_size(data.size), None if data.sample_n_frames == -1 else data.sample_n_frames, data.sample_stride)
    folder = data.folder or Path(data.csv_path).parent
    return read_manifest(data.csv_path, folder, data.column) if data.csv_path else scan_folder(data.folder), cut


def measure_videos(
    items: Sequence[Item], cut: Cut, network: TemporalAutoencoder, dataloader: LoaderOptions
) -> tuple[LatentMoments, dict]:
    """Encode videos as `encode_videos` does, for the figures alone: nothing is written.

    Returns:
        The moments, and what was done: rows, encoded, duplicates, skipped; the first of the skipped ones, shapes.

    Raises:
        NoGoodClip: not one video could be used.
    """
    config = EncodeLatentsConfig(
        tae=TaeOptions(pretrained="-"), video_data=VideoOptions(folder="-"), dataloader=dataloader
    )
    run = _Encoding(config, cut, network, record_of(network), None)
    run.run(items)
    done = {name: run.counts[name] for name in ("rows", "encoded", "duplicates", "skipped")}
    if not done["encoded"]:
        first = f"{run.bad[0]['video']}: {run.bad[0]['error']}" if run.bad else "the list is empty"
        raise NoGoodClip(f"none of the {done['rows']} videos could be used ({first})")
    shapes = {str(bucket): number for bucket, number in sorted(run.shapes.items())}
    return run.moments, {**done, "bad": run.bad, "shapes": shapes}


def claim(folder: Path, record: LatentRecord, overwrite: bool) -> None:
    """Make a folder this autoencoder's.

    Raises:
        UserError: it holds latents of another one, and `overwrite` does not allow to replace them.
    """
    # Files are looked for before the record: another process of the same run writes the record first.
    foreign = None if overwrite else next((p for p in folder.rglob(f"*{SUFFIX}") if not p.name.startswith(".")), None)
    found = None if overwrite else LatentRecord.read(folder)
    fault = None
    if found not in (None, record):
        fault = f"it holds latents of the autoencoder {found.tae}, not of {record.tae}"
    elif found is None and foreign is not None:
        fault = f"it holds {foreign.name}, which this program did not write"
    if fault:
        raise UserError(f"--output_path {folder}: {fault}; choose another folder, or replace them by --overwrite")
    if found is None:
        record.write(folder)


@dataclass(frozen=True)
class _Clip:
    """A clip that was read; without frames where its latents are there already."""

    output: str
    origin: Origin | None = None
    bucket: Bucket | None = None
    frames: np.ndarray | None = None


class _Encoding:
    """One pass over a list; without a folder nothing is written, and names do not matter.

    Args:
        config: what to encode.
        cut: frames and sizes.
        network: the autoencoder.
        record: of the autoencoder.
        folder: of the latents.
        writes: False where another process, which encodes the same with this one, writes the latents.

    Attributes:
        counts: rows, and of them encoded, duplicates, reused, skipped.
        bad: the first videos that were skipped, with reasons.
        shapes: how many were encoded in each shape.
        moments: of the values encoded in this run.
    """

    def __init__(
        self,
        config: EncodeLatentsConfig,
        cut: Cut,
        network: TemporalAutoencoder,
        record: LatentRecord,
        folder: Path | None,
        writes: bool = True,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.bad: list[dict] = []
        self.shapes: Counter[Bucket] = Counter()
        self.moments = LatentMoments()
        self._config, self._cut, self._network, self._tae, self._folder = config, cut, network, record.tae, folder
        self._writes = writes and folder is not None
        self._waiting: dict[Bucket, list[_Clip]] = {}
        self._compiled: dict[Bucket, int] = {}  # clips per call of the network

    def run(self, items: Sequence[Item]) -> None:
        """Encode everything."""
        i, n = self._config.part
        mine = items[i::n]
        workers, size = self._config.dataloader.num_workers, self._config.dataloader.batch_size
        # No bar where nobody watches (a file, a pipe): the summary says what was done.
        with (
            ThreadPoolExecutor(workers, "read") as readers,
            ThreadPoolExecutor(2, "write") as writers,
            tqdm(total=len(mine), unit="video", desc="encoding", disable=None) as progress,
        ):
            self._writers, self._writing = writers, deque()
            try:
                for result in _ahead(readers, self._read, self._wanted(items, i, n), workers + size):
                    self._take(*result)
                    progress.update(self._done - progress.n)
                for bucket in list(self._waiting):
                    self._flush(bucket)
                    progress.update(self._done - progress.n)
                self._await_writes(0)
            except BaseException:
                readers.shutdown(wait=False, cancel_futures=True)
                raise

    def report(self) -> dict:
        """Tell what was done, for `write_summary`."""
        shapes = [(astuple(bucket), number) for bucket, number in self.shapes.items()]
        bad = [(row["row"], row) for row in self.bad]
        return {"counts": self.counts, "bad": bad, "shapes": shapes, "moments": self.moments.state()}

    @property
    def _done(self) -> int:
        return self.counts["rows"] - sum(map(len, self._waiting.values()))

    def _wanted(self, items: Sequence[Item], i: int, n: int) -> Iterator[tuple[Item, str]]:
        """Yield this process' items and their outputs; duplicates and unusable names are noted.

        Other processes' items are looked at as well: two videos shall not share an output, whoever encodes them.
        """
        owners: dict[str, Item] = {}
        for number, item in enumerate(items):
            output, error = latent_file(item.name)
            owner = item if error else owners.setdefault(output, item)
            if number % n != i:
                continue
            if self._folder is None:
                yield item, output
                continue
            if error is None and owner is not item and owner.path != item.path:
                error = f"has the file {output} in common with {owner.name}"
            if error:
                self.counts["rows"] += 1
                self._skip(item, error)
            elif owner is not item:
                self.counts["rows"] += 1
                self.counts["duplicates"] += 1
            else:
                yield item, output

    def _read(self, item: Item, output: str) -> tuple[Item, _Clip | BadClip]:
        """Read a clip, in a thread."""
        try:
            stat = item.path.stat()
            source = f"{item.name} {stat.st_size} {stat.st_mtime_ns} {self._cut}"
            if self._is_done(output, source):
                return item, _Clip(output)
            bucket = self._cut.bucket(item)
            frames = self._cut.read(item, bucket)
            rate = float(self._cut.rate(item))
        except BadClip as error:
            return item, error
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            return item, BadClip(item.path, "no such file" if missing else f"cannot be read ({error.strerror})")
        origin = Origin(self._tae, source, bucket.frames, bucket.height, bucket.width, rate)
        return item, _Clip(output, origin, bucket, frames)

    def _is_done(self, output: str, source: str) -> bool:
        if self._folder is None or self._config.overwrite or not (path := self._folder / output).is_file():
            return False
        try:
            origin = read_latent(path).origin
        except BadClip:  # what cannot be read is written again
            return False
        return origin is not None and (origin.tae, origin.source) == (self._tae, source)

    def _take(self, item: Item, clip: _Clip | BadClip) -> None:
        self.counts["rows"] += 1
        if isinstance(clip, BadClip):
            self._skip(item, clip.reason)
            return
        if clip.frames is None:
            self.counts["reused"] += 1
            return
        group = self._waiting.setdefault(clip.bucket, [])
        group.append(clip)
        if len(group) == self._config.dataloader.batch_size:
            self._flush(clip.bucket)
        while sum(c.frames.nbytes for clips in self._waiting.values() for c in clips) > _WAITING:
            self._flush(max(self._waiting, key=lambda key: sum(c.frames.nbytes for c in self._waiting[key])))

    def _skip(self, item: Item, reason: str) -> None:
        name = item.name.encode("utf-8", "backslashreplace").decode("utf-8")
        self.counts["skipped"] += 1
        if len(self.bad) < LISTED:
            self.bad.append({"row": item.row, "video": name, "error": reason})
        if self.counts["skipped"] <= _TOLD:
            with tqdm.external_write_mode():
                get_logger().warning("skipped: %s: %s", name, reason)

    def _flush(self, bucket: Bucket) -> None:
        """Encode what waits in one shape, in batches of the size that was compiled for it."""
        clips = self._waiting.pop(bucket)
        size = self._compiled.setdefault(bucket, len(clips))
        for start in range(0, len(clips), size):
            group = clips[start : start + size]
            # Filled up with the last one: another batch size would be compiled anew.
            padded = [*group, *[group[-1]] * (size - len(group))]
            latents = encode_frames(self._network, [clip.frames for clip in padded])
            for clip, (mean, std) in zip(group, latents, strict=False):
                self.moments.add(mean, std)
                if self._writes:
                    latent = Latent(mean, std, clip.origin)
                    self._writing.append(self._writers.submit(write_latent, self._folder / clip.output, latent))
            self.counts["encoded"] += len(group)
            self.shapes[bucket] += len(group)
        self._await_writes(4 * self._config.dataloader.batch_size)

    def _await_writes(self, left: int) -> None:
        """Wait until at most so many files are being written; a disk that refuses is told here."""
        while len(self._writing) > left:
            self._writing.popleft().result()


def _ahead(pool: ThreadPoolExecutor, function, arguments: Iterable[tuple], depth: int) -> Iterator:
    """Yield function(*arguments) in order, computed up to `depth` results ahead."""
    ahead: deque[Future] = deque()
    for argument in arguments:
        ahead.append(pool.submit(function, *argument))
        if len(ahead) > depth:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()

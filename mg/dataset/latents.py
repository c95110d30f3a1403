"""Latents on disk: one .npz per video with the keys `latent_mean` and `latent_std`, each (t, c, h, w), unscaled.

The folder's `latents.json` says which autoencoder made them. The archive's comment, which no reader of arrays meets,
says of each file what it was made of.
"""

import io
import json
import zipfile
import zlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float

from mg.errors import BadClip, UserError
from mg.files import atomic_path, write_json

RECORD = "latents.json"
SUFFIX = ".npz"
_KEYS = ("latent_mean", "latent_std")
# What a file raises that is no longer, or never was, what `write_latent` writes.
_DAMAGE = (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError)


@dataclass(frozen=True)
class LatentRecord:
    """What made a folder of latents; stands in its `latents.json`.

    Attributes:
        tae: fingerprint of the autoencoder.
        scaling_factor: the transformer sees (z - shift_factor) * scaling_factor.
        shift_factor: see scaling_factor.
        channels: of a latent.
        time_compression: RGB frames per latent frame.
        spatial_compression: pixels per latent position.
    """

    tae: str
    scaling_factor: float
    shift_factor: float
    channels: int
    time_compression: int
    spatial_compression: int

    @classmethod
    def read(cls, folder: str | Path) -> "LatentRecord | None":
        """Read a folder's record, None if it has none.

        Raises:
            UserError: the record is damaged.
        """
        path = Path(folder) / RECORD
        remedy = "restore it, or encode the videos into another folder"
        try:
            values = json.loads(path.read_text("utf-8"))
            record = cls(**{field.name: values[field.name] for field in fields(cls)})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: cannot be read ({error}); {remedy}") from error
        for field in fields(cls):
            value = getattr(record, field.name)
            kinds = (int, float) if field.type is float else field.type
            if not isinstance(value, kinds) or isinstance(value, bool) or (field.type is not str and value != value):
                raise UserError(f"{path}: {field.name} is {value!r}; {remedy}")
        return record

    def write(self, folder: str | Path) -> None:
        """Write the record into a folder."""
        write_json(Path(folder) / RECORD, asdict(self))


def check_folder(folder: str | Path, tae: str | None = None) -> LatentRecord | None:
    """Read the record of a folder of latents to train on.

    Args:
        folder: what `scripts/inference_tae.py` wrote, or a folder of the reference's, which has no record.
        tae: fingerprint of the autoencoder that the latents must be of, None for any.

    Returns:
        The record, None if there is none.

    Raises:
        UserError: no such folder, a damaged record, or another autoencoder's.
    """
    if not Path(folder).is_dir():
        raise UserError(f"tae_latent_folder: {folder} is not a folder; encode the videos: {_command(folder)}")
    record = LatentRecord.read(folder)
    if tae is not None and record is not None and record.tae != tae:
        raise UserError(
            f"tae_latent_folder: {folder} was encoded by the autoencoder {record.tae}, not by {tae}; encode the videos "
            f"again into another folder: {_command('FOLDER')}"
        )
    return record


def _command(folder: str | Path) -> str:
    return f"python scripts/inference_tae.py --tae.pretrained FILE --video_data.csv_path FILE --output_path {folder}"


@dataclass(frozen=True)
class Origin:
    """What a file of latents was made of.

    Attributes:
        tae: fingerprint of the autoencoder.
        source: name, size and time of the video file and how it was cut; equal for equal work.
        frames: RGB frames that were encoded, 1 for a picture.
        height: of the video as encoded, in pixels.
        width: see height.
        fps: frames per second, 0 for a picture.
    """

    tae: str
    source: str
    frames: int
    height: int
    width: int
    fps: float


@dataclass(frozen=True)
class Latent:
    """Distribution of one video's latent, unscaled, and what it was made of (None where the file does not say)."""

    mean: Float[np.ndarray, "c t h w"]
    std: Float[np.ndarray, "c t h w"]
    origin: Origin | None = None


def latent_file(name: str) -> tuple[str, str | None]:
    """Return the path, relative to the folder of latents, that belongs to a video, and what is wrong with the name."""
    path = PurePosixPath(name)
    if not path.name or "\0" in name:
        return "", "names no file"
    if path.is_absolute() or ".." in path.parts:
        return "", "leaves the output folder; use paths below the videos' folder"
    if max(len(part.encode("utf-8", "surrogateescape")) for part in (*path.parts, path.stem + SUFFIX)) > 255:
        return "", "has a name that is too long"
    return str(path.with_suffix(SUFFIX)), None


def write_latent(path: str | Path, latent: Latent) -> None:
    """Write one video's latent, atomically; equal latents give equal bytes.

    Raises:
        UserError: a disk that refuses.
    """
    arrays = {
        key: np.ascontiguousarray(value.transpose(1, 0, 2, 3), np.float32)  # (c, t, h, w) -> (t, c, h, w)
        for key, value in zip(_KEYS, (latent.mean, latent.std), strict=True)
    }
    with atomic_path(path) as temporary:
        np.savez(temporary, **arrays)
        if latent.origin is not None:
            with zipfile.ZipFile(temporary, "a") as archive:
                archive.comment = json.dumps(asdict(latent.origin)).encode()


def read_latent(path: str | Path) -> Latent:
    """Read one video's latent, ours or one of the reference's.

    Raises:
        BadClip: the file is missing, damaged, something else, or holds NaN or infinity.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # The archive's own reading proves the checksums, which numpy's lazy one does not before it parses.
            mean, std = (_array(archive.read(f"{key}.npy")) for key in _KEYS)
            origin = _origin(archive.comment)
    except OSError as error:
        raise BadClip(path, _reason(error)) from error
    except _DAMAGE as error:
        raise BadClip(path, f"damaged, or no latents ({_first_line(error)})") from error
    if mean.ndim != 4 or mean.shape != std.shape or not mean.size or mean.dtype.kind != "f" or std.dtype.kind != "f":
        raise BadClip(path, f"latent_mean {mean.shape} and latent_std {std.shape} are no latents (t, c, h, w)")
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std >= 0).all()):
        raise BadClip(path, "holds NaN, infinity or a negative deviation")
    mean, std = (np.ascontiguousarray(x.transpose(1, 0, 2, 3), np.float32) for x in (mean, std))  # (c, t, h, w)
    return Latent(mean, std, origin)


def latent_shape(path: str | Path) -> tuple[tuple[int, int, int, int], Origin | None]:
    """Read only a file's (c, t, h, w) and its origin, a hundredth of its bytes.

    Raises:
        BadClip: the file is missing, damaged at its ends, or something else.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{_KEYS[0]}.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, origin = read(file)[0], _origin(archive.comment)
    except OSError as error:
        raise BadClip(path, _reason(error)) from error
    except _DAMAGE as error:
        raise BadClip(path, f"damaged, or no latents ({_first_line(error)})") from error
    if len(shape) != 4 or min(shape) < 1:
        raise BadClip(path, f"latent_mean {shape} is no latent (t, c, h, w)")
    return (shape[1], shape[0], *shape[2:]), origin


def _array(content: bytes) -> np.ndarray:
    return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)


def _origin(comment: bytes) -> Origin | None:
    """Read an archive's comment; other programs may have written none, or one of their own."""
    try:
        return Origin(**json.loads(comment)) if comment else None
    except (ValueError, TypeError):
        return None


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no latents of this video; encode it by scripts/inference_tae.py"
    return f"cannot be read ({error.strerror or error})"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

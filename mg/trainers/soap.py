"""SOAP (Vyas et al. 2024, arXiv 2409.11321): Adam in the eigenbasis of the gradients' covariances.

For networks whose directions learn at very different speeds, an autoencoder first of all. A weight (o, i, ...) is taken
as (o, k, i), k for the kernel's taps: one covariance over its outputs, one over its inputs, refreshed bases for both.
In this order either side is rotated by one plain matrix product. The first moment is kept in the rotated basis and
turned along when the basis changes.
"""

import mindspore as ms
import numpy as np
from jaxtyping import Float
from mindspore import Parameter, Tensor, mint, ops

LIMIT = 1024
"""A weight with more outputs or inputs than this is left to AdamW: its bases would cost more than they bring."""

COVARIANCE_DECAY = 0.97
"""Decay of the covariances per update."""

REFRESH_EVERY = 10
"""Updates between two refreshes of the bases."""

SQUARES = (("out_cov", 0, False), ("in_cov", 1, False), ("out_basis", 0, True), ("in_basis", 1, True))
"""What is kept per weight besides the moments: name, 0 for outputs or 1 for inputs, whether it starts as identity."""


def is_matrix(shape: tuple[int, ...]) -> bool:
    """Tell whether a weight of this shape gets bases."""
    return len(shape) >= 2 and 1 < max(shape[:2]) <= LIMIT


_product = ops.MatMul()
_product_ta = ops.MatMul(transpose_a=True)
_product_tb = ops.MatMul(transpose_b=True)


def _taps_inside(x: Tensor, o: int, i: int) -> Float[Tensor, "o k*i"]:
    """(o, i, ...) to (o, k * i)."""
    x = x.reshape(o, i, -1)
    return x.reshape(o, i) if x.shape[2] == 1 else ops.transpose(x, (0, 2, 1)).reshape(o, -1)


def _taps_last(x: Tensor, o: int, i: int) -> Float[Tensor, "o i k"]:
    """(o * k, i) to (o, i, k)."""
    x = x.reshape(o, -1, i)
    return x.reshape(o, i, 1) if x.shape[1] == 1 else ops.transpose(x, (0, 2, 1))


def _toward(old: Parameter, new: Tensor, rate: float | Tensor) -> Tensor:
    ops.assign_add(old, (new - old) * rate)
    return old


def soap_update(
    scalars: tuple[Tensor, ...],
    scale: Tensor,
    param: Parameter,
    first: Parameter,
    second: Parameter,
    out_cov: Parameter,
    in_cov: Parameter,
    out_basis: Parameter,
    in_basis: Parameter,
    grad: Tensor,
) -> bool:
    """Update one weight, its moments and its covariances in place.

    Args:
        scalars: rate, beta1, beta2, eps and decay as `mg.trainers.optim.adamw_scalars` gives them.
        scale: factor that clips the gradient.
        param: weight (o, i, ...); the moments have its shape.
        first: first moment in the rotated basis, laid out as (o, k, i).
        second: second moment, as `first`.
        out_cov: (o, o).
        in_cov: (i, i).
        out_basis: (o, o), orthonormal columns.
        in_basis: (i, i), as `out_basis`.
        grad: of the weight.
    """
    rate, beta1, beta2, eps, decay = scalars
    o, i = out_cov.shape[0], in_cov.shape[0]
    by_out = _taps_inside(grad * scale, o, i)  # (o, k*i)
    by_in = by_out.reshape(-1, i)  # (o*k, i)
    _toward(out_cov, _product_tb(by_out, by_out), 1.0 - COVARIANCE_DECAY)
    _toward(in_cov, _product_ta(by_in, by_in), 1.0 - COVARIANCE_DECAY)
    turned = _product(_product_ta(out_basis, by_out).reshape(-1, i), in_basis)  # (o*k, i)
    turned = turned.reshape(param.shape)
    mean = _toward(first, turned, 1.0 - beta1)
    square = _toward(second, turned * turned, 1.0 - beta2)
    step = mean / (mint.sqrt(square) + eps) * rate
    step = _product(out_basis, _product_tb(step.reshape(-1, i), in_basis).reshape(o, -1))  # (o, k*i)
    back = _taps_last(step, o, i)  # (o, i, k)
    ops.assign(param, param * (1.0 - rate * decay) - back.reshape(param.shape))
    return True


def refresh(first: Parameter, out_cov: Parameter, in_cov: Parameter, out_basis: Parameter, in_basis: Parameter) -> None:
    """Bring both bases nearer to the covariances' eigenvectors (one step of orthogonal iteration), on the host."""
    turns = []
    for covariance, basis in ((out_cov, out_basis), (in_cov, in_basis)):
        old = basis.asnumpy()
        new, triangle = np.linalg.qr(covariance.asnumpy() @ old)
        new = (new * np.where(np.diag(triangle) < 0, -1.0, 1.0)).astype(np.float32)  # keep the columns' directions
        turns.append(new.T @ old)
        basis.set_data(Tensor(new))
    _turn(first, *turns)


def begin(
    betas: tuple[float, float],
    first: Parameter,
    second: Parameter,
    out_cov: Parameter,
    in_cov: Parameter,
    out_basis: Parameter,
    in_basis: Parameter,
) -> None:
    """Set both bases to the eigenvectors after the first update, and the moments to what they would be in them."""
    turns = []
    for covariance, basis in ((out_cov, out_basis), (in_cov, in_basis)):
        vectors = np.ascontiguousarray(np.linalg.eigh(covariance.asnumpy())[1][:, ::-1])
        basis.set_data(Tensor(vectors))
        turns.append(vectors.T)
    _turn(first, *turns)
    gradient = first.asnumpy() / (1.0 - betas[0])
    second.set_data(Tensor((gradient**2 * (1.0 - betas[1])).astype(np.float32)))


def _turn(first: Parameter, out_turn: np.ndarray, in_turn: np.ndarray) -> None:
    o, i = len(out_turn), len(in_turn)
    moment = out_turn @ first.asnumpy().reshape(o, -1)  # (o, k*i)
    moment = moment.reshape(-1, i) @ in_turn.T  # (o*k, i)
    first.set_data(Tensor(moment.reshape(first.shape).astype(np.float32)))


def square_parameters(params: tuple[Parameter, ...], side: int, prefix: str, identity: bool) -> list[Parameter]:
    """One (n, n) parameter per weight, n its number of outputs (side 0) or inputs (side 1): zeros or the identity."""
    made = []
    for param in params:
        n = param.shape[side]
        value = np.eye(n, dtype=np.float32) if identity else np.zeros((n, n), np.float32)
        made.append(Parameter(Tensor(value, ms.float32), name=f"{prefix}.{param.name}", requires_grad=False))
    return made

"""Whether an update avoids the principal part of a matrix, turns its singular vectors or moves its singular values.

Zhu et al., "The Path Not Taken: RLVR Provably Learns Off the Principals" (arXiv 2511.08567), section 4: the *principal mask* is the top
share of |W_k|, the rank-k approximation of the base matrix W, and the update's overlap with it is the share of the changed elements that
lie in it; the angles between the leading k singular vectors of base and target have the cosines s_i(U_k^T U'_k) and s_i(V_k^T V'_k); the
*normalized spectral shift* is ||s(W') - s(W)|| / ||s(W)||. Beside each stands what it is among weights of the same size
(:mod:`ckptdiff.analysis.nulls`), which the paper has not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.analysis.nulls import SizeBins
from ckptdiff.analysis.rank import MAX_SVD_SIDE, gram
from ckptdiff.lazy import torch

Array = npt.NDArray[Any]

PRINCIPAL_SHARE = 0.5
"""Share of a matrix's elements in the principal mask: the top half, as in the paper's sparse training (section 5)."""
RANK_DIVISOR = 8
"""k is the smaller side over this. The paper varies k; a share of the side is alike for matrices of all shapes."""
MAX_VALUES = {4: 1e37, 8: 1e150}
"""Largest element of a matrix, by its bytes, whose sums stay within float32, and whose products within float64."""
MAX_DRIFT = 1e100
"""Largest spectral shift whose square is surely within float64."""
LEAST_SINGULAR_VALUE = 1e-6
"""Singular value, as a share of the largest, below which a leading subspace is not known, as it comes from the Gram matrix."""


@dataclass(frozen=True, slots=True)
class Turned:
    """How far a matrix has turned and moved from the base."""

    largest_angle: float
    """The largest of the 2 k principal angles, in degrees."""
    mean_angle: float
    """The mean of the principal angles, in degrees."""
    drift: float
    """Normalized spectral shift."""


@dataclass(frozen=True, slots=True)
class Principal:
    """An update beside the principal part of its base matrix."""

    k: int
    """Leading singular vectors, and the rank of the approximation."""
    mask: int
    """Elements of the principal mask."""
    changed: int
    """Elements of the matrix that changed."""
    inside: int
    """Changed elements in the mask."""
    inside_by_size: float
    """What chance among weights of the same size gives for ``inside``."""
    variance_by_size: float
    """Variance of that chance: hypergeometric, within each exponent."""
    turned: Turned
    shuffled: tuple[Turned, ...]
    """The same for draws with shuffled positions."""


@dataclass(frozen=True, slots=True)
class Leading:
    """The singular values of a matrix, in float64, and its leading singular vectors."""

    values: Array
    """All singular values, from the largest."""
    left: Array
    """[rows, k], orthonormal."""
    right: Array
    """[columns, k], orthonormal."""


def principal(base: Array, target: Array, bins: SizeBins, shuffled: Iterable[Array], device: str | None, threads: int) -> Principal | None:
    """Set an update beside its base matrix.

    Args:
        base, target: values of the matrix, of two dimensions, finite.
        bins: the elements of the base by size.
        shuffled: targets whose update has shuffled positions.
        device: a torch device for eigenvalues and eigenvectors; None for NumPy.
        threads: of the Gram matrix, where it is sparse.

    Returns:
        None where the base has less than k singular values that are not nearly 0, or the other
        matrix is that much larger that their squares cannot be compared.
    """
    ends = [float(value) for side in (base, target) for value in (side.max(initial=0.0), -side.min(initial=0.0))]
    if max(ends) > MAX_VALUES[base.itemsize]:
        return None
    k = max(1, min(base.shape) // RANK_DIVISOR)
    tall = base.shape[0] > base.shape[1]
    if tall:
        base, target, shuffled = base.T, target.T, (matrix.T for matrix in shuffled)
    known = leading(base, k, device, threads)
    if not known.values[k - 1] > LEAST_SINGULAR_VALUE * known.values[0]:
        return None
    mask = principal_mask(base, known.left)
    changed = base != target
    flat = [(flags.T if tall else flags).reshape(-1) for flags in (changed, mask)]
    mean, variance = bins.shared_by_chance(*flat)
    moved = moved_from(known, leading(target, k, device, threads))
    draws = tuple(moved_from(known, leading(matrix, k, device, threads)) for matrix in shuffled)
    if not max(found.drift for found in (moved, *draws)) <= MAX_DRIFT:
        return None
    elements, changes, inside = (int(np.count_nonzero(flags)) for flags in (mask, changed, changed & mask))
    return Principal(k, elements, changes, inside, mean, variance, moved, draws)


def principal_mask(base: Array, left: Array) -> Array:
    """The top :data:`PRINCIPAL_SHARE` of |U_k U_k^T W|, which is the rank-k approximation of W; elements that equal the least are in it.

    Args:
        base: W, [rows, columns].
        left: U_k, [rows, k].
    """
    sizes = np.abs(left @ (left.T @ base.astype(np.float64)))
    rest = sizes.size - int(PRINCIPAL_SHARE * sizes.size)
    return sizes >= np.partition(sizes.reshape(-1), rest)[rest] if rest < sizes.size else np.zeros(sizes.shape, np.bool_)


def leading(matrix: Array, k: int, device: str | None, threads: int) -> Leading:
    """Singular values and the leading k singular vectors of a matrix that has no more rows than columns."""
    if max(matrix.shape) <= MAX_SVD_SIDE:
        left, values, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
        return Leading(values, left[:, :k], right[:k].T)
    eigenvalues, vectors = _eigen(matrix, device, threads)
    left = vectors[:, ::-1][:, :k]
    right = np.linalg.qr(matrix.T.astype(np.float64) @ left)[0]
    return Leading(np.sqrt(np.maximum(eigenvalues[::-1], 0.0)), left, right)


def _eigen(matrix: Array, device: str | None, threads: int) -> tuple[Array, Array]:
    """Eigenvalues, in rising order, and eigenvectors of W W^T."""
    if device is None:
        found = np.linalg.eigh(gram(matrix, 1.0, threads))
        return found.eigenvalues, found.eigenvectors
    part = torch.from_numpy(np.ascontiguousarray(matrix)).to(device, torch.float64)
    values, vectors = torch.linalg.eigh(part @ part.T)
    return values.cpu().numpy(), vectors.cpu().numpy()


def moved_from(base: Leading, other: Leading) -> Turned:
    """How far another matrix has turned and moved from the base."""
    angles = np.concatenate([principal_angles(base.left, other.left), principal_angles(base.right, other.right)])
    drift = np.linalg.norm(other.values - base.values) / np.linalg.norm(base.values)
    return Turned(float(angles.max()), float(angles.mean()), float(drift))


def principal_angles(first: Array, second: Array) -> Array:
    """Angles between two subspaces, in degrees, from the smallest, exact for small ones too.

    Knyazev and Argentati, "Principal angles between subspaces in an A-based scalar product" (2002), algorithm 3.1: those up to 45 degrees
    from their sines, the others from their cosines.

    Args:
        first, second: orthonormal columns, [n, k].
    """
    inner = first.T @ second
    cosines = np.clip(np.linalg.svd(inner, compute_uv=False), 0.0, 1.0)
    sines = np.clip(np.linalg.svd(second - first @ inner, compute_uv=False)[::-1], 0.0, 1.0)
    return np.degrees(np.where(cosines**2 >= 0.5, np.arcsin(sines), np.arccos(cosines)))

"""What a figure of a matrix's update would be without the effect: the same update with its signs flipped, or with its positions shuffled.

Small weights have fine steps in a format such as BF16 and change in any training, so that chance must know the sizes. The null of *flipped
signs* keeps each element's place and size and draws its sign anew. The null of *shuffled positions* keeps, for each binary exponent of the
base's elements, the values of target minus base there, zeros included, and deals them out anew among these elements: what is left of any
figure is what the base's sizes explain.

Random numbers come from a counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) whose key is a
digest of the seed and of the base tensor's name, so that they depend neither on threads nor on the order of tensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.analysis.rank import ENERGY_RANKS, Spectrum

Array = npt.NDArray[Any]

TOP_ENERGY_RANK = 8
"""Number of the largest singular values whose share of the energy is set against the nulls. That of the first alone is 1 / stable rank."""


@dataclass(frozen=True, slots=True)
class Draws:
    """What n draws of a null give for a matrix; the figures are those of :class:`~ckptdiff.analysis.rank.Spectrum`."""

    rank: tuple[int, ...]
    stable_rank: tuple[float, ...]
    effective_rank: tuple[int, ...]
    top_energy: tuple[float, ...]
    """Share of the energy in the largest :data:`TOP_ENERGY_RANK` singular values."""

    @classmethod
    def of(cls, spectra: Sequence[Spectrum]) -> Draws:
        """The figures of the spectra of all draws."""
        figures = ((s.rank, s.stable_rank, s.effective_rank, top_energy(s)) for s in spectra)
        return cls(*zip(*figures, strict=True))


def top_energy(spectrum: Spectrum) -> float:
    """Share of the energy in the largest :data:`TOP_ENERGY_RANK` singular values."""
    return spectrum.top_energy[ENERGY_RANKS.index(TOP_ENERGY_RANK)]


def generator(seed: int, *names: object) -> np.random.Generator:
    """Random numbers that depend on a seed and names alone: Philox with 128 bits of a SHA-256 as its key."""
    text = "\0".join(map(str, (seed, *names)))
    key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


def with_flipped_signs(update: Array, random: np.random.Generator) -> Array:
    """The update with a random sign for each element."""
    flips = np.unpackbits(np.frombuffer(random.bytes(-(-update.size // 8)), np.uint8), count=update.size)
    return np.where(flips.reshape(update.shape), -update, update)


class SizeBins:
    """The elements of a matrix by the binary exponent of the base's value."""

    def __init__(self, exponents: Array) -> None:
        """Sort the elements.

        Args:
            exponents: exponent field of each element of the base, flat: uint8 or uint16.
        """
        kind = np.uint32 if exponents.size < 1 << 32 else np.int64
        self._order = np.argsort(exponents, kind="stable").astype(kind)
        counts = np.bincount(exponents)
        self._counts = counts[counts > 0]
        """Number of elements of each exponent that occurs."""

    def shuffled(self, values: Array, random: np.random.Generator) -> Array:
        """Values dealt out anew among the elements of the same exponent; of the same shape."""
        flat, result, start = values.reshape(-1), np.empty(values.size, values.dtype), 0
        for count in self._counts:
            places = self._order[start : start + count]
            result[places] = random.permutation(flat[places])
            start += count
        return result.reshape(values.shape)

    def shared_by_chance(self, changed: Array, chosen: Array) -> tuple[float, float]:
        """Mean and variance of how many chosen elements change, if as many of each exponent change as do, but at random among them.

        Args:
            changed, chosen: bool, flat.
        """
        starts = np.concatenate([[0], np.cumsum(self._counts)[:-1]])
        counts = np.stack([np.add.reduceat(flags[self._order], starts, dtype=np.int64) for flags in (changed, chosen)])
        mean, variance = shared_by_chance(self._counts, counts)
        return float(mean[0, 1]), float(variance[0, 1])


def shared_by_chance(elements: Array, chosen: Array) -> tuple[Array, Array]:
    """Mean and variance of the number of elements that every two of K random choices share, each of so many elements of each bin.

    That is the hypergeometric distribution within each bin, summed: of n elements of which c1 and c2 are chosen, the mean is c1 c2 / n and
    the variance c1 c2 (n - c1) (n - c2) / (n^2 (n - 1)).

    Args:
        elements: [bins] of each bin.
        chosen: [K, bins] how many of them are chosen.

    Returns:
        [K, K] each; the diagonals have no meaning.
    """
    n = np.maximum(elements, 1).astype(np.float64)
    shares = chosen / n
    spread = shares * (1 - shares)
    return (shares * n) @ shares.T, (spread * (n**2 / np.maximum(n - 1, 1))) @ spread.T

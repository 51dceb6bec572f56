"""Whether several updates of one base changed the same elements, and how an update grows over a run.

Mukherjee, Yuan, Hakkani-Tur, Peng (arXiv 2505.11711), section 5 and appendix E: for the sets I1, I2 of changed elements and
sparsities s1, s2, o1 = |I1 n I2| / |I1| and o2 = |I1 n I2| / |I2|; at random o1 = 1 - s2 and o2 = 1 - s1.

Small weights have fine steps and change in any update, so that any two updates share more than that. "By size" is a chance that takes this
into account: each update changes as many weights of each binary exponent (of the base's value) as it did, in each tensor, but at random
among them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.analysis.notebook import ShownOverlap
from ckptdiff.analysis.nulls import shared_by_chance
from ckptdiff.analysis.pairs import Pair
from ckptdiff.analysis.sparsity import EXPONENT_FIELDS
from ckptdiff.analysis.values import count_ones, distances, element_bits, values_of

CountArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TensorOverlap:
    """What K updates changed in one tensor of the base, in numbers of elements."""

    scope: str
    """Its scope in the base."""
    name: str
    """Its name there; that of the first update's tensor where this is adapted or put together."""
    elements: int
    """All elements of the tensor; a complex number counts as its two parts."""
    changed: CountArray
    """[K] elements that each update changed."""
    both: CountArray
    """[K, K] elements that both of two updates changed."""
    same_direction: CountArray
    """[K, K] elements that both moved up, or both moved down."""
    core: int
    """Elements that all updates changed."""
    since_last: CountArray
    """[K] elements that differ from the update before, for the first update from the base."""
    ever: CountArray
    """[K] elements that this update or one before it changed."""
    back: CountArray
    """[K] elements that an update before changed, and that are now as in the base."""
    both_by_size: npt.NDArray[np.float64]
    """[K, K] what chance among weights of the same size gives for ``both``; the diagonal has no meaning."""
    both_variance: npt.NDArray[np.float64]
    """[K, K] variance of that chance: hypergeometric within each binary exponent. The diagonal has no meaning."""
    core_by_size: float
    """What chance among weights of the same size gives for ``core``."""


@dataclass(frozen=True, slots=True)
class PairOverlap:
    """What two updates share."""

    first: int
    """Index of the first update."""
    second: int
    """Index of the second update."""
    o1: float
    """Share of the first one's changes that the second one made too (section 5); 0 where there are none."""
    o2: float
    """Share of the second one's changes that the first one made too (section 5); 0 where there are none."""
    random_o1: float
    """What o1 would be at random: 1 - s2 (appendix E)."""
    random_o2: float
    """What o2 would be at random: 1 - s1 (appendix E)."""
    jaccard: float
    """|I1 n I2| / |I1 u I2|."""
    expected_jaccard: float
    """What jaccard would be with as many changes in each tensor, but at random within it: sum n p1 p2 / sum n (p1 + p2 - p1 p2) over the
    tensors, with p the share that changed."""
    o1_by_size: float
    """What o1 would be at random among the weights of the same tensor and binary exponent."""
    o2_by_size: float
    """What o2 would be at random among the weights of the same tensor and binary exponent."""
    jaccard_by_size: float
    """What jaccard would be at random among the weights of the same tensor and binary exponent."""
    o1_excess: float | None
    """What the updates share of what their sizes leave open: (o1 - o1_by_size) / (1 - o1_by_size). It is 0 for chance by size, 1 if the
    second update holds the first one; None where the sizes leave nothing open."""
    o2_excess: float | None
    """The same of o2."""
    z: float | None
    """Standard deviations by which the number of elements that both changed exceeds what chance by size gives, which is hypergeometric
    within each exponent of each tensor; None where that chance knows no other number."""
    same_direction: float
    """Share of the elements that both changed that moved the same way."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; null for a share of nothing."""
        first_changed, second_changed = self.random_o2 > 0, self.random_o1 > 0
        known = {"o1": first_changed, "o1_by_size": first_changed, "o2": second_changed, "o2_by_size": second_changed}
        known |= {"same_direction": self.o1 > 0, "o1_excess": first_changed, "o2_excess": second_changed}
        known |= dict.fromkeys(("jaccard", "expected_jaccard", "jaccard_by_size"), first_changed or second_changed)
        return {key: value if known.get(key, True) else None for key, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class StepRow:
    """One checkpoint of a run, in shares of all elements."""

    name: str
    sparsity: float
    """Equal to the base."""
    since_last: float
    """Changed since the checkpoint before, or since the base."""
    ever: float
    """Changed at this checkpoint or at one before."""
    back: float
    """Changed at a checkpoint before, and now equal to the base."""


@dataclass(frozen=True, slots=True, repr=False)
class OverlapResult(ShownOverlap):
    """The result of :func:`ckptdiff.overlap`."""

    base: str
    """Name of the base."""
    names: tuple[str, ...]
    """Names of the updates, all distinct."""
    atol: float
    """An element counts as changed if |d| exceeds this; at 0, if its bits differ."""
    tensors: tuple[TensorOverlap, ...]
    left_out: tuple[str, ...]
    """Names of tensors that not all updates have, made from the same part of the base and in one dtype."""
    cast: str | None = None
    """The dtype that tensors of F16, BF16 and F32 were cast to before they were compared."""
    elements: int = field(init=False)
    """All elements of the tensors."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "elements", sum(t.elements for t in self.tensors))

    @property
    def core(self) -> int:
        """Elements that all updates changed."""
        return sum(t.core for t in self.tensors)

    def pair(self, first: int, second: int, tensors: Sequence[TensorOverlap] | None = None) -> PairOverlap:
        """What two updates, given by their indices, share over all tensors or some."""
        rows = self.tensors if tensors is None else tensors
        n = sum(t.elements for t in rows)
        a, b = (sum(int(t.changed[k]) for t in rows) for k in (first, second))
        both, same = (sum(int(getattr(t, key)[first, second]) for t in rows) for key in ("both", "same_direction"))
        by_size, variance = (sum(float(getattr(t, key)[first, second]) for t in rows) for key in ("both_by_size", "both_variance"))
        shared = sum(float(t.changed[first]) * float(t.changed[second]) / t.elements for t in rows if t.elements)
        return PairOverlap(
            first,
            second,
            o1=ratio(both, a),
            o2=ratio(both, b),
            random_o1=ratio(b, n),
            random_o2=ratio(a, n),
            jaccard=ratio(both, a + b - both),
            expected_jaccard=ratio(shared, a + b - shared),
            o1_by_size=ratio(by_size, a),
            o2_by_size=ratio(by_size, b),
            jaccard_by_size=ratio(by_size, a + b - by_size),
            o1_excess=excess(both, by_size, a, variance),
            o2_excess=excess(both, by_size, b, variance),
            z=(both - by_size) / math.sqrt(variance) if variance > 0 else None,
            same_direction=ratio(same, both),
        )

    @property
    def pairs(self) -> tuple[PairOverlap, ...]:
        """What every two updates share."""
        if not self.tensors:
            return ()
        return tuple(self.pair(i, j) for i in range(len(self.names)) for j in range(i + 1, len(self.names)))

    @property
    def steps(self) -> tuple[StepRow, ...]:
        """The updates as checkpoints of one run, in order (the paper's figures 2, 5, 6, 7)."""
        return step_rows(self.tensors, self.names, self.elements)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as ``spec/overlap.schema.json`` describes them."""
        rows = [{key: v.tolist() if isinstance(v, np.ndarray) else v for key, v in asdict(t).items()} for t in self.tensors]
        return {
            "schema": "ckptdiff-overlap/1",
            "base": self.base,
            "names": list(self.names),
            "atol": self.atol,
            "as": self.cast,
            "elements": self.elements,
            "core": self.core,
            "pairs": [pair.to_json() for pair in self.pairs],
            "steps": [asdict(step) for step in self.steps],
            "tensors": rows,
            "left_out": list(self.left_out),
        }


def step_rows(tensors: Iterable[Any], names: Sequence[str], elements: int) -> tuple[StepRow, ...]:
    """The checkpoints of a run, from the counts of its tensors, which have the fields of :data:`STEP_FIELDS`."""
    sums = [np.zeros(len(names), np.int64) for _ in STEP_FIELDS]
    for tensor in tensors:
        for total, key in zip(sums, STEP_FIELDS, strict=True):
            total += getattr(tensor, key)
    shares = [[ratio(int(n), elements) for n in total] for total in sums]
    return tuple(StepRow(name, 1 - changed, *rest) for name, changed, *rest in zip(names, *shares, strict=True))


def distinct_names(paths: Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    """A name for each of several paths, or ids on the Hub: the fewest of its last parts that no other has, such as
    ``r1/checkpoint-100`` beside ``r2/checkpoint-100``. A path that is given again has a number behind its name."""
    parts = [Path(path).parts or (str(path),) for path in paths]
    names: list[str] = []
    for own in parts:
        others = [other for other in parts if other != own]
        count = next((k for k in range(1, len(own)) if all(other[-k:] != own[-k:] for other in others)), len(own))
        names.append(Path(*own[-count:]).as_posix())
    repeats = [names[:k].count(name) for k, name in enumerate(names)]
    return tuple(name + (f" ({count + 1})" if count else "") for name, count in zip(names, repeats, strict=True))


STEP_FIELDS = ("changed", "since_last", "ever", "back")
"""Counts of a tensor that a :class:`StepRow` gives as shares."""


def ratio(part: float, whole: float) -> float:
    """part / whole; 0 if the whole is empty."""
    return part / whole if whole else 0.0


def excess(both: float, by_size: float, changed: float, variance: float) -> float | None:
    """(o1 - size) / (1 - size), with o1 = both / changed and size = by_size / changed; None where the sizes leave nothing open."""
    return (both - by_size) / (changed - by_size) if variance > 0 and changed > by_size else None


def tensor_overlap(group: Sequence[Pair], blocks: Iterator[list[CountArray]]) -> TensorOverlap:
    """Add up the counts of a tensor's blocks.

    Args:
        group: the tensor of the base paired with that of each update.
        blocks: what :func:`count_block` returned for its blocks; those of other tensors may follow.
    """
    sums = [np.sum(part, axis=0) for part in zip(*(next(blocks) for _ in group[0].starts), strict=True)]
    for pair in group:
        pair.finish()
    elements, changed, both, same, core, last, ever, back, sizes = sums
    counts = (int(elements), changed, both, same, int(core), last, ever, back)
    first, old = group[0], group[0].old
    return TensorOverlap(first.base_scope, old.name if old is not None else first.name, *counts, *_expected_by_size(sizes))


def _expected_by_size(sizes: CountArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float]:
    """Expected numbers of elements that every two updates change, their variances, and the number that all of them change.

    Args:
        sizes: [1 + K, exponents]: elements of each binary exponent, then how many of them each update changed.
    """
    elements = np.maximum(sizes[0], 1)
    return *shared_by_chance(sizes[0], sizes[1:]), float(((sizes[1:] / elements).prod(axis=0) * elements).sum())


def count_block(group: Sequence[Pair], start: int, atol: float) -> list[CountArray]:
    """Count one block.

    Returns:
        Elements, the counts of :class:`TensorOverlap` in its order, and what :func:`_expected_by_size` takes.
    """
    dtype = "F32" if group[0].dtype == "C64" else group[0].dtype  # a complex number counts as its two parts
    masks, ups, steps = list[npt.NDArray[np.uint8]](), list[npt.NDArray[np.uint8]](), StepCounter(dtype, atol)
    sizes = list[CountArray]()
    for pair in group:
        old, new = (element_bits(part, dtype) for part in pair.read(start, start + pair.step))
        mask = steps.add(old, new)
        sizes += [_count_exponents(old, dtype)] * (not masks) + [_count_exponents(old[mask], dtype)]
        masks.append(np.packbits(mask))
        ups.append(np.packbits(mask & _greater(new, old, dtype)))
    changed, up = np.array(masks), np.array(ups)
    both = [[count_ones(a & b) for b in changed] for a in changed]
    same = [[count_ones(a & b & ~(u ^ v)) for b, v in zip(changed, up, strict=True)] for a, u in zip(changed, up, strict=True)]
    core = count_ones(np.bitwise_and.reduce(changed, axis=0))
    counts = (steps.elements, steps.changed, both, same, core, steps.since_last, steps.ever, steps.back, sizes)
    return [np.array(count, np.int64) for count in counts]


def count_steps(group: Sequence[Pair], start: int, atol: float) -> list[CountArray]:
    """Count one block of the steps of a run: elements, and ``changed``, ``since_last``, ``ever``, ``back`` of :class:`TensorOverlap`."""
    steps = StepCounter("F32" if group[0].dtype == "C64" else group[0].dtype, atol)
    for pair in group:
        old, new = (element_bits(part, steps.dtype) for part in pair.read(start, start + pair.step))
        steps.add(old, new)
    return [np.array(count, np.int64) for count in (steps.elements, steps.changed, steps.since_last, steps.ever, steps.back)]


class StepCounter:
    """Counts the elements of a block that each step of a run changed, that differ from the step before, that any step so far changed, and
    that are now as in the base again."""

    def __init__(self, dtype: str, atol: float) -> None:
        self.dtype, self.elements = dtype, 0
        self.changed, self.since_last, self.ever, self.back = list[int](), list[int](), list[int](), list[int]()
        self._atol, self._before = atol, np.empty(0)
        self._ever = np.empty(0, np.bool_)

    def add(self, old: npt.NDArray[Any], new: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Take the block of base and next step; returns which elements differ between the two."""
        mask = self._differ(old, new)
        first = not self.changed
        self.elements = len(old)
        self.changed.append(int(np.count_nonzero(mask)))
        self.since_last.append(self.changed[-1] if first else int(np.count_nonzero(self._differ(self._before, new))))
        self._ever = mask.copy() if first else self._ever | mask
        self.ever.append(int(np.count_nonzero(self._ever)))
        self.back.append(self.ever[-1] - self.changed[-1])
        self._before = new.copy()
        return mask

    def _differ(self, a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        return ~_within(a, b, self.dtype, self._atol) if self._atol else np.asarray(a != b)


def _count_exponents(bits: npt.NDArray[Any], dtype: str) -> CountArray:
    """How many elements have each binary exponent; integers count as having the same one."""
    shift, mask, _ = EXPONENT_FIELDS.get(dtype, (0, 0, 0))
    return np.bincount(((bits >> shift) & mask).astype(np.intp), minlength=mask + 1)


def _within(a: npt.NDArray[Any], b: npt.NDArray[Any], dtype: str, atol: float) -> npt.NDArray[np.bool_]:
    """Whether elements have the same bits, or differ by at most ``atol``."""
    return np.asarray((a == b) | (distances(a, b, dtype) <= atol))


def _greater(a: npt.NDArray[Any], b: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.bool_]:
    """Whether elements of ``a`` have a greater value than those of ``b``."""
    with np.errstate(invalid="ignore"):
        return np.asarray(values_of(a, dtype) > values_of(b, dtype))

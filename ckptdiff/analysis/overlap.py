"""``overlap``: did several updates of one base change the same elements, and how does an update grow over a run?

Mukherjee, Yuan, Hakkani-Tur, Peng (arXiv 2505.11711), section 5 and appendix E: for the sets I1, I2 of changed elements and
sparsities s1, s2, o1 = |I1 n I2| / |I1| and o2 = |I1 n I2| / |I2|; at random o1 = 1 - s2 and o2 = 1 - s1.

Small weights have fine steps and change in any update, so that overlaps beyond that chance are what any two updates have.
"By size" is a chance that knows it: each update changes as many weights of each binary exponent (of the base's value) as it
did, in each tensor, but at random among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ckptdiff.analysis.pairs import Pair
from ckptdiff.analysis.sparsity import EXPONENT
from ckptdiff.analysis.values import count_ones, distances, element_bits, values_of

CountArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TensorOverlap:
    """Of K updates of a tensor of the base, in numbers of elements.

    Attributes:
        changed: [K] changed by each.
        both: [K, K] changed by both.
        same_direction: [K, K] of those, moved up by both or down by both.
        core: changed by all.
        since_last: [K] that differ from the update before (the first: from the base).
        ever: [K] changed by this update or one before.
        back: [K] changed by one before, and now as in the base.
        both_by_size, core_by_size: what both and core would be by chance among weights of the same size; both's diagonal means nothing.
    """

    scope: str
    name: str
    elements: int
    changed: CountArray
    both: CountArray
    same_direction: CountArray
    core: int
    since_last: CountArray
    ever: CountArray
    back: CountArray
    both_by_size: npt.NDArray[np.float64]
    core_by_size: float


@dataclass(frozen=True, slots=True)
class PairOverlap:
    """Two updates, numbers ``first`` and ``second`` of the list.

    Attributes:
        o1, o2: share of the first's (second's) changes that the other shares (section 5); 0 where there are none.
        random_o1, random_o2: 1 - s2 and 1 - s1, what o1 and o2 would be at random (appendix E).
        jaccard: |I1 n I2| / |I1 u I2|.
        expected_jaccard: with as many changes in each tensor, but at random within it:
            sum n p1 p2 / sum n (p1 + p2 - p1 p2) over the tensors, with p the share that changed.
        o1_by_size, o2_by_size, jaccard_by_size: the same at random among the weights of the same tensor and binary exponent.
        same_direction: of the changes of both, the share that moved the same way.
    """

    first: int
    second: int
    o1: float
    o2: float
    random_o1: float
    random_o2: float
    jaccard: float
    expected_jaccard: float
    o1_by_size: float
    o2_by_size: float
    jaccard_by_size: float
    same_direction: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; null where there is nothing to share."""
        one, two = self.random_o2 > 0, self.random_o1 > 0  # whether there are changes
        there = {"o1": one, "o1_by_size": one, "o2": two, "o2_by_size": two, "same_direction": self.o1 > 0}
        there |= dict.fromkeys(("jaccard", "expected_jaccard", "jaccard_by_size"), one or two)
        return {key: value if there.get(key, True) else None for key, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class StepRow:
    """One checkpoint of a run, in shares of all: equal to the base, changed since the one before, ever changed, changed and back."""

    name: str
    sparsity: float
    since_last: float
    ever: float
    back: float


@dataclass(frozen=True, slots=True)
class OverlapResult:
    """What :func:`overlap` found. ``left_out``: tensors that not all of the updates and the base have with one dtype and shape."""

    base: str
    names: tuple[str, ...]
    atol: float
    tensors: tuple[TensorOverlap, ...]
    left_out: tuple[str, ...]
    elements: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "elements", sum(t.elements for t in self.tensors))

    @property
    def core(self) -> int:
        """Elements that all updates changed."""
        return sum(t.core for t in self.tensors)

    def pair(self, first: int, second: int, tensors: Sequence[TensorOverlap] | None = None) -> PairOverlap:
        """Figures of two updates, over all tensors or some."""
        rows = self.tensors if tensors is None else tensors
        n = sum(t.elements for t in rows)
        a, b = (sum(int(t.changed[k]) for t in rows) for k in (first, second))
        both, same = (sum(int(getattr(t, key)[first, second]) for t in rows) for key in ("both", "same_direction"))
        by_size = sum(float(t.both_by_size[first, second]) for t in rows)
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
            same_direction=ratio(same, both),
        )

    @property
    def pairs(self) -> tuple[PairOverlap, ...]:
        """Figures of every two updates."""
        if not self.tensors:
            return ()
        return tuple(self.pair(i, j) for i in range(len(self.names)) for j in range(i + 1, len(self.names)))

    @property
    def steps(self) -> tuple[StepRow, ...]:
        """The updates as checkpoints of one run, in order (the paper's figures 2, 5, 6, 7)."""
        sums = {key: sum((getattr(t, key) for t in self.tensors), np.zeros(len(self.names), np.int64)) for key in STEPS}
        shares = [[ratio(int(n), self.elements) for n in sums[key]] for key in STEPS]
        return tuple(StepRow(name, 1 - changed, *rest) for name, changed, *rest in zip(self.names, *shares, strict=True))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; per tensor the counts."""
        rows = [{key: v.tolist() if isinstance(v, np.ndarray) else v for key, v in asdict(t).items()} for t in self.tensors]
        return {
            "schema": "ckptdiff-overlap/1",
            "base": self.base,
            "names": list(self.names),
            "atol": self.atol,
            "elements": self.elements,
            "core": self.core,
            "pairs": [pair.to_json() for pair in self.pairs],
            "steps": [asdict(step) for step in self.steps],
            "tensors": rows,
            "left_out": list(self.left_out),
        }


STEPS = ("changed", "since_last", "ever", "back")


def ratio(part: float, whole: float) -> float:
    """part / whole, 0 if there is nothing."""
    return part / whole if whole else 0.0


def gather(group: Sequence[Pair], blocks: Iterator[list[CountArray]]) -> TensorOverlap:
    sums = [np.sum(part, axis=0) for part in zip(*(next(blocks) for _ in group[0].starts), strict=True)]
    for pair in group:
        pair.finish()
    elements, changed, both, same, core, last, ever, back, sizes = sums
    counts = (int(elements), changed, both, same, int(core), last, ever, back)
    return TensorOverlap(group[0].old.scope, group[0].old.name, *counts, *_by_size(sizes))


def _by_size(sizes: CountArray) -> tuple[npt.NDArray[np.float64], float]:
    """Expected numbers of elements that two, and that all updates change, from a row of elements and one of changes of each update."""
    elements = np.maximum(sizes[0], 1)
    shares = sizes[1:] / elements
    return (shares * elements) @ shares.T, float((shares.prod(axis=0) * elements).sum())


def count_block(group: Sequence[Pair], start: int, atol: float) -> list[CountArray]:
    """Elements, then the counts of :class:`TensorOverlap` in its order, of one block."""
    dtype = "F32" if group[0].dtype == "C64" else group[0].dtype  # a complex number counts as its two parts
    masks, ups, last, sizes = [], [], [], []
    before = None
    for pair in group:
        old, new = (element_bits(part, dtype) for part in pair.read(start, start + pair.step))
        mask = old != new
        if atol:
            mask = ~_near(old, new, dtype, atol)
        sizes += [_sizes(old, dtype)] * (before is None) + [_sizes(old[mask], dtype)]
        masks.append(np.packbits(mask))
        ups.append(np.packbits(mask & _greater(new, old, dtype)))
        previous = old if before is None else before
        last.append(int(np.count_nonzero(~_near(previous, new, dtype, atol) if atol else previous != new)))
        before = new.copy()
    changed, up = np.array(masks), np.array(ups)
    both = [[count_ones(a & b) for b in changed] for a in changed]
    same = [[count_ones(a & b & ~(u ^ v)) for b, v in zip(changed, up, strict=True)] for a, u in zip(changed, up, strict=True)]
    ever = np.bitwise_or.accumulate(changed, axis=0)
    core = count_ones(np.bitwise_and.reduce(changed, axis=0))
    steps = [count_ones(e) for e in ever], [count_ones(e & ~c) for e, c in zip(ever, changed, strict=True)]
    counts = (sizes[0].sum(), [row[k] for k, row in enumerate(both)], both, same, core, last, *steps, sizes)
    return [np.array(count, np.int64) for count in counts]


def _sizes(bits: npt.NDArray[Any], dtype: str) -> CountArray:
    """How many elements have each binary exponent; integers count as of one."""
    shift, mask, _ = EXPONENT.get(dtype, (0, 0, 0))
    return np.bincount(((bits >> shift) & mask).astype(np.intp), minlength=mask + 1)


def _near(a: npt.NDArray[Any], b: npt.NDArray[Any], dtype: str, atol: float) -> npt.NDArray[np.bool_]:
    return np.asarray((a == b) | (distances(a, b, dtype) <= atol))


def _greater(a: npt.NDArray[Any], b: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        return np.asarray(values_of(a, dtype) > values_of(b, dtype))

"""What the numbers of an overlap mean, in plain words: the headline, the key figures, the captions of the charts, the definitions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ckptdiff.analysis.overlap import OverlapResult, PairOverlap, TensorOverlap, ratio
from ckptdiff.pages.report_prose import PAPER
from ckptdiff.units import count_in_words, percent, short_number

MIN_EXCESS = 0.1
"""An overlap is said to exceed chance (or to stay below it) if it is off by more than this share of what chance gives, or of what that
lacks to 100 %, whichever is less."""
CHANCE_BY_SIZE = "chance among weights of the same size"


def title(result: OverlapResult) -> str:
    """The names of the updates (of the first three, where there are more) and of the base."""
    more = f" and {len(result.names) - 3} more" if len(result.names) > 3 else ""
    return f"{', '.join(result.names[:3])}{more}, from {result.base}"


def changed_shares(result: OverlapResult) -> list[float]:
    """Share of all elements that each update changed."""
    return [1 - step.sparsity for step in result.steps]


def span(values: Sequence[float]) -> str:
    """The smallest to the largest of some shares."""
    low, high = percent(min(values)), percent(max(values))
    return low if low == high else f"{low} to {high}"


def smaller_first(result: OverlapResult, tensors: Sequence[TensorOverlap] | None = None) -> list[PairOverlap]:
    """Every two updates that both changed something, the one that changed less first; counted over all tensors or some."""
    count = len(result.names) if result.tensors else 0
    pairs = (result.pair(i, j, tensors) for i in range(count) for j in range(i + 1, count))
    turned = (p if p.random_o2 <= p.random_o1 else result.pair(p.second, p.first, tensors) for p in pairs)
    return [p for p in turned if p.random_o2]


def headline(result: OverlapResult, series: bool) -> str:
    """What the updates share, or how a run's update grew, in one sentence."""
    if not result.elements:
        return "There are no weights to compare."
    shares = changed_shares(result)
    if not any(shares):
        same = f"within {short_number(result.atol)}" if result.atol else "bit for bit"
        return f"No weight changed: all {count_in_words(result.elements)} are the same, {same}."
    if len(shares) == 1:
        return f"{percent(shares[0])} of {count_in_words(result.elements)} weights changed."
    if series:
        return series_words(result)
    return pair_words(result) if len(shares) == 2 else many_words(result)


def series_words(result: OverlapResult) -> str:
    """The first and the last checkpoint, and what changed on the way."""
    first, last = (percent(1 - result.steps[k].sparsity) for k in (0, -1))
    end = result.steps[-1]
    return (
        f"Over {len(result.steps)} checkpoints the share of weights that differ from the base went from {first} to {last}; "
        f"{percent(end.ever)} changed at some checkpoint, and {percent(end.back)} changed and are back at their values in the base."
    )


def pair_words(result: OverlapResult) -> str:
    """How much of the update that changed less lies in the other one, and whether chance would give as much."""
    shares, pairs = changed_shares(result), smaller_first(result)
    if not pairs:
        idle = 0 if not shares[0] else 1
        return f"{result.names[idle]} changed no weight, {result.names[1 - idle]} {percent(shares[1 - idle])}."
    pair = pairs[0]
    less, more = (f"{result.names[k]} changed ({percent(shares[k])} of all)" for k in (pair.first, pair.second))
    same = f"; {percent(pair.same_direction)} of these moved the same way" if pair.o1 else ""
    return f"Of the weights that {less}, {more.replace(' changed', '', 1)} changed {percent(pair.o1)} too, {verdict(result, pairs)}{same}."


def many_words(result: OverlapResult) -> str:
    """How much of the update that changed less lies in the other one, from the least to the most over all pairs."""
    pairs = smaller_first(result)
    text = f"{len(result.names)} updates changed {span(changed_shares(result))} of {count_in_words(result.elements)} weights"
    if not pairs:
        return f"{text}; no two of them changed any."
    same = [p.same_direction for p in pairs if p.o1]
    moved = f"; {span(same)} of what both changed moved the same way" if same else ""
    return (
        f"{text}; of every two, the one that changed less shares {span([p.o1 for p in pairs])} of its changes, "
        f"{verdict(result, pairs)}{moved}."
    )


def verdict(result: OverlapResult, pairs: Sequence[PairOverlap]) -> str:
    """How overlaps compare with what chance gives among weights of the same size, and among all weights."""
    shares = changed_shares(result)
    sides = [beyond_chance(p.o1, p.o1_by_size, shares[p.first] * result.elements) for p in pairs]
    chance = f"({span([p.o1_by_size for p in pairs])}; among all weights: {span([p.random_o1 for p in pairs])})"
    if len(set(sides)) == 1:
        return f"{('about what', 'more than', 'less than')[sides[0]]} {CHANCE_BY_SIZE} gives {chance}"
    return f"for {sides.count(1)} of {len(sides)} pairs more than {CHANCE_BY_SIZE} gives {chance}"


def beyond_chance(overlap: float, chance: float, count: float) -> int:
    """1 for an overlap of more than chance gives, -1 for one of less, 0 for one that chance explains.

    Chance explains what is within :data:`MIN_EXCESS`, or within four standard deviations.

    Args:
        overlap, chance: the share of one update's changes that the other one made too, and the share that chance gives.
        count: number of that update's changes.
    """
    margin = max(MIN_EXCESS * min(chance, 1 - chance), 4 * math.sqrt(max(chance * (1 - chance), 0) / count))
    return (overlap - chance > margin) - (chance - overlap > margin)


def key_figures(result: OverlapResult, series: bool) -> list[tuple[str, str, str]]:
    """Name, value and a short explanation of each key figure."""
    if not result.elements:
        return []
    figures = [("weights compared", count_in_words(result.elements), f"in {len(result.tensors):,} tensors")]
    if len(result.names) < 2:
        return [*figures, ("changed", percent(changed_shares(result)[0]), "of all weights")]
    if series:
        end = result.steps[-1]
        figures.append(("sparsity at the end", percent(end.sparsity), "weights equal to the base"))
        figures.append(("ever changed", percent(end.ever), "at some checkpoint"))
        figures.append(("changed and back", percent(end.back), "at the last checkpoint"))
    by_size = ratio(sum(t.core_by_size for t in result.tensors), result.elements)
    figures.append(("changed by all", percent(result.core / result.elements), f"of all weights; by chance, by size: {percent(by_size)}"))
    pairs = smaller_first(result)
    if pairs:
        figures.append(("shared by the smaller", span([p.o1 for p in pairs]), "of the changes of the update that changed less"))
        figures.append(("… by chance, by size", span([p.o1_by_size for p in pairs]), CHANCE_BY_SIZE))
        figures.append(("… by chance among all", span([p.random_o1 for p in pairs]), "the paper's chance, 1 − s₂"))
        figures.append(("Jaccard", span([p.jaccard for p in pairs]), f"by chance, by size: {span([p.jaccard_by_size for p in pairs])}"))
        figures.append(("same direction", span([p.same_direction for p in pairs]), "of what both changed; a coin gives 50 %"))
    return figures


WHY_BY_SIZE = "Small weights have fine steps in a format such as BF16, so that any training moves them, while large ones stay as they are"

CAPTIONS = {
    "o1": f"Share of the row's changes that the column made too (o1 of {PAPER}, section 5). The last row is what chance gives "
    "among all weights. A blank cell is an update against itself. A small update lies in a large one more easily than the other way round.",
    "o1-by-size": f"The same, had each update picked its weights at random among those of the same size. {WHY_BY_SIZE}: where this picture "
    "is like that of the shared changes, they need no other explanation.",
    "jaccard": "Of the weights that at least one of the two changed, the share that both changed. 100 % means the same weights. It is "
    "small where one update changed many more weights than the other, even if these include all that the other changed.",
    "jaccard-random": "The picture to compare with: as many changes in each tensor, but at random among all its weights. The colours are "
    "those of the picture of the Jaccard index.",
    "jaccard-by-size": "The stricter comparison: at random among the weights of the same tensor and size. Only an overlap that exceeds "
    "this says that the updates chose the same weights.",
    "direction": "Of the weights that both changed, the share that moved the same way: both up, or both down. Independent updates agree "
    "on about half.",
    "core": "Where the weights lie that all updates changed. An even picture says that no layer or kind of matrix is singled out.",
    "sparsity": f"Share of weights that are equal to the base at each checkpoint ({PAPER}'s update sparsity along a run). It falls while "
    "training goes on, and levels off where changes are undone as fast as they are made.",
    "growth": "“Differs from the base” and “changed and back” add up to “ever changed”. Where many changed back, much of the training "
    "went to and fro; where few did, weights that have moved stay moved. “Changed since the last” is how much one checkpoint differs from "
    "the one before.",
}
"""What each chart's numbers mean, and what to expect, by the chart's name."""


def definitions(result: OverlapResult) -> list[tuple[str, str]]:
    """Each figure with its formula and source."""
    differ = f"|d| > {short_number(result.atol)}" if result.atol else "bits differ from the base's"
    return [
        (
            "Changed",
            f"Weights whose {differ}. I₁, I₂: the sets that two updates changed; s₁, s₂: the shares of all weights that they left "
            "unchanged.",
        ),
        ("o1, o2", f"|I₁ ∩ I₂| / |I₁| and |I₁ ∩ I₂| / |I₂| ({PAPER}, section 5)."),
        (
            "By chance among all weights",
            f"o1: 1 − s₂, o2: 1 − s₁ ({PAPER}, appendix E). For the Jaccard index it is taken within each tensor, then added up.",
        ),
        (
            "By size",
            "What to expect of independent updates that each change as many weights of each binary exponent of the base's value, in each "
            "tensor, as they did: |I₁ ∩ I₂| = Σ c₁ c₂ / n over tensors and exponents, with n the number of weights there, and c₁ and c₂ "
            "the numbers of changed ones.",
        ),
        (
            "About, more, less",
            "More (less) than chance gives: off by more than a tenth of it, or of what it lacks to 100 %, and by more than four standard "
            "deviations.",
        ),
        ("Jaccard index", "|I₁ ∩ I₂| / |I₁ ∪ I₂|."),
        ("Same direction", "Share of I₁ ∩ I₂ that grew in both, or did not grow in either."),
        (
            "Since the last, ever, back",
            "Weights that differ from the checkpoint before; that changed at this checkpoint or an earlier one; that changed at an earlier "
            "one and are equal to the base now.",
        ),
    ]

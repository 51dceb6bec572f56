"""Captions of an overlap's charts: what each shows, and what it says of these updates, computed from the numbers that it draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ckptdiff.analysis.overlap import OverlapResult, PairOverlap
from ckptdiff.pages.labels import span
from ckptdiff.pages.overlap_charts import core_cells
from ckptdiff.pages.overlap_prose import WHY_BY_SIZE, sides_of_chance, smaller_first
from ckptdiff.pages.report_captions import EVEN, range_words
from ckptdiff.pages.report_prose import PAPER
from ckptdiff.units import percent


def captions(result: OverlapResult) -> dict[str, str]:
    """What each chart of the overlap shows, by the chart's name."""
    pairs = smaller_first(result)
    return {**pair_captions(result, pairs), "core": core_caption(result), **series_captions(result)}


def values(pairs: Sequence[PairOverlap], *of: Callable[[PairOverlap], float]) -> str:
    """The smallest to the largest of some figures over all pairs, as a sentence's end; empty without pairs."""
    return f": {span([figure(p) for p in pairs for figure in of])}" if pairs else ""


def pair_captions(result: OverlapResult, pairs: Sequence[PairOverlap]) -> dict[str, str]:
    """Of the maps of every two updates."""
    more = sides_of_chance(pairs).count(1)
    chance = f" {'None' if not more else f'{more:,}'} of {len(pairs):,} pairs share more than that." if pairs else ""
    same = [p.same_direction for p in pairs if p.o1]
    apart = "" if not same else " More than a coin gives." if min(same) > 0.5 else " Not always more than a coin gives."
    return {
        "o1": f"Share of the row's changes that the column made too (o1 of {PAPER}, section 5)"
        f"{values(pairs, lambda p: p.o1, lambda p: p.o2)}. The last row is the weaker chance, among all weights. "
        "A blank cell is an update against itself.",
        "o1-by-size": "The same, had each update picked its weights at random among those of the same size in the same tensor"
        f"{values(pairs, lambda p: p.o1_by_size, lambda p: p.o2_by_size)}. {WHY_BY_SIZE}.{chance}",
        "jaccard": "Of the weights that at least one of the two changed, the share that both changed"
        f"{values(pairs, lambda p: p.jaccard)}. It is small where one update changed many more weights than the other, even if these "
        "include all that the other changed.",
        "jaccard-random": "As many changes in each tensor, but at random among all its weights"
        f"{values(pairs, lambda p: p.expected_jaccard)}. The colours are those of the Jaccard index.",
        "jaccard-by-size": "At random among the weights of the same tensor and size"
        f"{values(pairs, lambda p: p.jaccard_by_size)}. Only an overlap that exceeds this says that the updates chose the same weights. "
        "The colours are those of the Jaccard index.",
        "direction": "Of the weights that both changed, the share that moved the same way, up or down"
        f"{': ' + span(same) if same else ''}; a coin gives 50 %.{apart}",
    }


def core_caption(result: OverlapResult) -> str:
    """Of the map of what all updates changed."""
    cells = [cell for cell in core_cells(result) if cell["changed"]]
    text = "Share of the weights that all updates changed, by kind of tensor and layer."
    if not cells:
        return text
    shares = [cell["value"] for cell in cells]
    even = "much the same" if max(shares) <= EVEN * min(shares) else "not the same"
    return f"{text} Where any did, it is {even}: {range_words(cells)}."


def series_captions(result: OverlapResult) -> dict[str, str]:
    """Of the lines along a run."""
    if not result.steps:
        return {}
    first, last = result.steps[0], result.steps[-1]
    sparsity = [step.sparsity for step in result.steps]
    way = next(
        (word for word, ordered in (("falls", sorted(sparsity, reverse=True)), ("rises", sorted(sparsity))) if sparsity == ordered), "goes"
    )
    back = (
        f"{percent(last.back / last.ever)} of what ever changed is back at the base's value at the end" if last.ever else "nothing changed"
    )
    return {
        "sparsity": f"Share of weights that are equal to the base at each checkpoint ({PAPER}'s update sparsity along a run). It {way} "
        f"from {percent(first.sparsity)} to {percent(last.sparsity)}.",
        "growth": "What differs from the base, and what changed and is back, add up to what has ever changed: "
        f"{percent(1 - last.sparsity)} and {percent(last.back)} at the end; {back}. “Since the last one” is how much a checkpoint differs "
        "from the one before it, the first from the base.",
    }

"""What the numbers of an overlap mean, in plain words: the headline, the key figures, the captions of the charts, the definitions."""

from __future__ import annotations

from collections.abc import Sequence

from ckptdiff.analysis.overlap import OverlapResult, PairOverlap, TensorOverlap, ratio
from ckptdiff.pages.labels import number_or_power, span
from ckptdiff.pages.report_prose import PAPER
from ckptdiff.units import count_in_words, percent, three_digits

MOST_DEVIATIONS = 4
"""Standard deviations of chance by size within which it explains an overlap."""
CHANCE_BY_SIZE = "chance among weights of the same size"


def title(result: OverlapResult) -> str:
    """The names of the updates (of the first three, where there are more) and of the base."""
    more = f" and {len(result.names) - 3} more" if len(result.names) > 3 else ""
    return f"{', '.join(result.names[:3])}{more}, from {result.base}"


def changed_shares(result: OverlapResult) -> list[float]:
    """Share of all elements that each update changed."""
    return [1 - step.sparsity for step in result.steps]


def smaller_first(result: OverlapResult, tensors: Sequence[TensorOverlap] | None = None) -> list[PairOverlap]:
    """Every two updates that both changed something, the one that changed less first; counted over all tensors or some."""
    count = len(result.names) if result.tensors else 0
    pairs = (result.pair(i, j, tensors) for i in range(count) for j in range(i + 1, count))
    turned = (p if p.random_o2 <= p.random_o1 else result.pair(p.second, p.first, tensors) for p in pairs)
    return [p for p in turned if p.random_o2]


def headline(result: OverlapResult, series: bool) -> str:
    """The one thing that the updates share beyond chance, or how a run's update grew, in one short sentence."""
    if not result.elements:
        return "There are no weights to compare."
    shares, pairs = changed_shares(result), smaller_first(result)
    if not any(shares):
        same = f"within {number_or_power(result.atol)}" if result.atol else "bit for bit"
        return f"No weight changed: all {count_in_words(result.elements)} are the same, {same}."
    if len(shares) == 1:
        return f"{percent(shares[0])} of {count_in_words(result.elements)} weights changed."
    if series:
        return f"Over {len(shares)} checkpoints, the share of changed weights went from {percent(shares[0])} to {percent(shares[-1])}."
    if not pairs:
        return "Only one of the updates changed any weight, so that they share none."
    return chance_words(result, pairs)


def chance_words(result: OverlapResult, pairs: Sequence[PairOverlap]) -> str:
    """Whether the updates share more changes than chance among weights of the same size gives."""
    sides, left = sides_of_chance(pairs), excess_words(pairs)
    more, who = sides.count(1), "The two updates" if len(result.names) == 2 else f"The {len(result.names)} updates"
    if more == len(sides):
        return f"{who} share more changes than sizes explain{left}."
    if more:
        return f"{more} of {len(sides)} pairs of updates share more than sizes explain{left}."
    if sides.count(-1) == len(sides):
        return f"{who} share fewer changes than sizes explain{left}."
    return f"{who} share no more changes than sizes explain{left}."


def excess_words(pairs: Sequence[PairOverlap]) -> str:
    """The excess of the updates that changed less, and z, of several the largest; empty where sizes leave nothing open."""
    known = [(p.o1_excess, p.z) for p in pairs if p.o1_excess is not None and p.z is not None]
    if not known:
        return ""
    up_to, most = "up to " * (len(known) > 1), max(z for _, z in known)
    return f": excess {up_to}{percent(max(share for share, _ in known))}, z {up_to or '= '}{three_digits(most)}"


def findings(result: OverlapResult, series: bool) -> str:
    """The figures behind the headline, in a few sentences; empty where there are none."""
    shares, pairs = changed_shares(result), smaller_first(result)
    if not result.elements or not any(shares) or len(shares) == 1:
        return ""
    sentences = [series_words(result)] if series else [f"They changed {span(shares)} of {count_in_words(result.elements)} weights."]
    sentences += [f"{name} changed none." for name, share in zip(result.names, shares, strict=True) if not share]
    if pairs:
        each = "the update" if len(result.names) == 2 else "of every two updates the one"
        sentences.append(f"{each[0].upper()}{each[1:]} that changed less shares {verdict(pairs)}.")
        same = [p.same_direction for p in pairs if p.o1]
        sentences += [f"{span(same)} of what both changed moved the same way (a coin gives 50 %)."] if same else []
    return " ".join(sentences)


def series_words(result: OverlapResult) -> str:
    """What changed on the way from the first to the last checkpoint."""
    end = result.steps[-1]
    ever, back = percent(end.ever), percent(end.back)
    return f"{ever} of {count_in_words(result.elements)} weights changed at some checkpoint; {back} are back at the base's value at last."


def sides_of_chance(pairs: Sequence[PairOverlap]) -> list[int]:
    """For each pair, whether it shares more (1) or less (-1) than chance among weights of the same size gives."""
    return [0 if p.z is None else (p.z > MOST_DEVIATIONS) - (p.z < -MOST_DEVIATIONS) for p in pairs]


def verdict(pairs: Sequence[PairOverlap]) -> str:
    """How much of its changes the update that changed less shares, and what chance gives by size, and, as the weaker one, among all."""
    sides = sides_of_chance(pairs)
    if len(set(sides)) == 1:
        word = f"{('about what', 'more than', 'less than')[sides[0]]} {CHANCE_BY_SIZE} gives"
    else:
        word = f"for {sides.count(1)} of {len(sides)} pairs more than {CHANCE_BY_SIZE} gives"
    by_size, among_all = (span([getattr(p, field) for p in pairs]) for field in ("o1_by_size", "random_o1"))
    return f"{span([p.o1 for p in pairs])} of its changes, {word} ({by_size}; the weaker chance, among all weights: {among_all})"


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
        known = [(p.o1_excess, p.z) for p in pairs if p.o1_excess is not None and p.z is not None]
        if known:
            deviations = [three_digits(choose(z for _, z in known)) for choose in (min, max)]
            text = f"(o1 − size) / (1 − size); z = {' to '.join(dict.fromkeys(deviations))}, in deviations of chance by size"
            figures.append(("excess over size", span([share for share, _ in known]), text))
        figures.append(("… by chance among all", span([p.random_o1 for p in pairs]), "the weaker chance, of the paper: 1 − s₂"))
        figures.append(("Jaccard", span([p.jaccard for p in pairs]), f"by chance, by size: {span([p.jaccard_by_size for p in pairs])}"))
        figures.append(("same direction", span([p.same_direction for p in pairs]), "of what both changed; a coin gives 50 %"))
    return figures


WHY_BY_SIZE = "Small weights have fine steps in a format such as BF16, so that any training moves them, while large ones stay as they are"


def definitions(result: OverlapResult) -> list[tuple[str, str]]:
    """Each figure with its formula and source."""
    differ = f"|d| > {number_or_power(result.atol)}" if result.atol else "bits differ from the base's"
    return [
        (
            "Changed",
            f"Weights whose {differ}. I₁, I₂: the sets that two updates changed; s₁, s₂: the shares of all weights that they left "
            "unchanged.",
        ),
        ("o1, o2", f"|I₁ ∩ I₂| / |I₁| and |I₁ ∩ I₂| / |I₂| ({PAPER}, section 5)."),
        (
            "By chance among all weights",
            "The weaker chance, as small weights change in any update. "
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
            "More (less) than chance by size: |z| > 4, with z = (|I₁ ∩ I₂| − Σ c₁ c₂ / n) / √Σ c₁ c₂ (n − c₁)(n − c₂) / (n² (n − 1)): "
            "the deviation of the hypergeometric distribution within each tensor and exponent.",
        ),
        (
            "Excess",
            "(o1 − size) / (1 − size), with size what chance by size gives for o1: the share of what the sizes leave open that the updates "
            "share all the same.",
        ),
        ("Jaccard index", "|I₁ ∩ I₂| / |I₁ ∪ I₂|."),
        ("Same direction", "Share of I₁ ∩ I₂ that grew in both, or did not grow in either."),
        (
            "Since the last, ever, back",
            "Weights that differ from the checkpoint before; that changed at this checkpoint or an earlier one; that changed at an earlier "
            "one and are equal to the base now.",
        ),
    ]

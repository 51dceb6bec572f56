"""What the numbers of a report mean, in plain words: the headline, the key figures, the captions of the charts, the definitions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ckptdiff.analysis.modules import APART, packing
from ckptdiff.analysis.sparsity import EXPONENT_FIELDS
from ckptdiff.pages.chart_data import JsonReport, changed_count, changed_share
from ckptdiff.pages.labels import number_or_power
from ckptdiff.pages.null_prose import (
    interval_words,
    null_definitions,
    null_findings,
    null_headline,
    null_row,
    size_words,
    update_words,
)
from ckptdiff.units import count_in_words, percent, percent_of, three_digits

PAPER = "arXiv 2505.11711"
NEARLY_FULL_RANK, LOW_RANK = 0.95, 0.5
"""Shares of full rank from which an update is said to have nearly full rank, and below which it is said to have low rank."""
MAX_SPARSE_SHARE = 0.5
"""Share of changed weights above which an update is everywhere, so that the headline does not say where it lies."""


def matrices_or_rest(report: JsonReport, rest: bool) -> dict[str, int]:
    """Elements and changed elements of the matrices, or of norms, biases and embeddings."""
    modules = [m for m in report["modules"] if (m["module"] in APART) == rest]
    return {"elements": sum(m["elements"] for m in modules), "changed": sum(changed_count(m) for m in modules)}


def headline(report: JsonReport) -> str:
    """What the update is beyond what the weights' sizes explain, in one sentence; without nulls, how much training changed."""
    return null_headline(report) or amount(report)


def amount(report: JsonReport) -> str:
    """How much training changed, in one short sentence."""
    totals = report["totals"]
    elements, count = totals["elements"], changed_count(totals)
    if not elements:
        return "There are no weights to compare."
    if not count:
        return f"No weight changed: all {count_in_words(elements)} are the same, bit for bit."
    what = "elements" if packed_words(report) else "weights"
    share = percent_of(count, elements)
    share = f"{count:,}" if share.startswith("<") else share  # of so few the number says more
    return f"{share} of {count_in_words(elements)} {what} changed{step_words(report)}."


def findings(report: JsonReport) -> str:
    """What else is to say of the update, in a few sentences; empty where there is none."""
    if not changed_count(report["totals"]):
        return ""
    shape = " and ".join(filter(None, (spread_words(report), rank_words(report))))
    sentences = (norm_words(report), f"the update is {shape}" if shape else "", packed_words(report), compared_words(report))
    plain = [f"{sentence[0].upper()}{sentence[1:]}." for sentence in sentences if sentence]
    first = [amount(report)] if null_headline(report) else []
    sized = [*null_findings(report), *first, size_words(report), update_words(report)]
    return " ".join(filter(None, [*sized, *plain]))


def packed_words(report: JsonReport) -> str:
    """Which tensors hold packed numbers, of which an element is more than one value."""
    found = Counter(filter(None, (packing(tensor["name"], tensor["dtype"]) for tensor in report["tensors"])))
    return "; ".join(f"{count:,} {'tensor' if count == 1 else 'tensors'} of {words}" for words, count in found.items())


def compared_words(report: JsonReport) -> str:
    """What was compared with base tensors of another dtype or of other names; empty if nothing was."""
    casts = Counter(tensor["base_dtype"] for tensor in report["tensors"] if tensor.get("base_dtype"))
    parts = [f"{count:,} tensors were compared after a cast from {dtype}" for dtype, count in casts.items()]
    others = sum(bool(tensor.get("bases")) for tensor in report["tensors"])
    parts += [f"{others:,} with base tensors of other names"] if others else []
    return "; ".join(parts)


def step_words(report: JsonReport) -> str:
    """How far most changed weights moved."""
    count, one = changed_count(report["totals"]), report["totals"]["one_ulp"]
    if one == count:
        return ", all by one ulp"
    if one >= 0.95 * count:
        return ", nearly all by one ulp"
    if one > 0.5 * count:
        return ", most by one ulp"
    median = median_distance(report)
    return f",{' half of them' * (count > 1)} by {median:,} ulps or more" if median else ""


def median_distance(report: JsonReport) -> int | None:
    """Lower end, in ulps, of the histogram's bin in which the median distance lies."""
    bins = sorted((b for b in report["moves"]["ulp"] if b["count"]), key=lambda b: b["from"])
    left = sum(b["count"] for b in bins) / 2
    for row in bins:
        left -= row["count"]
        if left <= 0:
            return int(row["from"])
    return None


def norm_words(report: JsonReport) -> str:
    """How much of the layer norms changed."""
    norms = [m for m in report["modules"] if m["module"] == "norm" and m["elements"]]
    if not norms:
        return ""
    count, part = changed_count(norms[0]), changed_share(norms[0])
    if not count:
        return "layer norms did not change"
    return f"{percent(part)} of the layer norms' weights changed"


def concentrated(tensor: dict[str, Any]) -> bool | None:
    """Whether the changes of a matrix lie in some of its rows or columns; None for what is no matrix or did not change.

    They do if the 0.95 quantile of the rows' shares of changes is more than three times what independent changes give, or if one row in
    twenty is empty where independent changes would leave none empty. The same goes for columns.
    """
    if len(tensor["shape"]) != 2 or not changed_count(tensor) or not tensor["rows"] or not tensor["columns"]:
        return None
    part = changed_share(tensor)
    for quantiles, length in ((tensor["rows"], tensor["shape"][1]), (tensor["columns"], tensor["shape"][0])):
        expected = part + 1.645 * math.sqrt(part * (1 - part) / length) + 1 / length
        if quantiles[5] > 3 * expected or (quantiles[1] == 0 and (1 - part) ** length < 0.01):
            return True
    return False


def spread_words(report: JsonReport) -> str:
    """Whether a sparse update is scattered, as the matrices that hold most of the changed elements say."""
    if changed_share(report["totals"]) > MAX_SPARSE_SHARE:
        return ""
    sums = {True: 0, False: 0}
    for tensor in report["tensors"]:
        in_few_lines = concentrated(tensor)
        if in_few_lines is not None:
            sums[in_few_lines] += changed_count(tensor)
    if not any(sums.values()):
        return ""
    part = sums[True] / (sums[True] + sums[False])
    if part >= 0.5:
        return "concentrated in some rows or columns"
    return "scattered" if part <= 0.1 else "mostly scattered"


def rank_words(report: JsonReport) -> str:
    """The rank of the update, and where it is not full, that of a random update too."""
    rank = report["rank"]
    if not rank or rank["rank_share"] is None or rank["random_rank_share"] is None:
        return ""
    mean, chance = rank["rank_share"], rank["random_rank_share"]
    if mean >= NEARLY_FULL_RANK:
        return "of full rank" if mean == 1 else "of nearly full rank"
    if mean >= 0.9 * chance:
        return f"of about the rank that so few changes can have ({percent(mean)} of full rank; a random one: {percent(chance)})"
    word = "low rank" if mean < LOW_RANK else "reduced rank"
    return f"of {word} ({percent(mean)} of full rank; a random one: {percent(chance)})"


def sample_words(sample: Iterable[Mapping[str, Any]]) -> str:
    """Whose rank was taken: how many matrices of each kind of module, and, where these are not all, from which layers."""
    rows = list(sample)
    kinds = []
    for row in rows:
        layers = f" (layer{'s' * (len(row['layers']) > 1)} {', '.join(map(str, row['layers']))})" if row["layers"] else ""
        part = "all" if row["taken"] == row["matrices"] else f"{row['taken']:,} of"
        kinds.append(f"{row['module']} {part} {row['matrices']:,}{layers if part != 'all' else ''}")
    taken, matrices = (sum(row[key] for row in rows) for key in ("taken", "matrices"))
    return f"{taken:,} of {matrices:,} matrices: {', '.join(kinds)}"


def key_figures(report: JsonReport) -> list[tuple[str, str, str]]:
    """Name, value and a short explanation of each key figure."""
    totals, count = report["totals"], changed_count(report["totals"])
    elements = totals["elements"]
    if not elements:
        return []
    named = {m["module"] for m in report["modules"]} != {"other"}
    matrices, rest = matrices_or_rest(report, rest=False), matrices_or_rest(report, rest=True)
    tolerance = number_or_power(report["settings"]["atol"])
    as_paper = ", as in the paper" if report["settings"]["atol"] == 1e-5 else ""
    figures = [("update sparsity", percent(totals["bit_identical"] / elements), "weights with the same bits")]
    figures.append((f"sparsity at {tolerance}", percent(totals["within_atol"] / elements), f"|d| at most {tolerance}{as_paper}"))
    for name, sums in (("matrices changed", matrices), ("norms, biases, embeddings", rest)):
        if sums["elements"] and named:
            value = percent(sums["changed"] / sums["elements"])
            figures.append((name, value, f"{count_in_words(sums['changed'])} of {count_in_words(sums['elements'])}"))
    if count:
        figures.append(("moved one ulp", percent(totals["one_ulp"] / count), "of the changed weights"))
        figures.append(("grew", percent(totals["up"] / count), f"of the changed weights; {percent(totals['down'] / count)} fell"))
    rank = report["rank"]
    if rank and rank["matrices"]:
        chance = percent(rank["random_rank_share"])
        figures.append(("rank of the update", percent(rank["rank_share"]), f"of full rank; a random one as sparse: {chance}"))
        figures.append(("effective rank", percent(rank["effective_share"]), "of full rank holds 99 % of the energy"))
        what = "matrix" if rank["matrices"] == 1 else "matrices"
        among = sum(row["matrices"] for row in report.get("sample") or ())
        sampled = f", a sample of {among:,}" if among > rank["matrices"] else ""
        figures.append(("stable rank", three_digits(rank["stable_rank"]), f"mean over {rank['matrices']:,} {what}{sampled}"))
        shuffled = null_row(report, "stable_rank")
        if shuffled is not None:
            mean, _, between = interval_words("stable_rank", shuffled["shuffled"]).partition(" ")
            figures.append(("… shuffled by size", mean, f"{between}: the same values among weights of the same size"))
    if report["size"]:
        figures.append(("explained by size", percent(report["size"]["explained"]), "of which weights changed (R²)"))
    return figures


def relative_words(dtypes: Iterable[str], rtol: float) -> str:
    """Why no element that changed its value is within the relative tolerance; empty where one may be. One step of a float with m bits of
    mantissa is at least 1 / (2^(m + 1) - 1) of its value."""
    names = sorted(set(dtypes))
    least = min((1 / ((2 << EXPONENT_FIELDS[name][0]) - 1) if name in EXPONENT_FIELDS else 0.0 for name in names), default=0.0)
    words = f"no more than are equal by value: one step of {' and '.join(names)} is at least {percent(least)} of |base|"
    return words if rtol < least else ""


def definitions(report: JsonReport) -> list[tuple[str, str]]:
    """Each figure with its formula and source."""
    atol, rtol = (number_or_power(report["settings"][name]) for name in ("atol", "rtol"))
    relative = relative_words((tensor["dtype"] for tensor in report["tensors"]), report["settings"]["rtol"])
    cast = report["settings"]["as"]
    compared = f"Tensors of F32, F16 and BF16 of both sides were cast to {cast} before they were compared; others are as they are stored."
    return [
        *([("Cast", compared)] if cast else []),
        ("Changed", "Weights whose bits differ: elements − bit-identical elements. d = target − base."),
        ("Update sparsity", f"Bit-identical elements / elements, that is 1 − ‖d‖₀ / n (as in {PAPER}, which counts at a tolerance)."),
        ("Unchanged within the tolerance", f"|d| ≤ {atol} (the default of {PAPER}: 10⁻⁵). Most changes of small weights do not count."),
        (
            "… as the paper's code counts",
            f"The same, but |d| and {atol} are rounded to the tensor's type first, as the code that came with {PAPER} does.",
        ),
        ("Within the relative tolerance", f"|d| ≤ {rtol} · |base|.{' ' + relative[0].upper() + relative[1:] + '.' if relative else ''}"),
        ("ulp", "Unit in the last place: the step to the next number of the element's type. A distance is the number of such steps."),
        ("Grew / fell", "Changed elements with target > base, and with target < base (by value, not by size)."),
        (
            "Norms, biases, embeddings",
            f"Counted apart from the matrices, as in {PAPER}, and recognized by tensor names. lm_head counts as a matrix.",
        ),
        (
            "Rank",
            "Number of singular values of d above σ₁ · max(rows, columns) · 2⁻²³, as torch.linalg.matrix_rank counts them.",
        ),
        ("Rank of a random update", "Expected rank of a matrix of that shape with as many changed elements at random places."),
        ("Stable rank", "‖d‖²_F / ‖d‖²₂ = Σσᵢ² / σ₁² (Rudelson and Vershynin 2007). It is 1 where one direction holds everything."),
        (
            "Effective rank",
            "The least k with σ₁² + … + σₖ² ≥ 0.99 ‖d‖²_F: so many directions hold 99 % of the energy.",
        ),
        ("Random spectra", "Quantiles of the Marchenko–Pastur law for the same ratio of rows to columns (1967)."),
        ("Rows, columns 5–95 %", "Share of changed elements in each row (column): the 0.05 and 0.95 quantiles over all rows (columns)."),
        (
            "Scattered",
            "Most changed elements lie in matrices whose rows and columns are neither more crowded nor more often empty than chance makes "
            "them: the 0.95 quantile of the shares is at most 3 · (p + 1.645 √(p(1 − p)/k) + 1/k), with p the matrix's share and k the "
            "row's length, and less than one row in twenty is empty where independent changes would leave under 1 % empty.",
        ),
        *(null_definitions(report["settings"]["nulls"]["draws"]) if report["nulls"] else ()),
    ]

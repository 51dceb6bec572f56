"""What a report's numbers mean, in plain words: the first line, the key figures, a line or two by each chart, the definitions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ckptdiff.analysis.modules import APART
from ckptdiff.pages.chart_data import MOST_SPECTRA, Report, changed, share

PAPER = "arXiv 2505.11711"
FULL, LOW = 0.95, 0.5
"""Rank, as a share of full rank, from which an update is called of full rank, and below which of low rank."""

DENSE = 0.5
"""Share of changed weights above which to ask where they lie has no point."""


def percent(value: float | None) -> str:
    """Three digits; near 100 % as many as tell it from 100 %."""
    if value is None or not math.isfinite(value):
        return "–"
    if 0.99 < value < 1:
        decimals = min(max(1 - math.floor(math.log10(100 * (1 - value))), 1), 8)
        return f"{100 * value:.{decimals}f} %"
    if value == 0:
        return "0 %"
    decimals = min(max(2 - math.floor(math.log10(abs(100 * value))), 0), 12)
    return f"{100 * value:.{decimals}f} %"


def decimal(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.3g}"


def size(value: float) -> str:
    """A small number as people write it: 1e-5."""
    return f"{value:g}".replace("e-0", "e-")


def number(count: int) -> str:
    """A count in words of a size that one remembers."""
    for name, size in (("trillion", 10**12), ("billion", 10**9), ("million", 10**6)):
        if count >= size:
            return f"{count / size:.3g} {name}"
    return f"{count:,}"


def together(report: Report, apart: bool) -> dict[str, int]:
    """Elements and changes of the matrices, or of norms, biases and embeddings."""
    found = [m for m in report["modules"] if (m["module"] in APART) == apart]
    return {"elements": sum(m["elements"] for m in found), "changed": sum(changed(m) for m in found)}


def headline(report: Report) -> str:
    """What training changed, in one sentence."""
    totals = report["totals"]
    elements, count = totals["elements"], changed(totals)
    if not elements:
        return "There are no weights to compare."
    if not count:
        return f"No weight changed: all {number(elements)} are the same, bit for bit."
    parts = [f"{percent(count / elements)} of {number(elements)} weights changed{step_words(report)}"]
    shape = " and ".join(filter(None, (spread_words(report), rank_words(report))))
    parts += filter(None, (norm_words(report), f"the update is {shape}" if shape else ""))
    return "; ".join(parts) + "."


def step_words(report: Report) -> str:
    """How far most changed weights moved."""
    count, one = changed(report["totals"]), report["totals"]["one_ulp"]
    if one == count:
        return ", all by one ulp"
    if one >= 0.95 * count:
        return ", nearly all by one ulp"
    if one > 0.5 * count:
        return ", most by one ulp"
    half = middle_step(report)
    return f", half of them by {half:,} ulps or more" if half else ""


def middle_step(report: Report) -> int | None:
    """Start of the histogram's bin in which the median distance lies."""
    bins = sorted((b for b in report["moves"]["ulp"] if b["count"]), key=lambda b: b["from"])
    left = sum(b["count"] for b in bins) / 2
    for found in bins:
        left -= found["count"]
        if left <= 0:
            return int(found["from"])
    return None


def norm_words(report: Report) -> str:
    """How much of the layer norms changed."""
    norms = [m for m in report["modules"] if m["module"] == "norm" and m["elements"]]
    if not norms:
        return ""
    count, part = changed(norms[0]), share(norms[0])
    if not count:
        return "layer norms did not change"
    return f"{percent(part)} of the layer norms' weights changed"


def concentrated(tensor: dict[str, Any]) -> bool | None:
    """Whether a matrix's changes lie in some rows or columns; None where chance alone could leave rows empty and full ones few.

    Of the rows' shares, the 0.95 quantile more than three times what independent changes give, or one row in twenty empty
    where chance leaves none. The same for columns.
    """
    if len(tensor["shape"]) != 2 or not changed(tensor) or not tensor["rows"] or not tensor["columns"]:
        return None
    part = share(tensor)
    for quantiles, length in ((tensor["rows"], tensor["shape"][1]), (tensor["columns"], tensor["shape"][0])):
        expected = part + 1.645 * math.sqrt(part * (1 - part) / length) + 1 / length
        if quantiles[5] > 3 * expected or (quantiles[1] == 0 and (1 - part) ** length < 0.01):
            return True
    return False


def spread_words(report: Report) -> str:
    """Whether a sparse update is scattered, by most of the matrices' changed elements."""
    if share(report["totals"]) > DENSE:
        return ""
    sums = {True: 0, False: 0}
    for tensor in report["tensors"]:
        found = concentrated(tensor)
        if found is not None:
            sums[found] += changed(tensor)
    if not any(sums.values()):
        return ""
    part = sums[True] / (sums[True] + sums[False])
    if part >= 0.5:
        return "concentrated in some rows or columns"
    return "scattered" if part <= 0.1 else "mostly scattered"


def rank_words(report: Report) -> str:
    """The update's rank, beside that of a random one where it is not full."""
    rank = report["rank"]
    if not rank or rank["rank_share"] is None or rank["random_rank_share"] is None:
        return ""
    mean, chance = rank["rank_share"], rank["random_rank_share"]
    if mean >= FULL:
        return "of full rank" if mean >= 0.99 else "of nearly full rank"
    if mean >= 0.9 * chance:
        return f"of about the rank that so few changes can have ({percent(mean)} of full rank; a random one: {percent(chance)})"
    word = "low rank" if mean < LOW else "reduced rank"
    return f"of {word} ({percent(mean)} of full rank; a random one: {percent(chance)})"


def sample_words(sample: Iterable[Mapping[str, Any]]) -> str:
    """Of which matrices the rank was taken: how many of each kind of module, and where it was not of all, of which layers."""
    rows = list(sample)
    kinds = []
    for row in rows:
        layers = f" (layer{'s' * (len(row['layers']) > 1)} {', '.join(map(str, row['layers']))})" if row["layers"] else ""
        part = "all" if row["taken"] == row["matrices"] else f"{row['taken']:,} of"
        kinds.append(f"{row['module']} {part} {row['matrices']:,}{layers if part != 'all' else ''}")
    taken, matrices = (sum(row[key] for row in rows) for key in ("taken", "matrices"))
    return f"{taken:,} of {matrices:,} matrices: {', '.join(kinds)}"


def key_figures(report: Report) -> list[tuple[str, str, str]]:
    """Name, value and a few words to each."""
    totals, count = report["totals"], changed(report["totals"])
    elements = totals["elements"]
    if not elements:
        return []
    named = {m["module"] for m in report["modules"]} != {"other"}
    matrices, apart = together(report, False), together(report, True)
    tolerance = size(report["settings"]["atol"])
    as_paper = ", as in the paper" if report["settings"]["atol"] == 1e-5 else ""
    found = [("update sparsity", percent(totals["bit_identical"] / elements), "weights with the same bits")]
    found.append((f"sparsity at {tolerance}", percent(totals["within_atol"] / elements), f"|d| at most {tolerance}{as_paper}"))
    for name, sums in (("matrices changed", matrices), ("norms, biases, embeddings", apart)):
        if sums["elements"] and named:
            value = percent(sums["changed"] / sums["elements"])
            found.append((name, value, f"{number(sums['changed'])} of {number(sums['elements'])}"))
    if count:
        found.append(("moved one ulp", percent(totals["one_ulp"] / count), "of the changed weights"))
        found.append(("grew / fell", f"{percent(totals['up'] / count)[:-2]} / {percent(totals['down'] / count)}", "of the changed weights"))
    rank = report["rank"]
    if rank and rank["matrices"]:
        chance = percent(rank["random_rank_share"])
        found.append(("rank of the update", percent(rank["rank_share"]), f"of full rank; a random one as sparse: {chance}"))
        found.append(("effective rank", percent(rank["effective_share"]), "of full rank holds 99 % of the energy"))
        what = "matrix" if rank["matrices"] == 1 else "matrices"
        among = sum(row["matrices"] for row in report.get("sample") or ())
        sampled = f", a sample of {among:,}" if among > rank["matrices"] else ""
        found.append(("stable rank", decimal(rank["stable_rank"]), f"mean over {rank['matrices']:,} {what}{sampled}"))
    return found


def hidden_by_tolerance(report: Report) -> str:
    """Share of the changed elements that the tolerance calls unchanged."""
    totals = report["totals"]
    return percent(max(totals["within_atol"] - totals["bit_identical"], 0) / changed(totals))


def captions(report: Report) -> dict[str, str]:
    """What each chart's numbers mean, and what to expect, by the chart's name."""
    rank = report["rank"] or {"rank_share": None, "random_rank_share": None}
    tolerance = size(report["settings"]["atol"])
    hidden = hidden_by_tolerance(report) if changed(report["totals"]) else "–"
    empty = [e for e in report["moves"]["exponents"] if e["exponent"] is None and e["elements"]]
    zeros = f" Zeros and subnormals are not shown: {empty[0]['changed']:,} of {empty[0]['elements']:,} changed." if empty else ""
    return {
        "changed": "Share of the weights whose bits changed. RL fine-tuning tends to give much the same share in all layers and matrices, "
        "and little or none in the norms; one bright row or column means that training worked on one part.",
        "rank": f"Rank of target minus base over the most it can be: {percent(rank['rank_share'])} in the mean. Nearly full rank is what "
        "any scattered update gives; only much less than in the picture beside it says that the update has structure, as a LoRA's has.",
        "random-rank": "What to compare with: as many changed weights in each matrix, at random places, give "
        f"{percent(rank['random_rank_share'])} in the mean.",
        "spectra": f"How the update's strength is spread over its directions, for one matrix of each kind (at most {MOST_SPECTRA}; from a "
        "middle layer). Dashed and dotted: independent random entries. A line like them has no direction that stands out; one that falls "
        "steeply at the left has its strength in a few directions; one that ends early lacks the ranks to its right.",
        "ulps": "An ulp is the step from one number that the format can hold to the next, so one ulp is the smallest change there is. "
        "Small learning rates in BF16 give mostly one: a step is rounded away, or just large enough to reach the next number.",
        "sizes": f"Absolute change of the changed weights. {hidden} of them changed by at most {tolerance}, and count as unchanged "
        "at that tolerance (the paper's: 1e-5).",
        "exponents": "Chance of a weight to change, by the size of its value in the base. Large weights have coarse steps, so that small "
        f"updates are rounded away: expect a fall from left to right.{zeros}",
        "layers": "Share of weights that stayed the same, bit for bit and within the tolerance. A flat line means that all layers took "
        f"part alike. {PAPER} reports 68.5 to 96.0 % for RL-tuned models (table 1), counted at a tolerance of 1e-5.",
    }


def definitions(report: Report) -> list[tuple[str, str]]:
    """Each figure with its formula and source."""
    atol, rtol = (size(report["settings"][name]) for name in ("atol", "rtol"))
    return [
        ("Changed", "Weights whose bits differ: elements − bit-identical elements. d = target − base."),
        ("Update sparsity", f"Bit-identical elements / elements, that is 1 − ‖d‖₀ / n (as in {PAPER}, which counts at a tolerance)."),
        ("Unchanged within the tolerance", f"|d| ≤ {atol} (the default of {PAPER}: 1e-5). Counts most changes of small weights as none."),
        (
            "… as the paper's code counts",
            f"The same with |d| and {atol} rounded to the tensor's type first, as the code that came with {PAPER} does.",
        ),
        ("Within the relative tolerance", f"|d| ≤ {rtol} · |base|."),
        ("ulp", "Unit in the last place: the distance to the next number of the element's type. Distances count the numbers passed."),
        ("Grew / fell", "Changed elements with target > base, and with target < base (by value, not by size)."),
        ("Norms, biases, embeddings", f"Kept apart from the matrices, as in {PAPER}; told by tensor names. lm_head counts as a matrix."),
        (
            "Rank",
            "Number of singular values of d above σ₁ · max(rows, columns) · 2⁻²³, as torch.linalg.matrix_rank has it.",
        ),
        ("Rank of a random update", "Expected rank of a matrix of that shape with as many changed elements at random places."),
        ("Stable rank", "‖d‖²_F / ‖d‖²₂ = Σσᵢ² / σ₁² (Rudelson and Vershynin 2007). 1 where one direction holds all."),
        (
            "Effective rank",
            "The least k with σ₁² + … + σₖ² ≥ 0.99 ‖d‖²_F: so many directions hold 99 % of the energy.",
        ),
        ("Random spectra", "Quantiles of the Marchenko–Pastur law for the same ratio of rows to columns (1967)."),
        ("Rows, columns 5–95 %", "Share of changed elements in each row (column); 0.05 and 0.95 quantiles over rows (columns)."),
        (
            "Scattered",
            "Most changed elements lie in matrices whose rows and columns are neither crowded nor left out more than chance has it: the "
            "0.95 quantile of the shares is at most 3 · (p + 1.645 √(p(1 − p)/k) + 1/k), p the matrix's share and k the row's length, "
            "and not one row in twenty is empty where independent changes would leave under 1 % empty.",
        ),
    ]

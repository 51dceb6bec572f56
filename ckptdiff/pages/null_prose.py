"""Figures beside what they would be without the effect, in plain words, from a report's JSON object."""

from __future__ import annotations

from typing import Any

from ckptdiff.pages.chart_data import JsonReport
from ckptdiff.pages.labels import number_or_power
from ckptdiff.units import MISSING, percent, three_digits

NAMES = {
    "stable_rank": "stable rank",
    "effective_share": "effective rank",
    "rank_share": "rank",
    "top_energy": "energy in the top 8 directions",
    "principal_overlap": "changes in the principal half",
    "largest_angle": "largest principal angle",
    "mean_angle": "mean principal angle",
    "spectral_shift": "normalized spectral shift",
}
"""What the figures of a report's nulls are called."""
SHORT_NAMES = {"top_energy": "top-8 energy"}
"""Names of figures in a headline."""
SHARES = ("effective_share", "rank_share", "top_energy", "principal_overlap")
ANGLES = ("largest_angle", "mean_angle")
CONCENTRATED = {"stable_rank": -1, "effective_share": -1, "top_energy": 1}
"""Figures of how many directions an update has, and the side of the shuffled ones on which an update of few directions lies."""
PARTS = {0.5: "half of them moved", 0.1: "a tenth", 0.01: "a hundredth"}
"""Shares of the weights in words."""
SHUFFLED = "the same values shuffled among weights of the same size"


def null_row(report: JsonReport, figure: str) -> dict[str, Any] | None:
    """The row of a figure in the report's nulls; None where it has none."""
    return next((row for row in report["nulls"] if row["figure"] == figure), None)


def shown(figure: str, value: float) -> str:
    """A value of a figure."""
    if figure in SHARES:
        return percent(min(max(value, 0.0), 1.0))
    return f"{three_digits(value)}{'°' if figure in ANGLES else ''}"


def interval_words(figure: str, interval: dict[str, float] | None) -> str:
    """The mean of a null, and the interval of a further draw: 74.4 [73.3, 75.5]."""
    if interval is None:
        return MISSING
    mean, low, high = (shown(figure, max(interval[key], 0.0)) for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]" if figure not in SHARES else f"{mean} [{low.removesuffix(' %')}, {high}]"


def side(row: dict[str, Any], null: str = "shuffled") -> int:
    """1 for a value above the interval of a null, -1 for one below it, 0 for one in it."""
    return (row["value"] > row[null]["high"]) - (row["value"] < row[null]["low"])


def null_headline(report: JsonReport) -> str:
    """What of the update is more than the sizes of the base's weights explain, in one short sentence; empty without nulls."""
    row = headline_row(report)
    if row is None:
        return ""
    figure = row["figure"]
    word = {0: "as", CONCENTRATED[figure]: "more", -CONCENTRATED[figure]: "less"}[side(row)]
    name, value, chance = SHORT_NAMES.get(figure, NAMES[figure]), *(shown(figure, x) for x in (row["value"], row["shuffled"]["mean"]))
    return f"The update is {word} concentrated {'as' if word == 'as' else 'than'} size explains: {name} {value}, shuffled {chance}."


def headline_row(report: JsonReport) -> dict[str, Any] | None:
    """The row of the first figure that lies beyond the shuffled ones, or of the first one."""
    rows = [row for row in report["nulls"] if row["figure"] in CONCENTRATED]
    return next((row for row in rows if side(row)), rows[0] if rows else None)


def null_findings(report: JsonReport) -> list[str]:
    """What the nulls say, in sentences, of which the first explains the headline."""
    row = headline_row(report)
    if row is None:
        return []
    return [sentence for sentence in (shuffle_words(row), principal_words(report), turn_words(report)) if sentence]


def shuffle_words(row: dict[str, Any]) -> str:
    """A figure with shuffled positions and with random signs."""
    shuffled, flipped = (interval_words(row["figure"], row[null]) for null in ("shuffled", "flipped"))
    text = f"{SHUFFLED[0].upper()}{SHUFFLED[1:]} have a {NAMES[row['figure']]} of {shuffled}"
    return f"{text}, and with random signs {flipped}{', which is no different' * (not side(row, 'flipped'))}."


def principal_words(report: JsonReport) -> str:
    """Whether the update avoids the principal part of the base beyond what sizes explain."""
    row = null_row(report, "principal_overlap")
    if row is None:
        return ""
    value, chance = (shown(row["figure"], x) for x in (row["value"], row["shuffled"]["mean"]))
    deviations = f", z = {three_digits(row['z'])}" if row["z"] is not None else ""
    where = f"{value} of the changed weights lie in the principal half of their matrix; by size it would be {chance}{deviations}"
    if not side(row):
        return f"{where}, so that size alone explains it."
    return f"{where}, {'more' if side(row) > 0 else 'less'} than size explains."


def turn_words(report: JsonReport) -> str:
    """Whether the matrices' spectra moved further than shuffled updates move them."""
    row = null_row(report, "spectral_shift")
    if row is None:
        return ""
    value, chance = shown(row["figure"], row["value"]), interval_words(row["figure"], row["shuffled"])
    word = ("as much as", "more than", "less than")[side(row)]
    return f"Singular values moved {word} a shuffled update moves them: by {value}, where that gives {chance}."


def size_words(report: JsonReport) -> str:
    """How far sizes explain which weights changed."""
    size = report["size"]
    return f"The weights' sizes explain {percent(size['explained'])} of which of them changed (R²)." if size else ""


def update_words(report: JsonReport) -> str:
    """The sizes of the updates of a run that kept float32 weights, where the places tell them."""
    updates = report["size"] and report["size"]["updates"]
    if not updates or not updates["holds"]:
        return ""
    known = [f"{PARTS[q['share']]} by more than {power_words(q['above'])}" for q in updates["quantiles"] if q["above"] is not None]
    return f"As if weights were kept in float32: {', '.join(known)}." if known else ""


def power_words(value: float) -> str:
    """A small number in three digits and a power of ten."""
    return number_or_power(float(f"{value:.3g}"))


NULL_COLUMNS = (
    ("figure", "text"),
    *((name, "number") for name in ("matrices", "measured", "signs flipped", "shuffled by size")),
    ("verdict", "text"),
)
"""Headings of the table of nulls, and whether their columns hold text or numbers."""


def null_table_rows(report: JsonReport) -> list[list[str]]:
    """Figure, matrices, value, flipped signs, shuffled positions and what is left beyond size, as text."""
    verdicts = ("nothing beyond size", "larger than size explains", "smaller than size explains")
    return [
        [
            NAMES[row["figure"]],
            f"{row['matrices']:,}",
            shown(row["figure"], row["value"]),
            interval_words(row["figure"], row["flipped"]),
            interval_words(row["figure"], row["shuffled"]),
            verdicts[side(row)],
        ]
        for row in report["nulls"]
    ]


def null_definitions(draws: int) -> list[tuple[str, str]]:
    """Each null and each figure beside one, with its formula and source."""
    return [
        (
            "Shuffled among weights of the same size",
            "In each matrix the values of d, zeros included, are dealt out anew among the weights whose base value has the same binary "
            f"exponent. {draws:,} draws; in brackets the 95 % interval of one more, mean ∓ t s √(1 + 1/n). A figure within it "
            "says nothing that the sizes of the weights do not say.",
        ),
        ("Signs flipped", "Each element of d keeps its place and size and has a random sign."),
        (
            "Explained by size",
            "R² of “changed or not” by type and binary exponent of the base's value: Σ n (p_bin − p)² / (n p (1 − p)).",
        ),
        (
            "Principal half",
            "The elements of the top half of |W_k|, with W_k the rank-k approximation of the base matrix and k an eighth of its smaller "
            "side; arXiv 2511.08567, section 4, varies k. By size: Σ c m / n over exponents; z by the hypergeometric deviation.",
        ),
        (
            "Principal angles",
            "cos θᵢ = σᵢ(U_kᵀ U′_k) and σᵢ(V_kᵀ V′_k), of the leading k singular vectors of base and target (arXiv 2511.08567).",
        ),
        ("Normalized spectral shift", "‖σ(W′) − σ(W)‖ / ‖σ(W)‖ (arXiv 2511.08567)."),
        (
            "As if kept in float32",
            "A BF16 weight of exponent e that is kept in float32 and saved changes where |update| > 2^(e − 8), so that P(changed | e) is "
            "the share of updates above that. Stated only where the |d| that were found agree with it, within a tenth of the changed "
            "weights.",
        ),
    ]

"""What is said of figures beside their nulls, in text, pages and cards."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import pytest

from ckptdiff.analysis.report_model import Report
from ckptdiff.pages.null_prose import null_findings, null_headline, null_table_rows, size_words, update_words
from ckptdiff.pages.report_prose import findings, headline, key_figures
from ckptdiff.verbs.card import _report_lines
from ckptdiff.verbs.report import report
from tests.support.commands import run
from tests.support.real_pairs import BASE, TARGETS

needs_data = pytest.mark.skipif(not BASE.exists(), reason="needs the project's data")


def row(
    figure: str, value: float, shuffled: tuple[float, float, float], flipped: tuple[float, float, float] | None = None
) -> dict[str, Any]:
    ends = ("mean", "low", "high")
    nulls = {"shuffled": dict(zip(ends, shuffled, strict=True)), "flipped": flipped and dict(zip(ends, flipped, strict=True))}
    return {"figure": figure, "matrices": 3, "value": value, "z": None, **nulls}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([row("stable_rank", 4.2, (77, 74, 80))], "The update is more concentrated than size explains: stable rank 4.20, shuffled 77.0."),
        ([row("stable_rank", 90, (77, 74, 80))], "The update is less concentrated than size explains: stable rank 90.0, shuffled 77.0."),
        ([row("stable_rank", 79, (77, 74, 80))], "The update is as concentrated as size explains: stable rank 79.0, shuffled 77.0."),
        (
            [row("stable_rank", 79, (77, 74, 80)), row("top_energy", 0.3, (0.1, 0.09, 0.11))],
            "The update is more concentrated than size explains: top-8 energy 30.0 %, shuffled 10.0 %.",
        ),
        ([row("spectral_shift", 1, (3, 2, 4))], ""),
        ([], ""),
    ],
)
def test_the_headline_is_what_survives_a_shuffle(rows: list[dict[str, Any]], expected: str) -> None:
    assert null_headline({"nulls": rows}) == expected and len(expected) <= 90


def test_sentences_say_on_which_side_a_figure_lies() -> None:
    overlap = row("principal_overlap", 0.3, (0.4, 0.39, 0.41)) | {"z": -20.0}
    told = null_findings(
        {"nulls": [row("stable_rank", 4.2, (77, 74, 80), (4.1, 4.0, 4.3)), overlap, row("spectral_shift", 0.2, (0.1, 0.05, 0.3))]}
    )
    assert told == [
        "The same values shuffled among weights of the same size have a stable rank of 77.0 [74.0, 80.0], and with random signs "
        "4.10 [4.00, 4.30], which is no different.",
        "30.0 % of the changed weights lie in the principal half of their matrix; by size it would be 40.0 %, z = -20.0, less than size "
        "explains.",
        "Singular values moved as much as a shuffled update moves them: by 0.200, where that gives 0.100 [0.0500, 0.300].",
    ]


def test_what_is_not_known_is_not_said() -> None:
    assert size_words({"size": None}) == update_words({"size": None}) == ""
    updates: dict[str, Any] = {"holds": False, "quantiles": [{"share": 0.5, "above": 1e-5}]}
    assert update_words({"size": {"updates": updates}}) == update_words({"size": {"updates": None}}) == ""
    updates["holds"] = True
    updates["quantiles"].append({"share": 0.1, "above": None})
    assert update_words({"size": {"updates": updates}}) == "As if weights were kept in float32: half of them moved by more than 10⁻⁵."


@cache
def measured(target: str) -> Report:
    return report(BASE, BASE.parent / target, nulls=3)


@needs_data
@pytest.mark.parametrize("target", TARGETS)
def test_text_page_and_card_begin_with_it(target: str) -> None:
    found = measured(target)
    value = found.to_json()
    first = headline(value)
    assert first.startswith("The update is ") and " concentrated " in first and "size explains: " in first and len(first) <= 90
    card = _report_lines(found, None)
    assert card[0].startswith(f"{first} The same values shuffled among weights of the same size have a ")
    assert "| beside nulls (95 %) | matrices | measured | signs flipped | shuffled by size | verdict |" in card
    assert any(re.fullmatch(r"\| changes in the principal half \| 32 \| \S+ % \| – \| .* \| nothing beyond size \|", line) for line in card)
    assert "weights changed" in findings(value) and "The weights' sizes explain " in findings(value)
    assert len(null_table_rows(value)) == 8 and any(name == "… shuffled by size" for name, *_ in key_figures(value))


@needs_data
def test_the_command_prints_it_and_can_leave_it_out() -> None:
    pair = (BASE, BASE.parent / TARGETS[1])
    text = run("report", *pair, "--nulls", "2").stdout
    assert text.lstrip().startswith("in short  The update is more concentrated than size explains: stable rank 4.15, shuffled ")
    assert "nothing beyond size" in text and "As if weights were kept in float32" in text
    without = json.loads(run("report", *pair, "--nulls", "0", "--json").stdout)
    assert without["nulls"] == [] and without["settings"]["nulls"] == {"draws": 0, "seed": 0}
    assert headline(without) == "38.4 % of 5.25 million weights changed, most by one ulp."
    seeds = [json.loads(run("report", *pair, "--nulls", "2", "--seed", seed, "--json").stdout)["nulls"] for seed in (1, 1, 2)]
    assert seeds[0] == seeds[1] != seeds[2]
    one = run("report", *pair, "--nulls", "1")
    assert one.exit_code and "nulls must be 0 or from 2 to 1000" in one.stderr

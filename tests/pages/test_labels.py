"""Ticks are powers or plain shares, and names are shown without what they all begin with."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest

pytest.importorskip("altair", reason="needs ckptdiff[report]")
pytest.importorskip("vl_convert", reason="needs ckptdiff[report]")

from ckptdiff.pages import drawing, labels, report_charts
from tests.support.sample_reports import low_rank_update, rl_update, sample_report

POWER = r"10[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+|2[⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+"
SHARE = r"\d+(\.\d+)? %|\d+(\.\d+)? × 10⁻[⁰¹²³⁴⁵⁶⁷⁸⁹]+ %"


def texts(spec: dict[str, Any]) -> list[str]:
    """All texts that stand on a chart as it is drawn."""
    svg = drawing.libraries()[1].vegalite_to_svg({**spec, "width": 500}, config=drawing.theme())
    return re.findall(r">([^<>]+)</text>", svg)


@pytest.mark.parametrize("update", [rl_update, low_rank_update])
def test_no_chart_has_an_exponent_or_an_endless_number(update: Any) -> None:
    drawn = {chart.name: texts(chart.spec) for chart in report_charts.charts(sample_report(update))}
    assert len(drawn) == 8
    for name, found in drawn.items():
        assert found and not [text for text in found if re.search(r"\de[+-]?\d|\d{8}|\.\d{7}|\d%", text)], name
    for name in ("sizes", "exponents", "spectra"):
        assert len([text for text in drawn[name] if re.fullmatch(POWER, text)]) >= 2, name
    for name in ("ulps", "sizes", "exponents", "layers"):
        assert len([text for text in drawn[name] if re.fullmatch(SHARE, text)]) >= 2, name
    assert "tolerance 10⁻⁵" in drawn["sizes"]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.0155), (0.983, 1), (0.99999, 1), (0, 3e-7), (0, 2e-11), (0, 0)])
def test_ticks_of_shares_say_exactly_where_they_stand(low: float, high: float) -> None:
    ticks = labels.share_ticks(low, high)
    assert 2 <= len(ticks.values) <= labels.MOST_TICKS + 1 and len(set(ticks.labels)) == len(ticks.labels)
    superscripts = {after: before for before, after in labels.SUPERSCRIPTS.items()}
    for value, label in zip(ticks.values, ticks.labels, strict=True):
        assert re.fullmatch(SHARE, label) and "000000" not in label
        number, _, power = label.removesuffix(" %").translate(superscripts).partition(" × 10")
        assert math.isclose(float(f"{number}e{power or 0}") / 100, value, rel_tol=1e-12)


def test_ticks_of_powers() -> None:
    assert labels.power_ticks(-26, -12).labels == ["10⁻⁷", "10⁻⁶", "10⁻⁵", "10⁻⁴"]
    assert labels.power_ticks(0, 3).labels == ["2⁰", "2¹", "2²", "2³"]
    assert labels.decade_ticks(-7).labels == ["10⁻⁶", "10⁻⁴", "10⁻²", "10⁰"]
    for ticks in (labels.power_ticks(-40, 5), labels.decade_ticks(-7)):
        assert len(ticks.labels) <= labels.MOST_TICKS
        step = ticks.values[1] - ticks.values[0]
        assert [round((v - ticks.values[0]) / step) for v in ticks.values] == list(range(len(ticks.values)))
        assert json.dumps(ticks.labels) in ticks.expression()


def test_tolerances_and_sizes_in_words() -> None:
    found = [labels.number_or_power(v) for v in (1e-5, 2e-6, 0.0, 0.01, 1.5e-8, 100.0)]
    assert found == ["10⁻⁵", "2 × 10⁻⁶", "0", "0.01", "1.5 × 10⁻⁸", "100"]
    assert labels.power_of_two(-10) == "2⁻¹⁰ (about 0.000977)" and labels.power_of_two(-30) == "2⁻³⁰ (about 9.31 × 10⁻¹⁰)"
    assert labels.span([0.918, 0.9996, 0.95]) == "91.8 to 99.96 %" and labels.span([0.5, 0.5]) == "50.0 %"


def test_the_common_start_of_names_ends_where_a_part_ends() -> None:
    assert labels.common_start(["model.layers.0.q", "model.layers.1.q", "model.norm"]) == "model."
    assert labels.common_start(["actor.module.a.w", "actor.module.ab.w"]) == "actor.module."
    assert labels.common_start(["lm_head.weight", "model.norm"]) == "" == labels.common_start(["model.norm"])
    assert labels.common_start(["model.", "model.a"]) == ""  # nothing would be left of the first
    assert labels.common_start(["run-a/checkpoint-100", "run-a/checkpoint-200"], "-_./ ") == "run-a/checkpoint-"


def test_long_names_on_an_axis_stay_distinct() -> None:
    names = [f"grpo-lr1e-6-seed{k}-qwen2.5-math-with-kl-penalty" for k in range(3)] + ["sft"]
    shown = labels.axis_names(names)
    assert shown[3] == "sft" and len(set(shown)) == 4 and all(len(name) <= labels.LONGEST_LABEL and "…" in name for name in shown[:3])
    assert labels.axis_names([]) == [] and labels.axis_names(["a\u202eb"]) == ["a\\u202eb"]
    apart = ["x" * 50 + str(k) + "y" * 50 for k in range(2)]
    assert len(set(labels.axis_names(apart))) == 2

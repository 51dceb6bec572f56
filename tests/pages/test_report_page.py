"""The report's page in a real browser, its PNG files and its sentences."""

from __future__ import annotations

import copy
import html
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ckptdiff.errors import OutputError
from ckptdiff.pages.report_prose import definitions, findings, headline, key_figures
from ckptdiff.units import count_in_words, percent
from tests.support import sample_reports
from tests.support.browser import ATTACK, browse, needs_browser, png_bytes, value
from tests.support.sample_reports import assemble, many_tensors, without_names

altair = pytest.importorskip("altair", reason="altair or vl-convert is not installed: pip install '.[report]'")
pytest.importorskip("vl_convert", reason="altair or vl-convert is not installed: pip install '.[report]'")

from ckptdiff.pages import chart_data, drawing, report_charts, report_page  # noqa: E402

EVERY = {"changed", "layers", "rank", "random-rank", "spectra", "ulps", "sizes", "exponents"}
NO_RANK = EVERY - {"rank", "random-rank", "spectra"}


@cache
def made(update: str = "rl_update", rank: str = "all") -> dict[str, Any]:
    """A sample report, made once; copy before changing it."""
    return sample_reports.sample_report(getattr(sample_reports, update), rank=rank)


def sample(update: str = "rl_update", rank: str = "all") -> dict[str, Any]:
    return copy.deepcopy(made(update, rank))


def one_tensor() -> dict[str, Any]:
    report = sample()
    return assemble(report["tensors"][1:2], report["moves"])


def attacked() -> dict[str, Any]:
    """Every text that comes from files, hostile."""
    report = sample()
    report["tensors"][1]["name"] = report["tensors"][10]["scope"] = report["base"] = ATTACK
    report["added"] = report["unpaired"] = [ATTACK, "a.weight"]
    for tensor in report["tensors"]:
        tensor["name"] += "</script><img src=x onerror=alert(1)>" if tensor["module"] == "k" else ""
    return report


PAGES: dict[str, tuple[Callable[[], dict[str, Any]], set[str]]] = {
    "attacked": (attacked, EVERY),
    "low-rank": (lambda: sample("low_rank_update"), EVERY),
    "without-rank": (lambda: sample(rank="none"), NO_RANK),
    "without-names": (lambda: without_names(sample()), EVERY - {"changed", "layers"}),
    "one-tensor": (one_tensor, EVERY - {"layers"}),
    "nothing-changed": (lambda: sample("no_update"), {"changed", "layers"}),
    "2000-tensors": (lambda: many_tensors(sample()), EVERY),
}


def check_sorting(found: dict[str, Any]) -> None:
    """Every column sorts both ways; missing values come last both ways."""
    for i, (name, kind) in enumerate(report_page.COLUMNS):
        column = found["sorted"][i]
        ways = ("ascending", "descending") if kind == "text" else ("descending", "ascending")
        assert (column["way"], column["back"]) == ways and column["others"] == 1 and column["keyboard"], name
        if name in ("layer", "changed", "one ulp", "grew", "rank", "stable rank"):
            numbers = [[value(text) for text in column[turn]] for turn in ("first", "second")]
            present = [[n for n in side if n >= 0] for side in numbers]
            assert present[0] == sorted(present[0], reverse=True) and present[1] == sorted(present[1]), name
            assert all(side[: len(kept)] == kept for side, kept in zip(numbers, present, strict=True)), name
    assert found["sorted"][2]["first"] == sorted(found["sorted"][2]["first"])


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_the_page_in_a_browser(name: str, tmp_path: Path) -> None:
    make, drawn = PAGES[name]
    report = make()
    found = browse(report_page.render_page(report), tmp_path, "--window-size=1600,1200")
    assert set(found["charts"]) == drawn
    for chart in found["charts"].values():
        assert chart["marks"] and chart["width"] > 400 and chart["height"] > 60 and chart["label"], found["charts"]
    assert (found["requests"], found["violations"], found["images"]) == ([], [], 0)
    assert len(found["names"]) == len(report["tensors"]) == found["unfiltered"]
    assert found["first"] == min(len(report["tensors"]), 200) and found["overflow"] <= 0
    assert found["headline"].replace("\xa0", " ") == headline(report)
    check_sorting(found)
    if name == "attacked":
        shown = ATTACK.replace("\u202e", "\\u202e").replace("\ud800", "\\ud800")
        assert found["title"].startswith(shown) and shown in found["names"]
        assert any(text.startswith(f"{shown}/model.") for text in found["names"])
    if name in ("without-rank", "2000-tensors"):
        cut = "model.layers." if name == "2000-tensors" else ""
        assert found["filtered"] == ["model.layers.0.self_attn.q_proj.weight".removeprefix(cut)]
        assert found["shown"] == f"1 of {len(report['tensors']):,} tensors"


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2) of ``#rrggbb`` or ``rgb(r, g, b)``."""
    parts = [int(p, 16) for p in re.findall("..", colour[1:])] if colour[0] == "#" else [int(p) for p in re.findall(r"\d+", colour)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (p / 255 for p in parts[:3])]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_light_and_dark_and_narrow(dark: bool, tmp_path: Path) -> None:
    text = report_page.render_page(sample())
    found = browse(text, tmp_path, f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--window-size=400,900")
    ground = luminance(found["background"])
    assert (ground < 0.1) is dark and found["overflow"] <= 0
    for ink in [*found["inks"], found["ink"]]:
        low, high = sorted((ground, luminance(ink)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, ink


def test_the_page_forbids_requests_and_holds_no_addresses_to_load() -> None:
    text = report_page.render_page(attacked())
    assert "default-src 'none'; script-src 'sha256-" in html.unescape(text)
    assert not re.search(r"<(link|img|iframe|object|embed)\b", text.split("<script>")[0])
    assert not re.search(r"<script[^>]*\bsrc=", text) and text.count("<script") == text.count("</script") == 3
    assert not re.search(r"@import|url\(", text.split("</style>")[0])
    text.encode()


@pytest.mark.parametrize("name", PAGES)
def test_charts_are_few_and_valid(name: str) -> None:
    make, drawn = PAGES[name]
    found = report_charts.charts(make())
    assert {chart.name for chart in found} == drawn
    assert all(re.fullmatch("[a-z-]+", chart.name) and chart.description for chart in found)
    assert {name for name, *_ in report_charts.CHARTS} == EVERY


@pytest.mark.parametrize("update", ["rl_update", "low_rank_update"])
def test_png_files_are_not_blank(update: str, tmp_path: Path) -> None:
    paths = report_charts.write_png(sample(update), tmp_path / "new" / "folder")
    assert {path.name for path in paths} == {f"{name}.png" for name in EVERY} == {p.name for p in (tmp_path / "new" / "folder").iterdir()}
    for path in paths:
        width, height, rows = png_bytes(path.read_bytes())
        assert width >= 2 * drawing.PNG_WIDTH and height > 200
        assert len(set(rows)) > 40, path.name  # not blank


def test_png_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        report_charts.write_png(one_tensor(), tmp_path / "file")


@pytest.mark.parametrize("missing", ["altair", "jinja2", "vl_convert"])
def test_missing_libraries_say_what_to_install(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(OutputError, match=r"pip install '\.\[report\]'"):
        report_page.render_page(one_tensor())


def test_importing_loads_no_pictures() -> None:
    code = "import sys, ckptdiff.pages.report_page; print([m for m in ('altair', 'jinja2', 'vl_convert') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_headlines_say_what_was_found() -> None:
    rl = sample()
    assert re.fullmatch(r"2\.\d\d % of 227,904 weights changed, most by one ulp\.", headline(rl))
    assert re.fullmatch(r"Layer norms did not change\. The update is scattered and of .*rank.*\.", findings(rl))
    assert "of low rank (" in findings(sample("low_rank_update"))
    assert headline(sample("no_update")) == "No weight changed: all 227,904 are the same, bit for bit."
    assert headline(assemble([], {"ulp": [], "abs": [], "exponents": []})) == "There are no weights to compare."
    assert findings(sample(rank="none")).endswith("The update is scattered.")


def test_missing_and_endless_numbers_are_shown_as_missing() -> None:
    report = sample()
    for tensor in report["tensors"]:
        for spectrum in tensor["spectra"] or ():
            spectrum.update(stable_rank=float("nan"), random_rank=None, singular_values=[])
    report["rank"].update(stable_rank=None, random_rank_share=None, rank_share=None, effective_share=None)
    assert {chart.name for chart in report_charts.charts(report)} == EVERY - {"random-rank", "spectra"}
    assert "NaN" not in report_page.render_page(report).split('id="data">')[1].split("</script>")[0]


def test_headline_names_concentrated_updates_and_norms() -> None:
    report = sample(rank="none")
    for tensor in report["tensors"]:
        if tensor["rows"]:
            tensor["rows"] = [0, 0, 0, 0, 0, 0.5, 1]
    norm = next(m for m in report["modules"] if m["module"] == "norm")
    norm["bit_identical"] -= 144
    assert findings(report) == "25.0 % of the layer norms' weights changed. The update is concentrated in some rows or columns."


def test_an_empty_report_still_makes_a_page(tmp_path: Path) -> None:
    text = report_page.render_page({**assemble([], {"ulp": [], "abs": [], "exponents": []}), "added": ["only.one"]})
    assert "There are no weights to compare." in text and "<li>only.one</li>" in text
    assert report_charts.write_png(assemble([], {"ulp": [], "abs": [], "exponents": []}), tmp_path) == []


def test_numbers_are_written_in_words() -> None:
    values = (None, 0, 1, 0.0154, 0.5, 0.999987, 0.00001234, 0.25)
    shown = "\u2013|0 %|100 %|1.54 %|50.0 %|> 99.99 %|0.00123 %|25.0 %"
    assert [percent(v) for v in values] == shown.split("|")
    assert [count_in_words(n) for n in (999_999, 5_200_000, 7_620_000_000)] == ["999,999", "5.20 million", "7.62 billion"]


def test_figures_and_definitions_use_the_settings() -> None:
    report = sample()
    report["settings"]["atol"] = 2e-6
    assert "sparsity at 2 × 10⁻⁶" in {name for name, _, _ in key_figures(report)}
    assert any("2 × 10⁻⁶" in text for _, text in definitions(report))


def test_random_spectrum_is_that_of_random_matrices() -> None:
    np = pytest.importorskip("numpy")
    for shape in ((300, 300), (200, 600)):
        values = np.linalg.svd(np.random.default_rng(1).normal(size=shape), compute_uv=False)
        law = chart_data.random_spectrum(*shape, points=shape[0])
        assert np.max(np.abs(values / values[0] - law)) < 0.05


def test_updates_used_here_are_what_they_say() -> None:
    assert made("low_rank_update")["rank"]["rank_share"] < 0.2 < 0.7 < made()["rank"]["rank_share"]
    assert made("no_update")["rank"] is None

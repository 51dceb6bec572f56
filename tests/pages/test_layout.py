"""Pages as they are laid out: wide and narrow, dark, and on paper."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("altair", reason="needs ckptdiff[report]")
pytest.importorskip("vl_convert", reason="needs ckptdiff[report]")

from ckptdiff.pages.overlap_page import render_overlap
from ckptdiff.pages.report_page import render_page
from ckptdiff.pages.templating import ROWS_SHOWN_AT_FIRST
from tests.support.browser import browse, needs_browser, printed
from tests.support.sample_overlaps import sample as overlap_sample
from tests.support.sample_reports import many_tensors, rl_update, sample_report

needs_poppler = pytest.mark.skipif(not shutil.which("pdftotext") or not shutil.which("pdftoppm"), reason="needs poppler-utils")


@cache
def report() -> dict[str, Any]:
    return sample_report(rl_update)


def page(name: str) -> str:
    if name == "report":
        return render_page(report())
    if name == "long name":
        tensors = [{**t, "name": f"{t['name']}.{'a_very_long_module_name.' * 12}weight"} for t in report()["tensors"]]
        return render_page({**report(), "tensors": tensors})
    return render_overlap(overlap_sample(int(name)), series=False)


@needs_browser
@pytest.mark.parametrize("name", ["report", "long name", "2", "3", "7"])
def test_no_column_is_clipped_at_1200_pixels(name: str, tmp_path: Path) -> None:
    found = browse(page(name), tmp_path, "--window-size=1200,1000")
    assert found["clipped"] == [] and found["overflow"] <= 0


@needs_browser
@pytest.mark.parametrize("name", ["report", "3"])
def test_what_is_wider_than_a_narrow_page_says_that_it_scrolls(name: str, tmp_path: Path) -> None:
    found = browse(page(name), tmp_path, "--window-size=500,1000")
    assert "tensors" in dict(found["clipped"]) and found["overflow"] <= 0
    assert set(dict(found["clipped"]).values()) == {"The table is wider than the page: scroll it sideways."}


@needs_browser
def test_charts_take_the_colours_of_a_dark_page(tmp_path: Path) -> None:
    inks = {}
    for scheme in (0, 1):
        found = browse(page("report"), tmp_path, f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1200,1000")
        assert set(found["grounds"]) == {"rgba(0, 0, 0, 0)"}  # the page's own ground
        inks[scheme] = found["ink"]
    assert inks == {0: "rgb(230, 233, 237)", 1: "rgb(31, 35, 40)"}


@needs_browser
@needs_poppler
def test_paper_has_every_row_and_every_collapsed_part(tmp_path: Path) -> None:
    many = many_tensors(report(), ROWS_SHOWN_AT_FIRST + 60)
    pdf = printed(render_page({**many, "added": ["only.in.the.target"]}), tmp_path)
    text = subprocess.run(["pdftotext", "-layout", pdf, "-"], capture_output=True, text=True, check=True).stdout
    assert "only.in.the.target" in text and "Each layer" in text and "What the figures are" in text
    squeezed = re.sub(r"\s+", "", text)
    last = many["tensors"][-1]
    assert f"layers.{last['layer']}" in text or f"{last['layer']}.{last['name'].split('.', 3)[3]}" in squeezed
    assert len(re.findall(r"\bBF16 +\d", text)) == len(many["tensors"])  # with the shape: what the figures are names it too
    assert "Names that contain" not in text and "scroll it sideways" not in text


@needs_browser
@needs_poppler
def test_paper_is_light_where_the_screen_is_dark(tmp_path: Path) -> None:
    pdf = printed(page("report"), tmp_path, "--blink-settings=preferredColorScheme=0")
    subprocess.run(["pdftoppm", "-r", "30", "-gray", "-f", "1", "-l", "2", pdf, tmp_path / "sheet"], check=True)
    sheets = sorted(tmp_path.glob("sheet*.pgm"))
    assert len(sheets) == 2
    for sheet in sheets:
        head, _, pixels = sheet.read_bytes().partition(b"\n255\n")
        assert head.startswith(b"P5") and sum(pixels) / len(pixels) > 215
        assert sum(p < 128 for p in pixels) > 500  # and not blank


@needs_browser
@needs_poppler
def test_no_column_of_a_table_is_clipped_on_paper(tmp_path: Path) -> None:
    for name, last in (("report", "columns 5–95 %"), ("3", "same direction")):
        folder = tmp_path / name
        folder.mkdir()
        text = subprocess.run(["pdftotext", "-bbox", printed(page(name), folder), "-"], capture_output=True, text=True, check=True).stdout
        width = float(re.findall(r'<page width="([\d.]+)"', text)[0])
        right = [float(x) for x in re.findall(r'xMax="([\d.]+)"', text)]
        assert max(right) <= width - 20 and last.split()[0] in text

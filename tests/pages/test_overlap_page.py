"""The overlap's page in a real browser, its PNG files, its sentences and its command."""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ckptdiff.analysis.overlap import OverlapResult
from ckptdiff.errors import OutputError
from ckptdiff.pages.overlap_prose import findings, headline, sides_of_chance
from ckptdiff.units import percent, three_digits
from tests.support.checkpoints import tensor, write
from tests.support.commands import run
from tests.support.sample_overlaps import sample

pytest.importorskip("altair", reason="altair or vl-convert is not installed: pip install '.[report]'")
pytest.importorskip("vl_convert", reason="altair or vl-convert is not installed: pip install '.[report]'")

from ckptdiff.pages import drawing, overlap_charts
from ckptdiff.pages.overlap_captions import captions
from ckptdiff.pages.overlap_page import MAX_UPDATE_COLUMNS, render_overlap, tensor_columns
from tests.support.browser import ATTACK, browse, needs_browser, png_bytes, value

RUN = {"sparsity", "growth"}
PAIRS = {"o1", "o1-by-size", "jaccard", "jaccard-by-size", "jaccard-random", "direction", "core"}


def attacked() -> OverlapResult:
    """Every text that comes from files, hostile."""
    result = sample(2)
    tensors = tuple(replace(t, name=t.name + ATTACK, scope=ATTACK) for t in result.tensors)
    return replace(result, base=ATTACK, names=(ATTACK, ATTACK), tensors=tensors, left_out=(ATTACK,))


def without_changes() -> OverlapResult:
    result = sample(2)
    zeros = {key: getattr(result.tensors[0], key) * 0 for key in ("changed", "both", "same_direction", "since_last", "ever", "back")}
    zeros |= {"core": 0, "core_by_size": 0.0, "both_by_size": zeros["both"] * 1.0, "both_variance": zeros["both"] * 1.0}
    return replace(result, tensors=tuple(replace(t, **zeros) for t in result.tensors))


PAGES: dict[str, tuple[Callable[[], OverlapResult], bool, set[str]]] = {
    "three": (sample, False, PAIRS),
    "attacked": (attacked, True, RUN | PAIRS),
    "one": (lambda: sample(1), True, {"core"}),
    "run": (lambda: sample(12), True, RUN | PAIRS),
    "nothing-changed": (without_changes, False, set()),
}


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_the_page_in_a_browser(name: str, tmp_path: Path) -> None:
    make, series, drawn = PAGES[name]
    result = make()
    found = browse(render_overlap(result, series), tmp_path, "--window-size=1600,1200")
    assert set(found["charts"]) == drawn
    for chart in found["charts"].values():
        assert chart["marks"] and chart["width"] > 400 and chart["height"] > 60 and chart["label"], found["charts"]
    assert (found["requests"], found["violations"], found["images"]) == ([], [], 0)
    assert len(found["names"]) == len(result.tensors) == found["unfiltered"] and found["overflow"] <= 0
    columns = tensor_columns(result)
    assert found["sortable"] == len(columns)
    for (head, kind), column in zip(columns, found["sorted"], strict=True):
        ways = ("ascending", "descending") if kind == "text" else ("descending", "ascending")
        assert (column["way"], column["back"]) == ways and column["keyboard"], head
        if kind == "number" and head != "elements":
            present = [[value(text) for text in column[turn] if text[0].isdigit()] for turn in ("first", "second")]
            assert present[0] == sorted(present[0], reverse=True) and present[1] == sorted(present[1]), head
    if name == "three":
        assert found["filtered"] == ["model.layers.0.self_attn.q_proj.weight"]
        assert found["shown"] == f"1 of {len(result.tensors)} tensors"
    if name == "attacked":
        shown = ATTACK.replace("\u202e", "\\u202e").replace("\ud800", "\\ud800")
        assert found["title"] == f"{shown}, {shown}, from {shown}" and f"model.norm.weight{shown}" in found["names"]
        assert "checkpoints" in found["headline"]


@needs_browser
def test_a_narrow_page_does_not_scroll_sideways(tmp_path: Path) -> None:
    result = replace(sample(2), names=("long name " * 9, "b" * 99))
    found = browse(render_overlap(result, False), tmp_path, "--window-size=400,900")
    assert found["overflow"] <= 0 and all(chart["marks"] and chart["width"] < 500 for chart in found["charts"].values())


@pytest.mark.parametrize("name", PAGES)
def test_charts_captions_and_escapes(name: str) -> None:
    make, series, drawn = PAGES[name]
    found = overlap_charts.charts(make(), series)
    assert {chart.name for chart in found} == drawn <= set(captions(make())) == RUN | PAIRS
    text = render_overlap(make(), series)
    assert "default-src 'none'; script-src 'sha256-" in html.unescape(text)
    assert text.count("<script") == text.count("</script") == 3 and "<img" not in text.split("<script>")[0]
    text.encode()


def test_many_updates_keep_the_page_small() -> None:
    few, many = (tensor_columns(sample(k)) for k in (MAX_UPDATE_COLUMNS, MAX_UPDATE_COLUMNS + 1))
    assert ("changed by 100", "number") in few and ("least changed", "number") in many and len(many) < len(few)
    assert 'id="pairs"' in render_overlap(sample(3), False) and 'id="pairs"' not in render_overlap(sample(21, layers=1), False)


def test_png_files_are_not_blank(tmp_path: Path) -> None:
    paths = overlap_charts.write_png(sample(), True, tmp_path / "new")
    assert {path.name for path in paths} == {f"{name}.png" for name in RUN | PAIRS}
    for path in paths:
        width, height, rows = png_bytes(path.read_bytes())
        assert width >= 2 * drawing.PNG_WIDTH and 200 < height < 3000
        assert len(set(rows)) > 40, path.name  # not blank
    assert overlap_charts.write_png(attacked(), True, tmp_path / "attacked")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        overlap_charts.write_png(sample(2), False, tmp_path / "file")


def test_cells_name_both_updates_and_leave_out_what_has_no_share() -> None:
    cells = overlap_charts.matrix_cells(sample(2), lambda p: p.o1, overlap_charts.changed_any)
    assert (cells[0]["update"], cells[0]["other"], cells[0]["value"]) == ("100", "200", 1.0)
    assert len(cells) == 2 and cells[1]["value"] < 1
    assert overlap_charts.matrix_cells(without_changes(), lambda p: p.o1, overlap_charts.changed_any) == []


def test_steps_stand_at_the_numbers_in_their_names() -> None:
    result = sample(3)
    assert overlap_charts.step_numbers(result) == ("step, from the names", [100, 200, 300])
    for names in (("a-1", "b-1", "c-1"), ("x", "y", "z"), ("step3", "step2", "step1")):
        assert overlap_charts.step_numbers(replace(result, names=names))[1] == [1, 2, 3]


def test_headlines_say_what_was_found() -> None:
    assert headline(sample(2), False).startswith("The two updates share more changes than sizes explain: excess 100 %, z = ")
    assert re.fullmatch(
        r"They changed .* to .* % of 227,904 weights\. The update that changed less shares 100 % of its changes, more than chance among "
        r"weights of the same size gives \(50\.0 %; the weaker chance, among all weights: .* %\)\. 75\.0 % of what both changed moved "
        r"the same way \(a coin gives 50 %\)\.",
        findings(sample(2), False),
    )
    assert headline(sample(2, same=1.0), False) == "The two updates share no more changes than sizes explain."
    assert "100 % of its changes, about what chance among weights of the same size gives (100 %;" in findings(sample(2, same=1.0), False)
    assert headline(sample(3), False).startswith("The 3 updates share more changes than sizes explain: excess up to 100 %, z up to ")
    assert "of every two updates the one that changed less shares 100 % of its changes" in findings(sample(3), False).lower()
    assert headline(sample(3), True).startswith("Over 3 checkpoints, the share of changed weights went from ")
    assert headline(sample(1), False).endswith(" weights changed.")
    assert headline(without_changes(), False) == "No weight changed: all 227,904 are the same, bit for bit."
    assert headline(replace(sample(2), tensors=()), False) == "There are no weights to compare."
    assert render_overlap(replace(sample(2), tensors=(), left_out=("a.weight",)), True).count("<li>a.weight</li>") == 1


def test_an_update_that_changed_nothing_beside_one_that_did() -> None:
    result = sample(2)
    idle = np.array([0, 1])
    counts = lambda t: {"changed": t.changed * idle, "both": t.both * np.outer(idle, idle), "core": 0}  # noqa: E731
    one = replace(result, tensors=tuple(replace(t, **counts(t)) for t in result.tensors))
    assert headline(one, False) == "Only one of the updates changed any weight, so that they share none."
    assert "checkpoint-100 changed none." in findings(one, False)
    assert {chart.name for chart in overlap_charts.charts(one, False)} == {
        "o1",
        "o1-by-size",
        "jaccard",
        "jaccard-by-size",
        "jaccard-random",
    }


def test_sides_of_chance_go_by_the_exact_deviation() -> None:
    pairs = [replace(sample(2).pair(0, 1), z=z) for z in (None, 0.0, 4.0, 4.01, -4.0, -4.01)]
    assert sides_of_chance(pairs) == [0, 0, 0, 1, 0, -1]


def test_the_first_sentence_is_the_comparison_with_size_and_plain_chance_the_weaker() -> None:
    result = sample(2, same=0.75)
    (pair,) = result.pairs
    assert pair.o1_excess is not None and pair.z is not None
    assert headline(result, False) == (
        f"The two updates share more changes than sizes explain: excess {percent(pair.o1_excess)}, z = {three_digits(pair.z)}."
    )
    told = findings(result, False)
    assert f"({percent(pair.o1_by_size)}; the weaker chance, among all weights: {percent(pair.random_o1)})" in told
    page = render_overlap(result, False)
    assert page.index("share more changes than sizes explain") < page.index("the weaker chance")


def test_the_command_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units = np.arange(64, dtype="<u2") + 0x3C00
    steps = [units + (units % 16 < 4 * k) for k in range(3)]
    base, *updates = (write(tmp_path / f"step{k}.safetensors", {"w": tensor("BF16", (8, 8), x)}) for k, x in enumerate(steps))
    page, pictures = tmp_path / "page.html", tmp_path / "png"
    command = ("overlap", *updates, "--base", base)
    result = run(*command, "--series", "--html", page, "--png", pictures)
    assert result.exit_code == 0 and "since the last" in result.stdout, result.stderr
    assert "Over 2 checkpoints" in page.read_text("utf-8") and (pictures / "growth.png").exists()
    for option, path in (("--html", page), ("--png", pictures)):
        taken = run(*command, option, path)
        assert taken.exit_code == 3 and "exists; choose another output, or give --overwrite" in taken.stderr
    assert run(*command, "--html", page, "--overwrite", "--json").exit_code == 0 and "Over 2" not in page.read_text("utf-8")
    nowhere = run(*command, "--html", tmp_path / "no folder" / "page.html")
    assert nowhere.exit_code == 3 and "there is no folder" in nowhere.stderr
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    missing = run(*command, "--html", tmp_path / "other.html")
    assert missing.exit_code == 3 and "pip install '.[report]'" in missing.stderr and not (tmp_path / "other.html").exists()

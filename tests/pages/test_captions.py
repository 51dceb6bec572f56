"""Captions, headlines and tables claim what the numbers beside them show, and nothing else."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import ckptdiff
from ckptdiff.analysis.modules import APART
from ckptdiff.pages import chart_data, overlap_captions, overlap_charts, overlap_page, overlap_prose, report_page, report_prose
from ckptdiff.pages.report_captions import captions
from ckptdiff.units import percent
from tests.support.checkpoints import TensorData, tensor, write
from tests.support.reports import SCHEMA
from tests.support.sample_overlaps import sample as overlap_sample
from tests.support.sample_reports import low_rank_update, no_update, rl_update, sample_report

pytest.importorskip("altair", reason="needs ckptdiff[report]")


@cache
def made(update: Any) -> dict[str, Any]:
    return sample_report(update)


def shares(text: str) -> list[str]:
    """All shares that a text names."""
    return re.findall(r"[\d.]+(?= %| to [\d.]+ %)", text)


@pytest.mark.parametrize("update", [rl_update, low_rank_update])
def test_captions_name_the_least_and_the_largest_cell(update: Any) -> None:
    cells = [c for c in chart_data.changed_cells(made(update)) if c["module"] not in APART]
    low, high = (pick(cells, key=lambda c: c["value"]) for pick in (min, max))
    text = captions(made(update))["changed"]
    for cell in (low, high):
        assert percent(cell["value"]) in text
        assert low["value"] == high["value"] or f"{percent(cell['value'])} ({cell['module']}" in text
    assert ("much the same everywhere" in text) == (high["value"] <= 1.5 * low["value"])


def test_a_caption_changes_with_the_data() -> None:
    report = copy.deepcopy(made(rl_update))
    before = captions(report)
    one = next(t for t in report["tensors"] if t["module"] == "q")
    one["bit_identical"] = 0
    after = captions(report)
    assert "not the same everywhere" in after["changed"] and "100 % (q of layer 0)" in after["changed"]
    assert before["layers"] != after["layers"]


def test_the_caption_of_ranks_claims_structure_only_below_chance() -> None:
    assert "has structure, as a LoRA's has" in captions(made(low_rank_update))["rank"]
    assert "says nothing of a structure" in captions(made(rl_update))["rank"]
    for update in (rl_update, low_rank_update):
        rank = made(update)["rank"]
        assert percent(rank["rank_share"]) in captions(made(update))["rank"]
        assert percent(rank["random_rank_share"]) in captions(made(update))["random-rank"]


def test_a_fall_is_claimed_only_where_there_is_one() -> None:
    assert "falls from left to right" in captions(made(rl_update))["exponents"]
    report = copy.deepcopy(made(rl_update))
    for row in report["moves"]["exponents"]:
        row["changed"] = row["elements"] // 2
    assert "falls" not in captions(report)["exponents"]


def test_the_paper_is_quoted_only_at_its_tolerance() -> None:
    report = copy.deepcopy(made(rl_update))
    assert "68.5 to 96.0 %" in captions(report)["layers"] and "as in the paper" in captions(report)["sizes"]
    report["settings"]["atol"] = 1e-3
    assert "2505.11711" not in captions(report)["layers"] and "paper" not in captions(report)["sizes"]


def test_every_chart_of_an_unchanged_pair_has_a_caption_that_says_so() -> None:
    found = captions(made(no_update))
    assert found["changed"].endswith("None did.") and "100 % bit for bit" in found["layers"]


@pytest.mark.parametrize("same", [0.5, 1.0])
def test_captions_of_an_overlap_name_its_figures(same: float) -> None:
    result = overlap_sample(3, same=same)
    found, pairs = overlap_captions.captions(result), result.pairs
    assert percent(min(p.jaccard for p in pairs)).removesuffix(" %") in shares(found["jaccard"])
    assert "75.0 %; a coin gives 50 %. More than a coin gives." in found["direction"]
    assert ("None of 3 pairs share more than that." in found["o1-by-size"]) == (same == 1.0)
    opposite = replace(result, tensors=tuple(replace(t, same_direction=t.both // 4) for t in result.tensors))
    assert "Not always more than a coin gives." in overlap_captions.captions(opposite)["direction"]


def test_so_few_changes_that_their_share_says_nothing_are_counted() -> None:
    report = copy.deepcopy(made(rl_update))
    report["totals"] |= {"elements": 10**9, "bit_identical": 10**9 - 1, "one_ulp": 0}
    report["moves"]["ulp"] = [{"from": 128, "to": 255, "count": 1}]
    assert report_prose.headline(report) == "1 of 1.00 billion weights changed, by 128 ulps or more."


@pytest.mark.parametrize("k", [1, 2, 3, 7])
@pytest.mark.parametrize("series", [False, True])
def test_headlines_are_one_short_sentence(k: int, series: bool) -> None:
    lines = [overlap_prose.headline(overlap_sample(k, same=same), series) for same in (0.5, 1.0, 1.5)]
    lines += [report_prose.headline(made(update)) for update in (rl_update, low_rank_update, no_update)]
    for line in lines:
        assert len(line) <= 90 and line.endswith(".") and not re.search(r"[.;] ", line[:-1]), line


def test_a_run_that_only_rises_is_not_said_to_fall() -> None:
    result = overlap_sample(3)
    turned = replace(result, tensors=tuple(replace(t, changed=t.changed[::-1]) for t in result.tensors))
    assert (
        "It falls from" in overlap_captions.captions(result)["sparsity"]
        and "It rises from" in overlap_captions.captions(turned)["sparsity"]
    )


# --- components, experts and packed numbers of real files ---

Model = dict[str, TensorData]


def saved(folder: Path, models: dict[str, Model]) -> dict[str, Any]:
    """The report of a checkpoint of these files, of which in each tensor the first element moves."""
    for side in ("base", "target"):
        for path, model in models.items():
            moved = {}
            for name, (dtype, shape, data) in model.items():
                moved[name] = (dtype, shape, bytes([data[0] ^ (side == "target"), *data[1:]]))
            write(folder / side / path, moved)
    report = ckptdiff.report(folder / "base", folder / "target", rank="none").to_json()
    jsonschema.validate(report, SCHEMA)
    return report


def bf16(*shape: int) -> TensorData:
    return tensor("BF16", shape, np.arange(np.prod(shape), dtype="<u2") % 999 + 0x3C00)


def table(text: str, name: str) -> list[list[str]]:
    """The cells of a table of a page."""
    body = text.split(f'<table id="{name}"')[1].split("</tbody>")[0].split("<tbody>")[1]
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in body.split("</tr>") if "<t" in row]
    return [[cell.replace("<wbr>", "") for cell in row] for row in rows]


def test_experts_have_rows(tmp_path: Path) -> None:
    model = {f"model.layers.{k}.mlp.experts.{e}.up_proj.weight": bf16(8, 8) for k in range(2) for e in range(17)}
    model |= {f"model.layers.{k}.mlp.experts.gate_up_proj": bf16(4, 8, 8) for k in range(2, 4)}
    report = saved(tmp_path, {"model.safetensors": model})
    assert [(row["expert"], row["elements"], row["bit_identical"]) for row in report["experts"]] == [(e, 128, 126) for e in range(17)]
    page = report_page.render_page(report)
    assert table(page, "experts") == [[str(e), "128", "1.56 %", *row[3:]] for e, row in enumerate(table(page, "experts"))]
    assert "2 tensors that hold all experts of a layer count under “experts” alone." in page.replace("&nbsp;", " ")


def test_towers_have_rows_and_their_layers_are_not_added_up(tmp_path: Path) -> None:
    model = {f"model.language_model.layers.{k}.mlp.up_proj.weight": bf16(8, 8) for k in range(2)}
    model |= {f"model.vision_tower.encoder.layers.{k}.mlp.fc1.weight": bf16(4, 4) for k in range(3)} | {"lm_head.weight": bf16(8, 8)}
    report = saved(tmp_path, {"model.safetensors": model})
    assert [(r["component"], r["elements"]) for r in report["components"]] == [
        ("language_model", 128),
        ("vision_tower", 48),
        ("the rest", 64),
    ]
    page = report_page.render_page(report)
    assert [row[:2] for row in table(page, "components")] == [["language_model", "128"], ["vision_tower", "48"], ["the rest", "64"]]
    assert [row[0] for row in table(page, "layers")] == [f"language_model {k}" for k in range(2)] + [f"vision_tower {k}" for k in range(3)]
    assert {c["module"] for c in chart_data.changed_cells(report)} == {"language_model up", "vision_tower up", "the rest lm_head"}


def test_components_of_a_pipeline_have_rows(tmp_path: Path) -> None:
    unet = {"down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight": bf16(8, 8)}
    text = {"text_model.encoder.layers.0.self_attn.q_proj.weight": bf16(4, 4)}
    report = saved(tmp_path, {"unet/diffusion_pytorch_model.safetensors": unet, "text_encoder/model.safetensors": text})
    assert [row["component"] for row in report["components"]] == ["text_encoder/text_model", "unet"]
    assert [row[0] for row in table(report_page.render_page(report), "components")] == ["text_encoder/text_model", "unet"]


def test_a_plain_model_has_no_rows_for_parts_that_it_lacks(tmp_path: Path) -> None:
    report = saved(tmp_path, {"model.safetensors": {f"model.layers.{k}.mlp.up_proj.weight": bf16(8, 8) for k in range(2)}})
    page = report_page.render_page(report)
    assert not {"experts", "components"} & set(report) and 'id="experts"' not in page and 'id="components"' not in page


def test_packed_numbers_are_named(tmp_path: Path) -> None:
    blocks = tensor("U8", (8, 16), np.arange(128, dtype="u1"))
    report = saved(tmp_path, {"model.safetensors": {"model.layers.0.mlp.experts.down_proj_blocks": blocks, "model.norm.weight": bf16(8)}})
    assert "1 tensor of packed numbers, two values a byte: what is counted are bytes." in report_prose.findings(report)
    assert report_prose.headline(report).startswith("1.47 % of 136 elements changed")
    assert [row[3] for row in table(report_page.render_page(report), "tensors")] == ["U8 (packed)", "BF16"]
    four = saved(tmp_path / "four", {"model.safetensors": {"w": tensor("F4", (8, 8), bytes(32))}})
    assert "1 tensor of FP4, stored packed, two values a byte: what is counted are values." in report_prose.findings(four)


def test_names_are_shown_without_their_common_start(tmp_path: Path) -> None:
    names = [f"actor.module.layers.{k}.mlp.up_proj.weight" for k in range(2)] + ["actor.module.norm.weight"]
    page = report_page.render_page(saved(tmp_path, {"model.safetensors": dict.fromkeys(names, bf16(8, 8))}))
    assert [row[0] for row in table(page, "tensors")] == [name.removeprefix("actor.module.") for name in names]
    assert page.count("All names of tensors begin with “model/actor.module.”, which is left out here.") == 1
    text = overlap_page.render_overlap(overlap_sample(3), False)
    assert text.count("All names of updates begin with “checkpoint-”, which is left out here.") == 1
    assert [row[:2] for row in table(text, "pairs")] == [["100", "200"], ["100", "300"], ["200", "300"]]
    assert ">changed by 100<" in text.replace("<button>", "").replace("</button>", "")


@pytest.mark.parametrize("k", [2, 3, 7])
def test_axes_of_an_overlap_name_the_updates(k: int) -> None:
    for chart in overlap_charts.charts(overlap_sample(k), series=False):
        if chart.name not in ("core",):
            x, y = (chart.spec["layer"][0]["encoding"][axis] for axis in "xy")
            names = [str(100 * (j + 1)) for j in range(k)]
            assert x["scale"]["domain"] == names and y["scale"]["domain"][:k] == names, chart.name
            assert x["title"] == "the other update (names without “checkpoint-”)" and x["axis"]["labelOverlap"] is False

"""The ``report`` command and its JSON, which ``spec/report.schema.json`` describes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import ckptdiff
from ckptdiff.patching.patch import open_patch
from ckptdiff.units import byte_size
from ckptdiff.verbs import push
from ckptdiff.verbs.report import report
from tests.support.checkpoints import tensor, write
from tests.support.commands import run
from tests.support.reports import SCHEMA


@pytest.mark.parametrize("rank", ["none", "sample", "all"])
def test_json_follows_the_schema(pair: tuple[Path, Path], rank: str) -> None:
    result = run("report", *pair, "--rank", rank, "--json")
    assert result.exit_code == 0, result.stderr
    value = json.loads(result.stdout)
    jsonschema.validate(value, SCHEMA)
    assert [row["module"] for row in value["modules"]] == ["embedding", "q", "experts", "norm", "bias"]
    assert [row["layer"] for row in value["layers"]] == [0, 1] and value["removed"] == ["old"]
    spectra = {row["name"]: row["spectra"] for row in value["tensors"]}
    assert (value["rank"] is None) == (rank == "none") == (spectra["model.layers.0.mlp.experts.gate_up_proj"] is None)
    if rank != "none":
        assert [s["index"] for s in spectra["model.layers.0.mlp.experts.gate_up_proj"]] == [0, 1, 2]
        assert value["rank"]["matrices"] == 9 and spectra["model.layers.0.input_layernorm.weight"] is None


def test_a_patch_alone(pair: tuple[Path, Path], tmp_path: Path) -> None:
    ckptdiff.make(*pair, tmp_path / "patch.safetensors")
    value = json.loads(run("report", tmp_path / "patch.safetensors", "--json").stdout)
    jsonschema.validate(value, SCHEMA)
    assert value["totals"]["within_atol"] is None and value["totals"]["bit_identical"] == report(*pair, rank="none").totals.bit_identical
    assert "give the base too" in run("report", tmp_path / "patch.safetensors").stdout


def test_the_text_names_what_people_look_for(pair: tuple[Path, Path]) -> None:
    text = run("report", *pair, "--tensors").stdout
    for words in ("update sparsity", "moved by one ulp", "mean rank", "experts", "model.layers.1.mlp.up_proj.bias", "only in the base"):
        assert words in text


@pytest.mark.parametrize("unit", [0x7F80, 0x7FC0], ids=["inf", "nan"])
def test_a_matrix_with_infinities_or_nans_has_no_rank(tmp_path: Path, unit: int) -> None:
    units = np.full((20, 30), 0x3F80, "<u2")
    units[3, 4] = unit
    moved = units.copy()
    moved[5, 6] += 1
    tensors = [{"a": tensor("BF16", (20, 30), x), "b": tensor("BF16", (5, 5), x[10:15, 10:15].copy())} for x in (units, moved)]
    pair = [write(tmp_path / f"{k}.safetensors", side) for k, side in enumerate(tensors)]
    result = run("report", *pair, "--json")
    value = json.loads(result.stdout)
    jsonschema.validate(value, SCHEMA)
    assert result.exit_code == 0 and [row["spectra"] is None for row in value["tensors"]] == [True, False]
    assert value["without_rank"] == ["a"] and "no rank: inf or NaN" in run("report", *pair).stdout


def test_a_device_that_cannot_be_used(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    missing = run("report", *pair, "--device", "cpu")
    assert missing.exit_code == 3 and "needs torch; in a clone of the ckptdiff repository: pip install '.[torch]'" in missing.stderr
    monkeypatch.undo()
    pytest.importorskip("torch", reason="torch is not installed: pip install '.[torch]'")
    wrong = run("report", *pair, "--device", "nonsense")
    assert wrong.exit_code == 3 and "torch cannot use the device nonsense" in wrong.stderr and "leave --device out" in wrong.stderr
    same = report(*pair, rank="all", device="cpu").rank, report(*pair, rank="all").rank
    assert same[0] is not None and same[1] is not None and same[0].rank_share == same[1].rank_share


def test_what_a_stored_report_takes_is_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    patch, plain = tmp_path / "patch.safetensors", tmp_path / "plain.safetensors"
    shown = run("make", *pair, "-o", patch, "--report").stdout
    assert "of the patch" not in run("make", *pair, "-o", plain).stdout
    found = re.search(r"^ +report  (\S+ k?B) of the patch$", shown, re.MULTILINE)
    with open_patch(patch) as opened:
        assert found and found[1] == byte_size(len(opened.report or b"")) and len(opened.report or b"") > 500


def test_a_card_without_a_picture_says_why(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    plan, measured = push._Plan(), report(*pair, rank="none")
    assert push._picture(measured, plan) is not None and plan.notes == []
    monkeypatch.setitem(sys.modules, "altair", None)
    assert push._picture(measured, plan) is None
    assert len(plan.notes) == 1 and plan.notes[0].startswith("the card has no picture of what changed: charts and pages need Altair")


def test_pictures_without_their_libraries(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "altair", None)
    result = run("report", *pair, "--html", tmp_path / "page.html")
    assert result.exit_code == 3 and "pip install '.[report]'" in result.stderr


def test_usage_errors_name_what_is_wrong(pair: tuple[Path, Path], tmp_path: Path) -> None:
    alone = run("report", pair[0])
    assert alone.exit_code == 2 and "is not a patch: give BASE and TARGET" in alone.stderr
    patch, before = tmp_path / "patch.safetensors", pair[0].read_bytes()
    ckptdiff.make(*pair, patch)
    page = run("report", tmp_path / "patch.safetensors", "--html", tmp_path / "page.html")
    assert page.exit_code == 2 and "need BASE too" in page.stderr
    wrong = run("report", pair[1], tmp_path / "patch.safetensors")
    assert wrong.exit_code == 3 and "is already the target" in wrong.stderr
    for option in ((), ("--overwrite",)):
        taken = run("report", *pair, "--rank", "none", "--html", pair[0], *option)
        assert taken.exit_code == 3 and "the output is the input" in taken.stderr and pair[0].stat().st_size > 1000
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(pair[0])
    (tmp_path / "hard.html").hardlink_to(pair[0])
    for page in (folder / "model.safetensors", folder / "page.html", folder, tmp_path / "hard.html", pair[0]):
        for option in ("--html", "--png"):
            taken = run("report", folder, pair[1], "--rank", "none", option, page, "--overwrite")
            assert taken.exit_code == 3 and re.search("the output (is|lies in|holds) the input", taken.stderr), taken.stderr
    assert pair[0].read_bytes() == before
    link = tmp_path / "link.html"
    link.symlink_to(tmp_path / "elsewhere")
    for path, option, words in (
        (link, "--html", "is a link"),
        (folder.parent, "--html", "holds the input"),
        (patch, "--png", "a folder cannot"),
    ):
        taken = run("report", *pair, "--rank", "none", option, path, "--overwrite")
        assert taken.exit_code == 3 and words in taken.stderr, taken.stderr
    taken = run("report", *pair, "--rank", "none", "--html", __file__)
    assert taken.exit_code == 3 and "exists; choose another output, or give --overwrite" in taken.stderr
    swapped = run("report", tmp_path / "patch.safetensors", pair[0])
    assert swapped.exit_code == 2 and "is a patch: give the base first" in swapped.stderr
    for option, value in (("--atol", "1e-4"), ("--rank", "all"), ("--include", "*")):
        ignored = run("report", tmp_path / "patch.safetensors", option, value)
        assert ignored.exit_code == 2 and f"{option} needs BASE too: a patch alone says what was stored in it" in ignored.stderr
    gone = run("report", tmp_path / "gone")
    assert gone.exit_code == 3 and "gone: no such file or folder" in gone.stderr
    nowhere = run("report", *pair, "--rank", "none", "--png", tmp_path / "no folder" / "png")
    assert nowhere.exit_code == 3 and "there is no folder" in nowhere.stderr
    missing = run("report", tmp_path / "no such", pair[1])
    assert missing.exit_code == 3 and "no such" in missing.stderr

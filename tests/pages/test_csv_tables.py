"""``--csv``: one row a tensor, or a pair and tensor, whose numbers are those of the JSON to the last digit."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ckptdiff
from ckptdiff.pages.csv_tables import COUNTED, OVERLAP_COLUMNS, PAIR_FIELDS, REPORT_COLUMNS, csv_of, overlap_table, report_table
from tests.support.checkpoints import tensor, write
from tests.support.commands import run
from tests.support.reports import SCHEMA

COUNTS = ("elements", "bit_identical", "equal", "within_atol", "within_rtol", "within_atol_rounded", "one_ulp", "up", "down")


@pytest.fixture
def steps(tmp_path: Path) -> list[Path]:
    """A base and two updates of it, with a name that CSV must quote."""
    units = np.arange(4096, dtype="<u2") % 512 + 0x3A00
    paths = []
    for k in range(3):
        moved = units + ((units * 7 + np.arange(4096)) % 16 < 3 * k)
        tensors = {f"model.layers.{i}.mlp.up_proj.weight": tensor("BF16", (64, 64), np.roll(moved, i * k)) for i in range(2)}
        tensors['odd, "name"\n'] = tensor("BF16", (8,), moved[:8])
        paths.append(write(tmp_path / f"step-{k}.safetensors", tensors))
    return paths


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def same(cell: str, value: Any) -> bool:
    """Whether a cell says exactly this value."""
    if value is None:
        return cell == ""
    if isinstance(value, list):
        return bool(json.loads(cell) == value) if value else cell == ""
    return cell == value if isinstance(value, str) else type(value)(cell) == value


def test_rows_of_a_report_are_those_of_its_json(steps: list[Path]) -> None:
    found = ckptdiff.report(steps[0], steps[1], rank="all")
    rows, value = rows_of(csv_of(report_table(found))), found.to_json()
    assert len(rows) == len(value["tensors"]) == 3 and tuple(rows[0]) == REPORT_COLUMNS
    fields = [name for name in REPORT_COLUMNS if name in SCHEMA["properties"]["tensors"]["items"]["properties"]]
    assert set(COUNTS) < set(fields)
    for row, one in zip(rows, value["tensors"], strict=True):
        for name in fields:
            assert same(row[name], one[name]), name
        assert float(row["sparsity"]) == one["bit_identical"] / one["elements"]
        spectra = [s for s in one["spectra"] or () if s["stable_rank"]]
        assert int(row["matrices"]) == len(spectra) <= 1
        for name in ("rank", "effective_rank", "random_rank"):
            assert same(row[name], spectra[0][name] if spectra else None), name
        if spectra:
            assert float(row["stable_rank"]) == spectra[0]["stable_rank"]
            assert float(row["rank_share"]) == spectra[0]["rank"] / min(spectra[0]["rows"], spectra[0]["columns"])
    assert sum(row["stable_rank"] != "" for row in rows) == 2  # the vector has no rank
    assert sum(int(row["one_ulp"]) for row in rows) == value["totals"]["one_ulp"] > 0


def test_ranks_of_a_stack_are_means_over_its_matrices_that_changed(tmp_path: Path) -> None:
    units = np.arange(3 * 64, dtype="<u2").reshape(3, 8, 8) % 7 + 0x3C00
    moved = units.copy()
    moved[0, 0, 0] += 1
    moved[1, :3, :3] += 5 * np.eye(3, dtype="<u2")
    sides = {"a.safetensors": units, "b.safetensors": moved}
    paths = [write(tmp_path / name, {"experts.w": tensor("BF16", (3, 8, 8), x)}) for name, x in sides.items()]
    (row,) = rows_of(csv_of(report_table(ckptdiff.report(*paths, rank="all"))))
    assert (row["matrices"], row["rank"], row["rank_share"]) == ("2", "2.0", "0.25")


def test_rows_of_a_patch_alone_leave_open_what_it_does_not_say(steps: list[Path], tmp_path: Path) -> None:
    patch = tmp_path / "step.patch.safetensors"
    assert run("make", steps[0], steps[1], "-o", patch).exit_code == 0
    rows = rows_of(csv_of(report_table(ckptdiff.report_patch(patch))))
    assert all(row["elements"] and row["bit_identical"] and row["within_atol"] == row["up"] == "" for row in rows) and len(rows) == 3


def test_rows_of_an_overlap_are_those_of_its_json(steps: list[Path]) -> None:
    found = ckptdiff.overlap([steps[1], steps[2], steps[1]], steps[0])
    rows, value = rows_of(csv_of(overlap_table(found))), found.to_json()
    assert tuple(rows[0]) == OVERLAP_COLUMNS
    whole, parts = ([row for row in rows if row["level"] == level] for level in ("all", "tensor"))
    assert len(whole) == 3 and len(parts) == 3 * len(value["tensors"]) and len(rows) == len(whole) + len(parts)
    for row, pair in zip(whole, value["pairs"], strict=True):
        assert all(same(row[name], pair[name]) for name in PAIR_FIELDS)
        assert (row["first_name"], row["scope"], row["name"]) == (value["names"][pair["first"]], "", "")
        inside = [part for part in parts if (part["first"], part["second"]) == (row["first"], row["second"])]
        for name in COUNTED[:-2]:
            assert int(row[name]) == sum(int(part[name]) for part in inside), name
    tensors = {t["name"]: t for t in value["tensors"]}
    for part in parts:
        one, i, j = tensors[part["name"]], int(part["first"]), int(part["second"])
        assert (int(part["elements"]), int(part["both"])) == (one["elements"], one["both"][i][j])
        assert (int(part["changed_first"]), int(part["changed_second"])) == (one["changed"][i], one["changed"][j])
        assert float(part["both_by_size"]) == one["both_by_size"][i][j] and float(part["both_variance"]) == one["both_variance"][i][j]
        assert int(part["both_same_direction"]) == one["same_direction"][i][j]


@pytest.mark.parametrize("command", ["report", "overlap"])
def test_the_option_writes_the_table_once(command: str, steps: list[Path], tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    arguments = ("report", steps[0], steps[1]) if command == "report" else ("overlap", steps[1], steps[2], "--base", steps[0])
    result = run(*arguments, "--csv", table)
    assert result.exit_code == 0 and str(table) in result.stdout, result.stderr
    text = table.read_bytes().decode("utf-8")
    assert {row["name"] for row in rows_of(text)} >= {'odd, "name"\n', "model.layers.0.mlp.up_proj.weight"}
    refused = run(*arguments, "--csv", table)
    assert refused.exit_code == 3 and "exists; choose another output, or give --overwrite" in refused.stderr
    table.write_text("old")
    assert run(*arguments, "--csv", table, "--overwrite", "--json").exit_code == 0 and table.read_bytes().decode() == text
    nowhere = run(*arguments, "--csv", tmp_path / "no folder" / "table.csv")
    assert nowhere.exit_code == 3 and "there is no folder" in nowhere.stderr
    over_input = run(*arguments, "--csv", steps[0], "--overwrite")
    assert over_input.exit_code != 0 and steps[0].stat().st_size > 1000

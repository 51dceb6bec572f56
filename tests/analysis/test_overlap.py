"""Overlap of updates, checked against Python sets of indices and the paper's formulas."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

import ckptdiff
from ckptdiff.analysis.overlap import distinct_names
from ckptdiff.errors import BaseMismatchError, CheckpointError, HubError
from ckptdiff.units import MISSING, percent_of
from ckptdiff.verbs.overlap import overlap
from tests.support.checkpoints import tensor, write
from tests.support.commands import run

SHAPES = {"model.layers.0.mlp.up_proj.weight": (1500, 900), "model.norm.weight": (37,)}


def updates(folder: Path, k: int, seed: int = 0) -> tuple[Path, list[Path], dict[str, np.ndarray]]:
    """A base and k checkpoints of one run; units of base and checkpoints by tensor, one row each."""
    rng, found = np.random.default_rng(seed), {}
    for name, shape in SHAPES.items():
        rows = [rng.normal(0, 0.02, shape).astype("<f4").view("<u4").reshape(-1) >> 16]
        for _ in range(k):
            moved, back = rng.random(rows[0].size) < 0.1, rng.random(rows[0].size) < 0.3
            rows.append(np.where(back, rows[0], rows[-1] + moved * rng.choice([1, -1], rows[0].size)))
        found[name] = np.array(rows).astype("<u2")
    paths = []
    for i in range(k + 1):
        tensors = {name: tensor("BF16", SHAPES[name], rows[i]) for name, rows in found.items()}
        paths.append(write(folder / f"step{i}.safetensors", tensors))
    return paths[0], paths[1:], found


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["r1/checkpoint-100", "r2/checkpoint-100"], ("r1/checkpoint-100", "r2/checkpoint-100")),
        (["a/r1/final", "b/r1/final", "a/r1/first"], ("a/r1/final", "b/r1/final", "first")),
        (["/x/patch", "patch", "y/patch/"], ("x/patch", "patch", "y/patch")),
        (["org/name@v1", "org/name@v2", "hf://org/other"], ("name@v1", "name@v2", "other")),
        (["a/p", "a/p", "b/p"], ("a/p", "a/p (2)", "b/p")),
        (["/p", "p"], ("/p", "p")),
        ([Path("x.safetensors")], ("x.safetensors",)),
        (["."], (".",)),
    ],
)
def test_names_are_the_least_of_a_path_that_tells_updates_apart(paths: list[str], names: tuple[str, ...]) -> None:
    assert distinct_names(paths) == names


def test_names_are_the_same_everywhere(tmp_path: Path) -> None:
    base, paths, _ = updates(tmp_path, 2)
    for k, path in enumerate(paths):
        (tmp_path / f"run{k}").mkdir()
        path.rename(tmp_path / f"run{k}" / "model.safetensors")
    given = [tmp_path / f"run{k}" / "model.safetensors" for k in range(2)]
    names = ["run0/model.safetensors", "run1/model.safetensors"]
    assert json.loads(run("overlap", *given, "--base", base, "--json").stdout)["names"] == names
    text = run("overlap", *given, "--base", base).stdout
    assert [line.split()[1] for line in text.split("\n\n")[1].splitlines()[1:]] == names
    assert text.split("\n\n")[2].splitlines()[1].split()[:2] == names


def test_a_series_has_a_row_for_each_checkpoint(tmp_path: Path) -> None:
    """With what it shares with the one before and with the last one."""
    base, paths, units = updates(tmp_path, 4)
    sets = [{(name, int(x)) for name, rows in units.items() for x in np.flatnonzero(rows[0] != rows[k])} for k in range(1, 5)]
    text = run("overlap", *paths, "--base", base, "--series").stdout
    head, *rows = text.split("\n\n")[1].splitlines()
    assert re.split(r"  +", head) == [
        *("#", "update", "changed", "since the last", "ever changed", "changed and back", "kept", "kept to the end", "of the last"),
    ]
    legend = text.split("\n\n")[2]
    assert len(text.split("\n\n")) == 3 and len(rows) == 4 and all(f"{head}: " in legend for head in ("since the last", "kept to the end"))
    for k, row in enumerate(rows):
        kept = percent_of(len(sets[k - 1] & sets[k]), len(sets[k - 1])) if k else MISSING
        ends = [percent_of(len(sets[k] & sets[3]), len(side)) if k < 3 else MISSING for side in (sets[k], sets[3])]
        assert re.split(r"  +", row)[-3:] == [kept, *ends]
    tensors = run("overlap", *paths, "--base", base, "--series", "--tensors").stdout.split("\n\n")[3].splitlines()
    assert len(tensors) == 1 + 3 * len(SHAPES), "each tensor with the checkpoint before"
    assert len(json.loads(run("overlap", *paths, "--base", base, "--series", "--json").stdout)["pairs"]) == 6


def test_counts_are_those_of_sets(tmp_path: Path) -> None:
    base, paths, units = updates(tmp_path, 3)
    result = overlap(paths, base)
    n = sum(rows[0].size for rows in units.values())
    sets = [{(name, int(x)) for name, rows in units.items() for x in np.flatnonzero(rows[0] != rows[k])} for k in (1, 2, 3)]
    for pair in result.pairs:
        a, b = sets[pair.first], sets[pair.second]
        assert pair.o1 == len(a & b) / len(a) and pair.o2 == len(a & b) / len(b)
        assert pair.random_o1 == len(b) / n and pair.random_o2 == len(a) / n
        assert pair.jaccard == len(a & b) / len(a | b)
        values = {name: (rows.astype("<u4") << 16).view("<f4") for name, rows in units.items()}
        ups = [{(name, i) for name, i in a & b if values[name][k + 1][i] > values[name][0][i]} for k in (pair.first, pair.second)]
        assert pair.same_direction == 1 - len(ups[0] ^ ups[1]) / len(a & b)
    assert result.core == len(sets[0] & sets[1] & sets[2])
    assert [step.sparsity for step in result.steps] == [1 - len(s) / n for s in sets]
    assert [step.ever for step in result.steps] == [len(set.union(*sets[: k + 1])) / n for k in range(3)]
    assert [step.back for step in result.steps] == [len(set.union(*sets[: k + 1]) - sets[k]) / n for k in range(3)]
    changes = [sum(int(np.sum(rows[k] != rows[k + 1])) for rows in units.values()) for k in range(3)]
    assert [step.since_last for step in result.steps] == [count / n for count in changes]


def nameless(value: dict[str, Any]) -> dict[str, Any]:
    """An overlap without the names of its updates."""
    return value | {"names": None, "steps": [step | {"name": None} for step in value["steps"]]}


def test_patches_stand_for_their_targets(tmp_path: Path) -> None:
    base, paths, _ = updates(tmp_path, 2)
    patches = []
    for k, path in enumerate(paths):
        ckptdiff.make(base, path, tmp_path / f"patch{k}.safetensors")
        patches.append(tmp_path / f"patch{k}.safetensors")
    expected = nameless(overlap(paths, base).to_json())
    for mixed in (patches, [paths[0], patches[1]]):
        assert nameless(overlap(mixed, base, threads=1).to_json()) == expected
    with pytest.raises(BaseMismatchError, match=r"is already the target|is not the base"):
        overlap(patches, paths[0])
    with pytest.raises(HubError, match=r"patch1.safetensors: does not say which repo has its base: give the base with --base"):
        overlap([paths[0], patches[1]])
    with pytest.raises(CheckpointError, match=r"checkpoints do not name their base: give it with --base"):
        overlap(paths)


def test_independent_updates_are_at_their_expectation(tmp_path: Path) -> None:
    """Updates at random: o1 and Jaccard are what the formulas say, within five standard deviations."""
    rng, n = np.random.default_rng(1), 400_000
    base = rng.integers(0x3C00, 0x3E00, n).astype("<u2")
    units = [base, *(base + (rng.random(n) < p) for p in (0.2, 0.05))]
    origin, *paths = (write(tmp_path / f"{k}.safetensors", {"w": tensor("BF16", (400, 1000), x)}) for k, x in enumerate(units))
    pair = overlap(paths, origin).pairs[0]
    assert abs(pair.o1 - pair.random_o1) < 5 * (0.05 / (0.2 * n)) ** 0.5
    assert abs(pair.jaccard - pair.expected_jaccard) < 0.003


@pytest.mark.parametrize(("dtype", "unit", "shift"), [("BF16", "<u2", 7), ("F32", "<u4", 23), ("F64", "<u8", 52), ("F8_E4M3", "u1", 3)])
def test_chance_by_size_knows_that_small_weights_change_more(tmp_path: Path, dtype: str, unit: str, shift: int) -> None:
    """Independent updates, likelier at smaller weights: far above plain chance, and at the chance by size, as summed in Python."""
    rng, n = np.random.default_rng(2), 200_000
    exponent = rng.integers(1, 6, n)
    base = (exponent << shift).astype(unit)
    masks = [rng.random(n) < top / exponent**3 for top in (0.9, 0.3)]
    units = [base, *(base + m.astype(unit) for m in masks)]
    origin, *paths = (write(tmp_path / f"{k}.safetensors", {"w": tensor(dtype, (n,), x)}) for k, x in enumerate(units))
    result = overlap(paths, origin)
    pair = result.pairs[0]
    groups = [(np.sum(exponent == e), *(np.sum(m & (exponent == e)) for m in masks)) for e in range(1, 6)]
    both = sum(a * b / size for size, a, b in groups)
    assert pair.o1_by_size == pytest.approx(both / masks[0].sum()) and pair.o2_by_size == pytest.approx(both / masks[1].sum())
    assert pair.jaccard_by_size == pytest.approx(both / (masks[0].sum() + masks[1].sum() - both))
    assert result.tensors[0].core_by_size == pytest.approx(both)
    assert pair.o2 > 2 * pair.random_o2 and abs(pair.o2 - pair.o2_by_size) < 0.01


def test_integers_have_one_size(tmp_path: Path) -> None:
    units = np.arange(1000, dtype="u1")
    paths = [write(tmp_path / f"{k}.safetensors", {"w": tensor("U8", (1000,), units + (units < 10 * k))}) for k in range(3)]
    pair = overlap(paths[1:], paths[0]).pairs[0]
    assert pair.o1_by_size == pytest.approx(pair.random_o1) and pair.jaccard_by_size == pytest.approx(pair.expected_jaccard)


def test_tensors_that_are_not_compared_are_named(tmp_path: Path) -> None:
    """Those that the base lacks, that an update lacks, and of another shape."""
    units = np.arange(12, dtype="<u2")
    base = write(tmp_path / "base.safetensors", {name: tensor("BF16", (12,), units) for name in ("all", "one lacks it", "resized")})
    first = {"all": tensor("BF16", (12,), units + 1), "resized": tensor("BF16", (6,), units[:6]), "new": tensor("BF16", (12,), units + 9)}
    second = {name: tensor("BF16", (12,), units) for name in ("all", "one lacks it", "resized")}
    paths = [write(tmp_path / f"{k}.safetensors", side) for k, side in enumerate((first, second))]
    result = overlap(paths, base)
    assert [t.name for t in result.tensors] == ["all"] and result.left_out == ("new", "one lacks it", "resized")
    assert "left out" in run("overlap", *paths, "--base", base).stdout


def test_tolerance_and_nothing_changed(tmp_path: Path) -> None:
    base, paths, units = updates(tmp_path, 1)
    values = {name: (rows.astype("<u4") << 16).view("<f4").astype(np.float64) for name, rows in units.items()}
    row = overlap(paths, base, atol=1e-4).tensors[0]
    assert int(row.changed[0]) == int(np.sum(np.abs(values[row.name][1] - values[row.name][0]) > 1e-4))
    same = overlap([base, base], base)
    assert (same.pairs[0].o1, same.pairs[0].jaccard, same.steps[1].sparsity) == (0.0, 0.0, 1.0)
    assert all(same.to_json()["pairs"][0][key] is None for key in ("o1", "o2", "jaccard", "expected_jaccard", "same_direction"))
    assert f" {MISSING}  " in run("overlap", base, base, "--base", base).stdout
    half = overlap([base, *paths], base).to_json()["pairs"][0]
    assert (half["o1"], half["o2"], half["jaccard"], half["same_direction"]) == (None, 0.0, 0.0, None)
    with pytest.raises(CheckpointError, match="at least one"):
        overlap([], base)
    with pytest.raises(CheckpointError, match=r"updates: expected several, found '.*': put it in a list"):
        overlap(str(base), base)
    other = write(tmp_path / "other.safetensors", {"other": tensor("BF16", (3,), np.zeros(3, "<u2"))})
    with pytest.raises(CheckpointError, match="have nothing in common: no tensor of the one was made from the other's"):
        overlap(paths, other)


def test_the_commands_print_it(tmp_path: Path) -> None:
    base, paths, _ = updates(tmp_path, 2)
    result = run("overlap", *paths, "--base", base, "--json")
    value = json.loads(result.stdout)
    jsonschema.validate(value, json.loads((Path(__file__).parents[2] / "spec" / "overlap.schema.json").read_text()))
    assert value["schema"] == "ckptdiff-overlap/1" and len(value["pairs"]) == 1 and len(value["steps"]) == 2
    text = run("overlap", *map(str, paths), "--base", str(base), "--series", "--tensors").stdout
    assert "changed and back" in text and "Jaccard" in text and "model.norm.weight" in text
    assert "same direction" in run("compare", *map(str, paths), "--base", str(base)).stdout
    for option in ((), ("--overwrite",)):
        ruined = run("overlap", *paths, "--base", base, "--html", paths[1], *option)
        assert ruined.exit_code == 3 and "the output is the input" in ruined.output and paths[1].stat().st_size > 10_000
    without = run("overlap", str(paths[0]))
    assert without.exit_code == 3 and "give it with --base" in without.output

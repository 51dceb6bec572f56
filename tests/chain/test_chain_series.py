"""report, overlap and mask of a chain: the same numbers as of the checkpoints themselves, each patch decoded once."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import ckptdiff
from ckptdiff import codecs
from tests.support.chains import run_of_files, training_run
from tests.support.checkpoints import perturb, random_tensor, tensor, tree, write
from tests.support.commands import run
from tests.support.documents import ROOT
from tests.support.layouts import steps as odd_steps

STEPS = range(100, 600, 100)


def same_numbers(chain: object, base: Path, checkpoints: list[Path], atol: float = 0.0, **more: object) -> None:
    """Compare what the chain gives with what its checkpoints give."""
    direct = ckptdiff.overlap(checkpoints, base, atol=atol).to_json()
    found = ckptdiff.chain_overlap(chain, base, atol=atol, **more).to_json()  # type: ignore[arg-type]
    report = ckptdiff.chain_report(chain, base, atol=atol, **more).to_json()  # type: ignore[arg-type]
    jsonschema.validate(report, json.loads((ROOT / "spec" / "chain-report.schema.json").read_text()))
    rows = {(row["scope"], row["name"]): row for row in direct["tensors"]}
    assert {(row["scope"], row["name"]): row for row in found["tensors"]} == rows
    assert [{**row, "name": ""} for row in found["steps"]] == [{**row, "name": ""} for row in direct["steps"]]
    for row in report["tensors"]:
        assert row == {key: rows[row["scope"], row["name"]][key] for key in row}
    assert [{key: row[key] for key in row if key != "name"} for row in direct["steps"]] == [
        {key: row[key] for key in row if key != "step"} for row in report["steps"]
    ]
    union = ckptdiff.Mask.union(*(ckptdiff.Mask.from_patch(path, base, atol=atol) for path in checkpoints))
    assert ckptdiff.chain_mask(chain, base, atol=atol, **more) == union  # type: ignore[arg-type]


@pytest.mark.parametrize("atol", [0.0, 1e-3])
def test_the_numbers_are_those_of_the_checkpoints(atol: float, tmp_path: Path) -> None:
    made = training_run(tmp_path / "run", 6)
    ckptdiff.chain_add(tmp_path / "chain", made, keyframe_every=2)
    before = tree(tmp_path)
    same_numbers(tmp_path / "chain", made[0], made[1:], atol)
    same_numbers(tmp_path / "chain", made[0], [made[1], made[4], made[5]], atol, steps=["100", "400-500"])
    assert tree(tmp_path) == before


def test_after_steps_were_removed_and_at_a_url(tmp_path: Path) -> None:
    made = training_run(tmp_path / "run", 6)
    chain = f"memory://{tmp_path.name}/series"
    ckptdiff.chain_add(chain, made)
    ckptdiff.chain_prune(chain, ["100", "300"], base=made[0])
    same_numbers(chain, made[0], [made[1], made[3], made[5]])


@pytest.mark.parametrize("dtype", ["F6_E2M3", "C64"])
def test_every_kind_of_element(dtype: str, tmp_path: Path, rng: np.random.Generator) -> None:
    state, made = {"w": random_tensor(rng, dtype, [64, 24]), "same": random_tensor(rng, dtype, [8])}, list[Path]()
    for k in range(4):
        made.append(write(tmp_path / f"step_{k}.safetensors", state))
        state = {**state, "w": perturb(rng, state["w"], 0.2)}
    ckptdiff.chain_add(tmp_path / "chain", made)
    same_numbers(tmp_path / "chain", made[0], made[1:])


def test_each_patch_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run_of_files(tmp_path / "run", 6)
    ckptdiff.chain_add(tmp_path / "chain", made)
    decoded, apply_change = [0], codecs.apply_change

    def counting(*arguments: object) -> object:
        decoded[0] += 1
        return apply_change(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(codecs, "apply_change", counting)
    report = ckptdiff.chain_report(tmp_path / "chain", made[0])
    assert len(report.numbers) == 5 and 0 < decoded[0] <= 5 * len(report.tensors)


def test_names_and_pieces_that_change_on_the_way(tmp_path: Path, rng: np.random.Generator) -> None:
    """What does not come from the same part of the base in all steps is left out, and named."""
    made = odd_steps(tmp_path, rng, 20)
    for k, path in enumerate(made):
        ckptdiff.chain_add(tmp_path / "chain", path, base=made[0], step=k + 1) if k else None
    report = ckptdiff.chain_report(tmp_path / "chain", made[0])
    assert {"e"} <= {row.name for row in report.tensors} and "fresh" in report.left_out
    for row in report.tensors:
        assert (row.back == row.ever - row.changed).all()


def test_refusals(tmp_path: Path) -> None:
    made = run_of_files(tmp_path / "run", 3)
    chain = tmp_path / "chain"
    ckptdiff.chain_add(chain, made)
    with pytest.raises(ckptdiff.CheckpointError, match="does not record where its base is: give it with --base"):
        ckptdiff.chain_report(chain)
    with pytest.raises(ckptdiff.CheckpointError, match="has 2 steps, 100 to 200, and none that was chosen"):
        ckptdiff.chain_report(chain, made[0], steps=["300-400"])
    with pytest.raises(ckptdiff.CheckpointError, match="'new' says no steps to keep or take: expected a step, A-B"):
        ckptdiff.chain_report(chain, made[0], steps=["new"])
    with pytest.raises(ckptdiff.BaseMismatchError, match=r"tensor|target"):
        ckptdiff.chain_report(chain, made[1])


def test_too_many_patches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run_of_files(tmp_path / "run", 5)
    ckptdiff.chain_add(tmp_path / "chain", made)
    monkeypatch.setattr("ckptdiff.verbs.chain_series.MAX_PATCHES", 3)
    with pytest.raises(ckptdiff.CheckpointError, match="4 patches lead through 4 steps, expected at most 3: choose some by --steps"):
        ckptdiff.chain_report(tmp_path / "chain", made[0])


def test_the_commands(tmp_path: Path) -> None:
    made, chain = run_of_files(tmp_path / "run", 4), tmp_path / "chain"
    ckptdiff.chain_add(chain, made)
    shown = run("report", chain, "--base", made[0], "--tensors")
    assert shown.exit_code == 0 and "changed and back" in shown.stdout and "a.weight" in shown.stdout, shown.output
    value = json.loads(run("report", chain, "--base", made[0], "--json", "--steps", "last:2").stdout)
    assert [row["step"] for row in value["steps"]] == [200, 300]
    series = run("overlap", "--series", chain, "--base", made[0])
    assert series.exit_code == 0 and "step 300" in series.stdout and "kept to the end" in series.stdout
    masked = json.loads(run("mask", chain, "--base", made[0], "-o", tmp_path / "mask.safetensors", "--json").stdout)
    assert masked["elements"] == ckptdiff.chain_mask(chain, made[0]).total > 0
    assert "--rank does not go with a chain" in run("report", chain, "--base", made[0], "--rank", "none").stderr
    assert "--steps does not go with what is no chain" in run("mask", made[1], "--steps", "1", "-o", tmp_path / "m").stderr
    assert "--base does not go with what is no chain" in run("report", made[0], made[1], "--base", made[0]).stderr


@pytest.mark.parametrize("wanted", ["bf16", "f32", "f16"])
def test_a_chain_is_cast_while_it_is_read(tmp_path: Path, rng: np.random.Generator, wanted: str) -> None:
    """Steps of F32, whose blocks are twice as long as those of a cast to 16 bits; the same numbers as of the checkpoints, cast."""
    state, made = {"w": rng.normal(0, 0.02, (900, 900)).astype("<f4"), "v": np.ones(5, "<f4")}, list[Path]()
    for k in range(4):
        made.append(write(tmp_path / f"step_{k}.safetensors", {name: tensor("F32", x.shape, x) for name, x in state.items()}))
        state = state | {"w": state["w"] + (rng.random((900, 900)) < 0.1) * rng.normal(0, 1e-4, (900, 900)).astype("<f4")}
    ckptdiff.chain_add(tmp_path / "chain", made, keyframe_every=2)
    direct = ckptdiff.overlap(made[1:], made[0], as_dtype=wanted)
    found, report = (of(tmp_path / "chain", made[0], as_dtype=wanted) for of in (ckptdiff.chain_overlap, ckptdiff.chain_report))
    assert found.to_json()["tensors"] == direct.to_json()["tensors"] and found.cast == report.cast == wanted.upper()
    assert [row.sparsity for row in report.steps] == [row.sparsity for row in direct.steps]
    union = ckptdiff.Mask.union(*(ckptdiff.Mask.from_patch(path, made[0], as_dtype=wanted) for path in made[1:]))
    assert ckptdiff.chain_mask(tmp_path / "chain", made[0], as_dtype=wanted) == union
    shown = run("report", tmp_path / "chain", "--base", made[0], "--as", wanted)
    assert shown.exit_code == 0 and f"as {wanted.upper()}" in shown.stdout


def test_a_chain_in_a_notebook(tmp_path: Path) -> None:
    made = training_run(tmp_path / "run", 4)
    ckptdiff.chain_add(tmp_path / "chain", made)
    found = ckptdiff.chain_report(tmp_path / "chain", made[0])
    assert repr(found).startswith("<ckptdiff.ChainReport ") and "3 steps, the last changes " in repr(found) and len(repr(found)) < 250
    assert found._repr_html_().count("<tr>") == 4
    pandas = pytest.importorskip("pandas")
    steps, series = found.to_frame(), found.to_frame("series")
    assert steps["step"].tolist() == list(found.numbers) and steps["sparsity"].tolist() == [row.sparsity for row in found.steps]
    assert series["changed"].dtype == pandas.Int64Dtype() and len(series) == 3 * len(found.tensors)
    assert series["changed"].sum() == sum(int(t.changed.sum()) for t in found.tensors)

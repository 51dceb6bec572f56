"""What ``make`` and ``compare`` say of how tensors were paired, and what ``make`` refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckptdiff.checkpoint.pairing import pair
from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.io.source import LocalFile
from tests.support.checkpoints import TensorData, bf16, perturb, tree, write
from tests.support.commands import run
from tests.support.roundtrips import Tensors

SHAPES = {"embed.weight": (300, 64), "norm.weight": (64,)} | {
    f"layers.{k}.{name}": shape
    for k in range(3)
    for name, shape in {"q.weight": (64, 64), "k.weight": (32, 64), "up.weight": (128, 64), "norm.weight": (64,)}.items()
}


def model(seed: int = 0) -> Tensors:
    rng = np.random.default_rng(seed)
    return {n: bf16(rng.normal(0, 0.02, shape) if len(shape) > 1 else 1 + rng.normal(0, 0.1, shape)) for n, shape in SHAPES.items()}


def tuned(tensors: Tensors) -> Tensors:
    rng = np.random.default_rng(9)
    changed: dict[str, TensorData] = {}
    for name, (dtype, shape, data) in tensors.items():
        units = np.frombuffer(data, "<u2")
        moved = (rng.random(len(units)) < 0.02).astype("<u2")
        moved[0] = 1
        changed[name] = (dtype, shape, (units + moved).tobytes())
    return changed


def made(folder: Path, base: Tensors, target: Tensors, *options: str, code: int = 0) -> str:
    """What ``make`` prints; the patch gives the target."""
    files = write(folder / "base.safetensors", base), write(folder / "target.safetensors", target)
    result = run("make", *files, "-o", folder / "patch", "--overwrite", *options)
    assert result.exit_code == code, result.output
    if not code:
        assert run("apply", files[0], folder / "patch", "-o", folder / "out", "--overwrite").exit_code == 0
        assert tree(folder / "out") == tree(files[1])
    return " ".join(result.output.split())


def renamed(tensors: Tensors, rule: Callable[[str], str]) -> Tensors:
    return {rule(name): data for name, data in tensors.items()}


def test_tensors_paired_by_other_means_are_told_in_one_line(tmp_path: Path) -> None:
    base, target = model(), renamed(tuned(model()), lambda name: f"actor.{name}")
    text = made(tmp_path, base, target)
    assert (
        "10 tensors by content: actor.embed.weight from embed.weight; 4 tensors by similar names: actor.norm.weight from norm.weight"
        in text
    )
    assert "0 same, 14 changed, 0 added, 0 removed" in text
    assert " by content" not in made(tmp_path, base, tuned(base))
    assert "14 tensors by --rename: actor.embed.weight from embed.weight" in made(tmp_path, base, target, "--rename", r"^actor\.=")


def test_parts_and_rows_are_told(tmp_path: Path) -> None:
    base, new = model(), tuned(model())
    rows = np.random.default_rng(3).permutation(300)[:200]
    embed = np.frombuffer(new.pop("embed.weight")[2], "<u2").reshape(300, 64)[np.sort(rows)]
    joined = b"".join(new.pop(f"layers.{k}.q.weight")[2] for k in range(3))
    target = {**new, "embed.weight": ("BF16", [200, 64], embed.tobytes()), "all_q": ("BF16", [3, 64, 64], joined)}
    text = made(tmp_path, base, target)
    assert "1 tensor in parts, by content: all_q from layers.0.q.weight and 2 more" in text
    assert "1 tensor row by row, by content: embed.weight from embed.weight" in text and "0 removed" in text


def test_tensors_stored_whole_are_counted(tmp_path: Path) -> None:
    base, other = model(), model(1)
    target = {**tuned(base), "layers.1.up.weight": other["layers.1.up.weight"], "new": other["layers.0.q.weight"]}
    text = made(tmp_path, base, target)
    assert "0 same, 13 changed, 1 replaced, 1 added, 0 removed" in text
    assert "stored whole 2 tensors of 24.6 kB, 1 of them replaced" in text
    assert "1 replaced" in " ".join(run("info", tmp_path / "patch").output.split())


def test_a_rule_is_suggested_where_much_stays_new(tmp_path: Path) -> None:
    """Evidence finds no relation, but base tensors of the same sizes are left over."""
    base, other = model(), model(1)
    target = {("x." if "up" in name else "") + name: other[name] if "up" in name else data for name, data in tuned(base).items()}
    text = made(tmp_path, base, target)
    assert r"base tensors of the same sizes are left over; if these were trained from them: --rename '\bx\.='" in text
    assert "left over" not in made(tmp_path, base, target, "--rename", r"\bx\.=")


def test_nothing_changed_is_said_as_such(tmp_path: Path) -> None:
    text = made(tmp_path, model(), model())
    assert "14 same, 0 changed" in text and "none: each tensor is the base's" in text
    assert "no tensor changed" in text and "times smaller" not in text


ADAPTER = {
    f"base_model.model.layers.{k}.q.lora_{x}.weight": bf16(np.random.default_rng([100, k, ord(x)]).normal(0, 0.02, (8, 64)))
    for k in range(3)
    for x in "AB"
}


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (ADAPTER, "an adapter: merge it into its base first (merge_and_unload and save_pretrained of PEFT)"),
        (model(1), "another model? If its tensors have other names, pair them with --rename"),
        (renamed(model(1), lambda name: f"decoder.{name}"), "another model?"),
    ],
)
def test_a_target_with_nothing_of_the_base_is_refused(target: Tensors, words: str, tmp_path: Path) -> None:
    text = made(tmp_path, model(), target, code=3)
    assert f"nothing of {tmp_path / 'base.safetensors'} is in {tmp_path / 'target.safetensors'}" in text
    assert words in text and "with --force" in text and not (tmp_path / "patch").exists()
    assert "stored whole" in made(tmp_path, model(), target, "--force")


def test_compare_begins_with_a_verdict(tmp_path: Path) -> None:
    base = model()
    one = write(tmp_path / "one.safetensors", base)
    again = write(tmp_path / "again.safetensors", base)
    padded = write(tmp_path / "padded.safetensors", base, {"format": "np"})
    changed = write(tmp_path / "changed.safetensors", tuned(base))
    wide = {name: ("F32", shape, (np.frombuffer(data, "<u2").astype("<u4") << 16).tobytes()) for name, (_, shape, data) in base.items()}
    other = write(tmp_path / "other.safetensors", renamed(wide, lambda name: f"actor.{name}"))

    def compared(path: Path, *options: str) -> tuple[int, str]:
        result = run("compare", one, path, *options)
        return result.exit_code, " ".join(result.output.split())

    assert compared(again)[0] == 0 and compared(again)[1].startswith("verdict identical files")
    assert compared(padded)[0] == 0 and compared(padded)[1].startswith("verdict identical tensors, in files that differ")
    assert compared(changed)[0] == 1 and compared(changed)[1].startswith("verdict 14 of 14 tensors differ")
    code, text = compared(other)
    assert code == 1 and text.startswith("verdict 14 of 14 tensors differ") and "bit-identical 62,464 (100 %)" in text
    assert "14 tensors after a cast from BF16" in text and "14 tensors of other names: actor.embed.weight with embed.weight" in text
    assert compared(other, "--rename", r"^actor\.=")[1] == text
    rows = json.loads(run("compare", one, other, "--json", "--tensors").stdout)
    assert (rows["same"], rows["same_files"], rows["differing"], rows["identical"]) == (False, False, 14, 62464)
    assert {(row["other_dtype"], *row["others"]) for row in rows["tensors"]} == {("BF16", name) for name in base}


def test_nothing_in_common_is_an_error_not_a_table_of_dashes(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{k}.safetensors", {f"{k}.w": bf16(np.random.default_rng(k).normal(0, 1, (50, 50)))}) for k in range(2)]
    for command in (("compare", *paths), ("report", *paths, "--rank", "none"), ("overlap", paths[1], "--base", paths[0]),
                    ("mask", paths[1], "--base", paths[0], "-o", tmp_path / "mask")):  # fmt: skip
        result = run(*command)
        assert result.exit_code == 3 and "have nothing in common: no tensor of the one was made from the other's" in result.output


def test_the_report_of_a_renamed_model_is_that_of_the_model(tmp_path: Path) -> None:
    base, target = write(tmp_path / "base.safetensors", model()), write(tmp_path / "target.safetensors", tuned(model()))
    other = write(tmp_path / "other.safetensors", renamed(tuned(model()), lambda name: f"actor.{name}"))
    plain, wrapped = (json.loads(run("report", base, path, "--json").stdout) for path in (target, other))
    for row in wrapped["tensors"]:
        assert row["bases"] == [row["name"].removeprefix("actor.")]
        row |= {"name": row["bases"][0], "bases": [], "scope": "target"}
    assert wrapped["tensors"] == plain["tensors"] and wrapped["totals"] == plain["totals"] and wrapped["rank"] == plain["rank"]
    text = " ".join(run("report", base, other).output.split())
    assert "14 tensors with base tensors of other names: actor.embed.weight with embed.weight" in text


def test_a_report_stored_in_a_patch_says_what_stood_against_what(tmp_path: Path) -> None:
    base = model()
    joined = b"".join(tuned(base)[f"layers.{k}.q.weight"][2] for k in range(3))
    files = write(tmp_path / "base.safetensors", base), write(tmp_path / "target.safetensors", {"all_q": ("BF16", [3, 64, 64], joined)})
    assert run("make", *files, "-o", tmp_path / "patch", "--report").exit_code == 0
    stored = json.loads(run("report", tmp_path / "patch", "--json").stdout)
    assert [(row["part"], row["bases"], row["shape"]) for row in stored["tensors"]] == [
        (k, [f"layers.{k}.q.weight"], [64, 64]) for k in range(3)
    ]
    assert "all_q[2]" in run("report", tmp_path / "patch", "--tensors").output


def test_unchanged_units_are_perturbed_by_nobody(tmp_path: Path) -> None:
    """A target some of whose tensors have hardly anything of the base is not refused."""
    rng, base = np.random.default_rng(4), model()
    assert "changed" in made(tmp_path, base, {name: perturb(rng, data, 0.9 if k else 0.0) for k, (name, data) in enumerate(base.items())})


# --- what a review found -------------------------------------------------------------------------------------------


def test_one_added_head_costs_next_to_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are not looked for in base tensors that other tensors stand against."""
    base = model()
    files = write(tmp_path / "b.safetensors", base), write(tmp_path / "t.safetensors", {**tuned(base), "score": bf16(np.ones((1, 64)) * 2)})
    reads, readinto = [0], LocalFile.readinto

    def counted(self: LocalFile, offset: int, out: Any) -> None:
        reads[0] += 1
        readinto(self, offset, out)

    monkeypatch.setattr(LocalFile, "readinto", counted)
    with open_checkpoint(files[0]) as old, open_checkpoint(files[1]) as new:
        before = reads[0]
        assert len(pair(old, new).counterparts) == len(base)
    assert reads[0] - before <= 500


def test_few_rows_of_a_table_of_another_name(tmp_path: Path) -> None:
    """Too few to be of use: the table is new, and nothing of it is measured."""
    rng, base = np.random.default_rng(5), model()
    table = rng.normal(0, 0.02, (300, 64)).astype("<f4").view("<u4") >> 16
    table[::10] = np.frombuffer(base["embed.weight"][2], "<u2").reshape(300, 64)[::10]
    target = {**tuned(base), "other.table": ("BF16", [300, 64], table.astype("<u2").tobytes())}
    assert "1 added" in made(tmp_path, base, target)
    for command in ("report", "compare"):
        assert "other.table" in run(command, tmp_path / "base.safetensors", tmp_path / "target.safetensors").output


def test_a_backslash_in_a_name_harms_no_suggestion(tmp_path: Path) -> None:
    base = {f"m\\g.layers.{k}.w": bf16(np.random.default_rng(k).normal(0, 1, (64, 64))) for k in range(4)}
    target = {f"x.layers.{k}.w": bf16(np.random.default_rng(k + 9).normal(0, 1, (64, 64))) for k in range(4)}
    text = made(tmp_path, base | {"same": base["m\\g.layers.0.w"]}, target | {"same": base["m\\g.layers.0.w"]})
    assert r"--rename '^x\.=m\\g.'" in text
    assert "left over" not in made(tmp_path, base, target, "--rename", r"^x\.=m\\g.", "--force")


def test_a_file_with_an_empty_tensor_is_identical_to_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "empty.safetensors", {"w": bf16(np.ones((4, 4))), "none": ("BF16", [0, 4], b"")})
    result = run("compare", path, path)
    assert result.exit_code == 0 and "identical files" in result.output


def test_tensors_of_one_content_keep_their_names(tmp_path: Path) -> None:
    """Of very many equal base tensors that one is taken whose name is the closest."""
    one = bf16(np.random.default_rng(0).normal(0, 1, (16, 64)))
    base, target = ({f"{prefix}l.{k}.w": one for k in range(150)} for prefix in ("", "actor."))
    made(tmp_path, base, target)
    info = json.loads(run("info", tmp_path / "patch", "--json").stdout)
    assert all(row["bases"] == [row["name"].removeprefix("actor.")] for row in info["tensors"]) and not info["removed_tensors"]


def test_numbers_within_parts_of_names_tell_layers(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    base = {
        f"layer{k}.{n}": bf16(rng.normal(0, 0.02, s) + (n == "norm.w"))
        for k in range(80)
        for n, s in (("q.w", (16, 64)), ("norm.w", (64,)))
    }
    text = made(tmp_path, base, renamed(tuned(base), lambda name: f"enc.{name}"))
    assert "160 changed, 0 added, 0 removed" in text


def test_a_patch_alone_measures_renamed_tensors(tmp_path: Path) -> None:
    made(tmp_path, model(), renamed(tuned(model()), lambda name: f"actor.{name}"))
    rows = json.loads(run("report", tmp_path / "patch", "--json").stdout)
    assert rows["unpaired"] == [] and len(rows["tensors"]) == 14 and rows["totals"]["elements"] == 62464


def test_a_table_trained_anew_is_measured_alike_from_target_and_patch(tmp_path: Path) -> None:
    base, other = model(), bf16(np.random.default_rng(7).normal(0, 0.02, (310, 64)))
    made(tmp_path, base, {**tuned(base), "embed.weight": other})
    by_target, by_patch = (
        json.loads(run("report", tmp_path / "base.safetensors", tmp_path / side, "--json", "--rank", "none").stdout)
        for side in ("target.safetensors", "patch")
    )
    assert {**by_target, "target": ""} == {**by_patch, "target": ""}

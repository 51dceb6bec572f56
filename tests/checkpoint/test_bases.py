"""Bases that hold more than a patch was made from: what ``make`` was told to leave out, every other verb leaves out too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import ckptdiff
from ckptdiff.cli.main import main
from ckptdiff.patching.patch import open_patch
from tests.support.checkpoints import TensorData, bf16, perturb, tree, write, write_sharded
from tests.support.vectors import READER

NAMES = [f"layers.{k}.w" for k in range(6)]


def model(step: int) -> dict[str, TensorData]:
    rng = np.random.default_rng(8)
    tensors = {name: bf16(rng.normal(0, 0.02, (16, 8))) for name in NAMES}
    return {name: perturb(rng, data, 0.05) for name, data in tensors.items()} if step else tensors


def shards(tensors: Mapping[str, TensorData], count: int, pattern: str = "model-{:05}-of-{:05}.safetensors") -> dict[str, dict]:
    return {pattern.format(k + 1, count): {name: tensors[name] for name in NAMES[k::count]} for k in range(count)}


def used_by_all(base: Path, target: Path, work: Path, *options: str, gone: tuple[str, ...] = (), count: int = 6) -> ckptdiff.PatchInfo:
    """Make a patch with options, and see that all verbs that open a base take this one as it is."""
    work.mkdir(exist_ok=True)
    run("make", base, target, "-o", work / "p", *options)
    run("apply", base, work / "p", "-o", work / "out")
    wanted = {name: digest for name, digest in tree(target).items() if name not in gone}
    assert tree(work / "out") == wanted
    READER.apply(base, [work / "p"], work / "by the minimal reader")
    assert tree(work / "by the minimal reader") == wanted
    run("verify", work / "p", "--base", base, "--target", work / "out")
    assert json.loads(run("report", base, work / "p", "--rank", "none", "--json"))["totals"]["elements"] == count * 16 * 8
    run("overlap", work / "p", work / "p", "--base", base)
    if count < 10:  # else names are in two scopes
        run("apply", base, work / "p", "-o", work / "part.safetensors", "--only", "*.0.w")
        run("mask", work / "p", "--base", base, "-o", work / "mask.safetensors")
    return ckptdiff.info(work / "p")


def run(*args: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    for step, name in enumerate(("base", "target")):
        write_sharded(tmp_path / name, shards(model(step), 2))
        (tmp_path / name / "config.json").write_text(f'{{"step": {step}}}')
    return tmp_path / "base", tmp_path / "target"


def test_a_leftover_set_of_shards(pair: tuple[Path, Path], tmp_path: Path) -> None:
    write_sharded(pair[0], shards(model(0), 3), None)
    """Each file that the index does not list is a scope of its own; it may also be left out."""
    assert [file["path"] for file in used_by_all(*pair, tmp_path / "all").base_files] == sorted(
        [*shards(model(0), 2), *shards(model(0), 3)]
    )
    info = used_by_all(*pair, tmp_path, "--exclude", "*-of-00003*")
    assert [file["path"] for file in info.base_files] == list(shards(model(0), 2))


def test_leftovers_of_another_set_in_both(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Shards that the index does not list are scopes of their own, each paired with its like or with the scope of its names."""
    for step, folder in enumerate(pair):
        write_sharded(folder, shards(model(step), 3), None)
    (pair[1] / "model-00003-of-00003.safetensors").unlink()  # not all of a set need be there
    info = used_by_all(*pair, tmp_path, count=10)
    assert {row.kind for row in info.tensors} == {"delta"} and info.removed_tensors == ()


def test_a_single_file_beside_new_shards(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The file that was there before costs nothing: its scope has the names of the base's only one."""
    for path in pair[0].glob("model*"):
        path.unlink()
    write(pair[0] / "model.safetensors", model(0))
    write(pair[1] / "model.safetensors", model(0))
    info = used_by_all(*pair, tmp_path, count=12)
    assert {(row.file == "model.safetensors", row.kind) for row in info.tensors} == {(True, "same"), (False, "delta")}
    assert info.removed_tensors == ()


def test_a_file_that_the_index_forgot(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Tensors that lie in the base's shards, and in a file of their own in the target; what neither of the scopes uses is removed, once."""
    old = {**model(0), "mtp.w": bf16(np.random.default_rng(1).normal(0, 0.02, (16, 8))), "gone": model(0)[NAMES[0]]}
    write_sharded(pair[0], {"model-00001-of-00002.safetensors": model(0), "model-00002-of-00002.safetensors": {
        name: old[name] for name in ("mtp.w", "gone")
    }})  # fmt: skip
    write(pair[1] / "mtp.safetensors", {"mtp.w": perturb(np.random.default_rng(2), old["mtp.w"], 0.05)})
    info = used_by_all(*pair, tmp_path, count=7)
    assert {row.kind for row in info.tensors} == {"delta"} and info.removed_tensors == ("gone",)
    with open_patch(tmp_path / "p") as patch:
        assert [file.table.removed for file in patch.files] == [("gone",), (), ()]


@pytest.mark.parametrize(
    "pattern",
    ["model-{:05}-of-{:06}.safetensors", "model-{:07}-of-{:07}.fp16.safetensors", "model.safetensors-{:05}-of-{:05}.safetensors"],
)
def test_numbers_of_shards(pattern: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Six digits and more, and names with an ending in the middle, without an index: one scope, whatever the number of shards."""
    for step, folder in enumerate(pair):
        for path in folder.glob("model*"):
            path.unlink()
        write_sharded(folder, shards(model(step), 3 - step, pattern), None)
    assert {row.kind for row in used_by_all(*pair, tmp_path).tensors} == {"delta"}
    (pair[0] / pattern.format(2, 3)).unlink()
    assert f"its sibling {pattern.format(2, 3)} is missing" in run("make", *pair, "-o", tmp_path / "q", code=3)


def test_shards_that_are_numbered_from_zero(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for step, folder in enumerate(pair):
        for path in folder.glob("model*"):
            path.unlink()
        for k, tensors in enumerate(shards(model(step), 2).values()):
            write(folder / f"model-{k:05}-of-00002.safetensors", tensors)
    assert {row.kind for row in used_by_all(*pair, tmp_path).tensors} == {"delta"}


@pytest.mark.parametrize("options", [(), ("--exclude", "*.index.json")])
def test_a_doubled_name(options: tuple[str, ...], pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Which of two tensors counts in the base is told alike by all verbs, also where the index that tells it is left out."""
    name = NAMES[0]
    for step, folder in enumerate(pair):
        files = shards(model(step), 2)
        files["model-00002-of-00002.safetensors"][name] = bf16(np.random.default_rng(step).normal(0, 1, (16, 8)))
        write_sharded(folder, files)
    info = used_by_all(*pair, tmp_path, *options, gone=("model.safetensors.index.json",) if options else ())
    assert [row.kind for row in info.tensors if row.name == name] == ["delta", "delta"]


@pytest.mark.parametrize("count", [3, 4])
def test_a_stale_index(count: int, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """It lists shards that are gone; the message names the glob, which leaves the target's index out too."""
    write_sharded(tmp_path / "other", shards(model(0), count))
    shutil.copy(tmp_path / "other" / "model.safetensors.index.json", pair[0])
    text = run("make", *pair, "-o", tmp_path / "p", code=3)
    index = "model.safetensors.index.json"
    assert f"lists the shard model-00001-of-0000{count}.safetensors, which is missing (and {count - 1} more): fetch it, or" in text
    assert text.endswith(f"leave the stale index out with --exclude {index}\n")
    used_by_all(*pair, tmp_path, "--exclude", index, gone=(index,))
    text = run("compare", *pair, code=3)
    assert text.endswith(f"leave the stale index out with --exclude {index}\n")
    assert "bit-identical" in run("compare", *pair, "--exclude", index, code=1)
    assert run("mask", pair[1], "--base", pair[0], "-o", tmp_path / "m", code=3).endswith("fetch it, or remove the stale index\n")


@pytest.mark.parametrize("glob", ["model.safetensors.index.json", "*.index.json"])
def test_a_glob_that_matches_only_the_base(glob: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    write_sharded(tmp_path / "other", shards(model(0), 3))
    shutil.copy(tmp_path / "other" / "model.safetensors.index.json", pair[0])
    write(tmp_path / "single" / "model.safetensors", model(1))
    used_by_all(pair[0], tmp_path / "single", tmp_path, "--exclude", glob)
    text = run("make", pair[0], pair[1], "-o", tmp_path / "q", "--exclude", glob, "--exclude", "nothing*", code=3)
    assert f"the glob 'nothing*' matches no file of {pair[0]} and {pair[1]}: it is matched with the whole path in the folder\n" in text


@pytest.mark.parametrize("options", [(), ("--exclude", "*.index.json")])
def test_shards_that_only_an_index_ties_together(options: tuple[str, ...], tmp_path: Path) -> None:
    """Without the index each is a scope of its own; the patch says which scopes it means, not which index counted."""
    for step, name in enumerate(("base", "target")):
        write_sharded(tmp_path / name, shards(model(step), 2, "part{}of{}.safetensors"))
    index = ("model.safetensors.index.json",) if options else ()
    used_by_all(tmp_path / "base", tmp_path / "target", tmp_path, *options, gone=index)
    with open_patch(tmp_path / "p") as patch:
        assert patch.base_scopes == ({"part1of2", "part2of2"} if options else {"model"})


def test_other_files_of_the_base_that_are_left_out_by_default(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for folder in pair:
        (folder / "optimizer.pt").write_text(f"state of {folder.name}" * 50)
    info = used_by_all(*pair, tmp_path, "--include", "optimizer.pt")
    assert {file.path: file.kind for file in info.files}["optimizer.pt"] == "delta"


def test_a_base_in_other_shards_than_recorded_is_opened_whole(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Also where its files have the recorded names, but other sizes."""
    run("make", *pair, "-o", tmp_path / "p")
    for k, layout in enumerate((shards(model(0), 3), {"model.safetensors": model(0)}, shards(dict(reversed(model(0).items())), 2))):
        base = write_sharded(tmp_path / f"again{k}", layout)
        shutil.copy(pair[0] / "config.json", base)
        run("apply", base, tmp_path / "p", "-o", tmp_path / f"out{k}")
        assert tree(tmp_path / f"out{k}") == tree(pair[1])
    uneven = {"model-00001-of-00002.safetensors": {NAMES[0]: model(0)[NAMES[0]]}}
    uneven["model-00002-of-00002.safetensors"] = {name: model(0)[name] for name in NAMES[1:]}
    base = write_sharded(tmp_path / "uneven", uneven)
    shutil.copy(pair[0] / "config.json", base)
    run("apply", base, tmp_path / "p", "-o", tmp_path / "uneven out")
    assert tree(tmp_path / "uneven out") == tree(pair[1])


def test_a_wrong_base_is_still_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    run("make", *pair, "-o", tmp_path / "p")
    text = run("apply", pair[1], tmp_path / "p", "-o", tmp_path / "out", code=3)
    assert "is already the target of" in text
    (pair[0] / "model-00002-of-00002.safetensors").unlink()
    text = run("apply", pair[0], tmp_path / "p", "-o", tmp_path / "out", code=3)
    assert text.endswith("lists the shard model-00002-of-00002.safetensors, which is missing: fetch it, or remove the stale index\n")


def test_many_problems_of_one_kind_are_one_line_and_a_count(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    tensors = {f"t{k:02}": bf16(rng.normal(0, 1, 4)) for k in range(50)}
    changed = {name: perturb(rng, data, 0.5) for name, data in tensors.items()}
    for name, weights in (
        ("base", tensors),
        ("target", changed),
        ("wrong", {name: perturb(rng, data, 0.5) for name, data in tensors.items()}),
    ):
        write(tmp_path / f"{name}.safetensors", weights)
    run("make", tmp_path / "base.safetensors", tmp_path / "target.safetensors", "-o", tmp_path / "p.safetensors")
    verify = ("verify", tmp_path / "p.safetensors", "--base", tmp_path / "wrong.safetensors")
    lines = run(*verify, code=1).splitlines()
    assert lines[0].startswith("wrong_base: ") and "tensor t00 has the digest" in lines[0]
    assert lines[1:] == ["wrong_base: 49 more, which --json lists", "50 problems in 100 checks of patch and base"]
    assert len(json.loads(run(*verify, "--json", code=1))["problems"]) == 50


def test_a_glob_that_matches_one_of_several_updates(pair: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(pair[1], tmp_path / "third")
    write(tmp_path / "third" / "extra.safetensors", {"extra": bf16([1.0])})
    updates = (pair[1], tmp_path / "third")
    assert "jaccard" in run("overlap", *updates, "--base", pair[0], "--exclude", "extra*").lower()
    assert "only in B" not in run("compare", *updates, "--base", pair[0], "--exclude", "extra*")
    text = run("overlap", *updates, "--base", pair[0], "--exclude", "nothing*", code=3)
    assert f"the glob 'nothing*' matches no file of {pair[0]} and {pair[1]} and {tmp_path / 'third'}: " in text

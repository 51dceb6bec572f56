"""Errors that name the true cause: file, tensor, what was expected and found, and what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import ckptdiff
from ckptdiff.checkpoint.names import near_names
from tests.support.checkpoints import perturb, random_tensor, write
from tests.support.commands import run
from tests.support.hub_client import Client, files_of
from tests.support.hub_state import Hub
from tests.support.small_pair import Pair


def error(*arguments: object) -> str:
    """The message of a command that must fail."""
    result = run(*arguments)
    assert result.exit_code == 3 and result.stdout == "", result
    return result.stderr.removeprefix("ckptdiff: error: ").removesuffix("\n")


# --- --exclude ---


@pytest.mark.parametrize("command", ["make", "report", "compare", "overlap"])
def test_an_exclude_that_leaves_no_weights_is_named(command: str, folders: Pair, tmp_path: Path) -> None:
    more = {"make": ["-o", tmp_path / "p"], "overlap": ["--base", folders.base]}.get(command, [])
    sides = [folders.target] if command == "overlap" else [folders.base, folders.target]
    text = error(command, *sides, *more, "--exclude", "config*", "--exclude", "model*")
    assert text == f"{folders.base}: no weights are left: --exclude 'model*' leaves out model.safetensors; narrow the glob"
    text = error(command, *sides, *more, "--exclude", "*-of-*")
    what = "model-00001-of-00002.safetensors and 1 more"
    assert text == f"{folders.target}: no weights are left: --exclude '*-of-*' leaves out {what}; narrow the glob"


def test_an_exclude_that_leaves_out_a_lone_file(files: Pair, tmp_path: Path) -> None:
    text = error("make", files.base, files.target, "-o", tmp_path / "p", "--exclude", "*")
    assert text == f"{files.base}: no weights are left: --exclude '*' leaves out base.safetensors; narrow the glob"


def test_other_causes_are_still_told(tmp_path: Path, files: Pair) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    text = error("make", tmp_path / "empty", files.target, "-o", tmp_path / "p", "--exclude", "config.json")
    assert text == f"{tmp_path / 'empty'}: expected a .safetensors file or a folder that holds one, found none"


# --- --rename ---


@pytest.mark.parametrize("command", ["make", "report"])
def test_a_rename_that_helps_nothing_is_refused(command: str, files: Pair, tmp_path: Path) -> None:
    more = ["-o", tmp_path / "p"] if command == "make" else ["--rank", "none"]
    text = error(command, files.base, files.target, *more, "--rename", "wieght=x")
    assert text.startswith(f"--rename wieght=x: matches none of the 3 tensors of {files.target}, such as ")
    text = error(command, files.base, files.target, *more, "--rename", "weight$=wight")
    assert text.startswith(f"--rename 'weight$=wight': turns names of the target into none that {files.base} has, ")
    assert "such as a.weight into a.wight; the nearest names there are a.weight" in text
    text = error(command, files.base, files.target, *more, "--rename", "weight=weight")
    assert text == "--rename weight=weight: leaves all names as they are, such as a.weight: leave it out, or mend it"
    text = error(command, files.base, files.target, *more, "--rename", "weight")
    assert text == "--rename 'weight': expected REGEX=REPL; a rule is a regular expression, =, and what replaces it"


def test_a_rename_that_gives_two_tensors_one_base_tensor_is_told(tmp_path: Path) -> None:
    """It may be meant, as where a model was made of copies of layers; else the patch is larger than it need be."""
    rng = np.random.default_rng(1)
    base = {f"layers.{k}.w": random_tensor(rng, "F32", [16, 16]) for k in (0, 1)}
    target = {f"x.{name}": perturb(rng, data, 0.1) for name, data in base.items()}
    pair = [write(tmp_path / f"{name}.safetensors", side) for name, side in (("base", base), ("target", target))]
    broad = run("make", *pair, "-o", tmp_path / "broad", "--rename", r"^x\.layers\.\d=layers.0")
    assert broad.exit_code == 0
    assert "--rename gives x.layers.0.w, x.layers.1.w one and the same base tensor: is the rule too broad?\n" in broad.stdout
    right = run("make", *pair, "-o", tmp_path / "right", "--rename", r"^x\.=", "--json")
    assert [row["alike"] for row in json.loads(right.stdout)["paired"]] == [[]]
    assert (tmp_path / "right").stat().st_size < (tmp_path / "broad").stat().st_size


# --- patches and checkpoints ---


def test_only_where_two_were_given_may_they_be_the_wrong_way_round(files: Pair, folders: Pair, tmp_path: Path) -> None:
    assert error("apply", files.patch, files.base, "-o", tmp_path / "out").endswith(": are base and patch the wrong way round?")
    for command in (["info", files.base], ["apply", files.base, files.target, "-o", tmp_path / "out"]):
        assert error(*command).endswith("not a ckptdiff patch, but a plain safetensors file; give what ckptdiff make wrote"), command
    assert error("info", folders.target) == (
        f"{folders.target}: not a ckptdiff patch: it has no ckptdiff.json, but safetensors files, as a checkpoint has; "
        "give what ckptdiff make wrote"
    )


def test_a_checkpoint_that_is_pulled_as_a_patch(hub: Hub, folders: Pair, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    hub.add("org/base", files_of(folders.base))
    text = Client(hub, tmp_path / "machine").run("pull", "org/base", "-o", "out", code=3).stderr
    assert "not a ckptdiff patch" in text and "give what ckptdiff make wrote" in text and "wrong way round" not in text


def test_a_checkpoint_and_a_repo_have_no_patch(hub: Hub, folders: Pair, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    hub.add("org/base", files_of(folders.base))
    client = Client(hub, tmp_path / "machine")
    right = client.run("verify", folders.base, "--hub", "org/base").stdout
    wrong = client.run("verify", folders.target, "--hub", "org/base", code=1).stdout
    assert right == "ok: checkpoint and repo: 3 checks\n"
    assert wrong.splitlines()[-1].endswith("of checkpoint and repo") and "patch" not in wrong.splitlines()[-1]
    assert json.loads(client.run("verify", folders.base, "--hub", "org/base", "--json").stdout)["against_hub"] is True


def test_info_names_the_repos_and_commits_that_a_patch_records(hub: Hub, folders: Pair, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    hub.add("org/base", files_of(folders.base))
    hub.add("org/tuned", files_of(folders.target))
    client = Client(hub, tmp_path / "machine")
    client.run("make", "org/base", "org/tuned", "-o", "patch")
    base, target = (f"{name}@{hub.repos[name].branches['main']}" for name in ("org/base", "org/tuned"))
    assert re.search(rf"base wanted  identity \w+\n +on the Hub: {base}\n.*gives  identity \w+\n +on the Hub: {target}\n",
                     client.run("info", "patch").stdout, re.DOTALL)  # fmt: skip
    value = json.loads(client.run("info", "patch", "--json").stdout)
    assert (value["base_repo"], value["target_repo"]) == (base, target)
    local = json.loads(run("info", folders.patch, "--json").stdout)
    assert (local["base_repo"], local["target_repo"]) == (None, None) and "on the Hub" not in run("info", folders.patch).stdout


def test_a_target_that_is_taken_for_the_base(files: Pair, tmp_path: Path) -> None:
    for command in (
        ["apply", files.target, files.patch, "-o", tmp_path / "out"],
        ["mask", files.patch, "--base", files.target, "-o", tmp_path / "m"],
    ):
        assert error(*command).startswith(f"{files.target}: is already the target of {files.patch}, not its base: give the checkpoint that")


def test_a_patch_that_is_given_twice(files: Pair, tmp_path: Path) -> None:
    text = error("apply", files.base, files.patch, files.patch, "-o", tmp_path / "out")
    assert text == f"{files.patch}: is listed twice in a row: apply it once"


# --- names ---


def test_a_name_that_a_mask_does_not_have(files: Pair) -> None:
    mask = ckptdiff.Mask.from_patch(files.patch, files.base)
    with pytest.raises(ckptdiff.CheckpointError) as found:
        mask.flags("a.wieght")
    assert str(found.value) == "the mask knows no tensor a.wieght; the nearest of its 3 tensors are a.weight, b.weight, c"
    with pytest.raises(ckptdiff.CheckpointError, match="it is of no tensor at all"):
        ckptdiff.Mask({}, {}).flags("a")


def test_names_that_are_near() -> None:
    names = [f"model.layers.{k}.{part}.weight" for k in range(30) for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")]
    assert near_names("model.layers.17.self_attn.q_prj.weight", names).split(", ")[0] == "model.layers.17.self_attn.q_proj.weight"
    assert near_names("x", []) == "" and len(near_names("layers", names).split(", ")) == 3


def test_only_names_the_globs_and_tensors_that_are_near(files: Pair, tmp_path: Path) -> None:
    text = error("apply", files.base, files.patch, "-o", tmp_path / "out", "--only", "a.wight", "--only", "lm_head*")
    assert text.startswith(f"{files.patch}: --only 'a.wight', 'lm_head*' matches none of its 3 tensors, such as a.weight, ")


def test_a_revision_that_a_repo_does_not_have(hub: Hub, folders: Pair, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    hub.add("org/patch", files_of(folders.patch))
    text = Client(hub, tmp_path / "machine").run("pull", "org/patch@v9", "-o", "out", code=3).stderr
    assert "org/patch: has no revision v9: give a branch, a tag or a commit that it has, or none for its main branch" in text

"""One patch of many steps of a chain: without the base where it can be, else through the checkpoint that it starts from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import ckptdiff
from tests.support.chains import run_of_files, training_run, weights
from tests.support.checkpoints import tree
from tests.support.commands import run


def test_sparse_steps_need_no_base(tmp_path: Path) -> None:
    files = run_of_files(tmp_path / "run", 5)
    chain, notes = tmp_path / "chain", list[str]()
    ckptdiff.chain_add(chain, files, codec="sparse", keyframe_every=2)
    for first, last in ((100, 400), (0, 300)):
        out, made = tmp_path / f"{first}-{last}.safetensors", tmp_path / f"made-{first}.safetensors"
        result = ckptdiff.chain_squash(chain, first, last, out, noted=notes.append)
        assert not result.through_base and set(result.codecs) == {"sparse"} and not notes
        ckptdiff.make(files[first // 100], files[last // 100], made, codec="sparse")
        assert out.read_bytes() == made.read_bytes(), "as a patch that is made directly"
    assert len(result.patches) == 1, "step 300 has a keyframe"


@pytest.mark.parametrize("at_url", [False, True])
def test_other_steps_take_the_base(at_url: bool, tmp_path: Path) -> None:
    checkpoints = training_run(tmp_path / "run", 5)
    chain = f"memory://{tmp_path.name}/squash" if at_url else str(tmp_path / "chain")
    ckptdiff.chain_add(chain, checkpoints, keyframe_every=3)
    with pytest.raises(ckptdiff.UnsupportedError, match=r"only the base can tell .*: give it \(--base\)"):
        ckptdiff.chain_squash(chain, 100, 400, tmp_path / "patch")
    for k, base in enumerate((checkpoints[0], checkpoints[1])):
        notes = list[str]()
        result = ckptdiff.chain_squash(chain, 100, 400, tmp_path / f"patch-{k}", base=base, noted=notes.append)
        assert result.through_base and len(result.patches) == 3
        assert [note.partition(" in ")[0] for note in notes[1:]] == ["rebuilding step 100"] * (k == 0)
    assert tree(tmp_path / "patch-0") == tree(tmp_path / "patch-1")
    ckptdiff.apply(checkpoints[1], tmp_path / "patch-0", tmp_path / "out")
    assert tree(tmp_path / "out") == weights(checkpoints[4])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_cannot_be_squashed(tmp_path: Path) -> None:
    checkpoints = training_run(tmp_path / "run", 5)
    chain = tmp_path / "chain"
    ckptdiff.chain_add(chain, checkpoints)
    with pytest.raises(ckptdiff.CheckpointError, match="step 300 does not come before step 200: give the earlier one first"):
        ckptdiff.chain_squash(chain, 300, 200, tmp_path / "patch")
    with pytest.raises(ckptdiff.CheckpointError, match="has no step 150"):
        ckptdiff.chain_squash(chain, 150, 200, tmp_path / "patch")
    with pytest.raises(ckptdiff.BaseMismatchError, match=r"is step 300 of .*, which comes after step 100"):
        ckptdiff.chain_squash(chain, 100, 400, tmp_path / "patch", base=checkpoints[3], codec="context")
    with pytest.raises(ckptdiff.OutputError, match="the output is the input"):
        ckptdiff.chain_squash(chain, 100, 400, checkpoints[1], base=checkpoints[1], overwrite=True)
    ckptdiff.chain_prune(chain, ["100", "400"], base=checkpoints[0])
    with pytest.raises(ckptdiff.FormatError, match="step 400: is out of reach: there is a gap before step 400"):
        ckptdiff.chain_squash(chain, 100, 400, tmp_path / "patch", base=checkpoints[1])
    assert not (tmp_path / "patch").exists()


def test_the_command(tmp_path: Path) -> None:
    files = run_of_files(tmp_path / "run", 3)
    ckptdiff.chain_add(tmp_path / "chain", files, codec="sparse")
    done = run("chain", "squash", tmp_path / "chain", 0, 200, "-o", tmp_path / "patch.safetensors")
    assert done.exit_code == 0 and "0 to 200: ulp distances added, without a base" in done.stdout and " for 2 patches of " in done.stdout
    more = run("chain", "squash", tmp_path / "chain", 100, 200, "-o", tmp_path / "c", "--codec", "context", "--base", files[0], "--json")
    row = json.loads(more.stdout)
    assert row["through_base"] and row["first"] == 100 and "context" in row["codecs"]
    ckptdiff.apply(files[1], tmp_path / "c", tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == files[2].read_bytes()

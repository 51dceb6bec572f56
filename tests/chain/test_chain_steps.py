"""Chains from end to end: every step comes back, from any start, whatever was added when, and after steps were removed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import pytest

import ckptdiff
from ckptdiff.chain.history import read_history
from ckptdiff.io.store_urls import open_store
from tests.support.chains import LEFT_OUT, check_steps, run_of_files, training_run, weights
from tests.support.checkpoints import tree
from tests.support.commands import error_of, run
from tests.support.documents import ROOT


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[Path]:
    return training_run(tmp_path / "a run", 7)


def test_every_step_comes_back_from_anywhere(checkpoints: list[Path], tmp_path: Path) -> None:
    chain = tmp_path / "a chain"
    shuffled = [checkpoints[k] for k in (3, 0, 6, 1, 5, 2, 4)]
    result = ckptdiff.chain_add(chain, shuffled, keyframe_every=2)
    assert [(row.step, row.state) for row in result.steps] == [(0, "base"), *((100 * k, "added") for k in range(1, 7))]
    assert [row.step for row in result.steps if row.keyframe_size] == [300, 500]
    check_steps(chain, checkpoints, tmp_path, range(100, 700, 100))
    listing = ckptdiff.chain_list(chain)
    assert [row.patches for row in listing.steps] == [1, 2, 1, 2, 1, 2] and listing.base_step == 0 and not listing.foreign
    notes: list[str] = []
    restored = ckptdiff.chain_restore(chain, 600, tmp_path / "out", base=checkpoints[2], noted=notes.append)
    assert tree(tmp_path / "out") == weights(checkpoints[6]) and restored.start == 200 and len(restored.patches) == 4
    assert notes == [f"starts at step 200, which {checkpoints[2]} is"]
    assert ckptdiff.chain_verify(chain).ok


def test_documents_are_as_the_schema_has_them(checkpoints: list[Path], tmp_path: Path) -> None:
    ckptdiff.chain_add(tmp_path / "chain", checkpoints[:2])
    schema = json.loads((ROOT / "spec" / "chain.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    for name in ("chain.json", "HEAD.json", "epochs/000001.json"):
        document = json.loads((tmp_path / "chain" / name).read_text())
        jsonschema.validate(document, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**document, "more": 1}, schema)


def test_one_step_at_a_time(checkpoints: list[Path], tmp_path: Path) -> None:
    """As a callback adds them: the step before is rebuilt where it is not given, and the base must be at hand for that."""
    chain, notes = tmp_path / "chain", list[str]()
    ckptdiff.chain_add(chain, checkpoints[1], base=checkpoints[0])
    with pytest.raises(ckptdiff.CheckpointError, match=r"does not record where its base is.*step 200 is made from step 100, which is"):
        ckptdiff.chain_add(chain, checkpoints[2])
    ckptdiff.chain_add(chain, checkpoints[2], base=checkpoints[0], noted=notes.append)
    assert len(notes) == 1 and notes[0].startswith("rebuilding step 100 in ") and notes[0].endswith("as step 200 is made from it")
    ckptdiff.chain_add(chain, checkpoints[2:4])  # the step before is there, and among those given
    ckptdiff.chain_add(chain, checkpoints[4], base=checkpoints[3])  # the base is the step before
    shutil.copytree(checkpoints[5], tmp_path / "final")
    ckptdiff.chain_add(chain, tmp_path / "final", base=checkpoints[0], step=500)
    assert [(row.step, row.epoch) for row in ckptdiff.chain_list(chain).steps] == [(100, 1), (200, 3), (300, 4), (400, 5), (500, 6)]
    check_steps(chain, checkpoints, tmp_path, range(100, 600, 100))
    assert sorted(path.name for path in chain.iterdir()) == ["HEAD.json", "chain.json", "epochs", "steps"]


def test_checkpoints_that_are_files(tmp_path: Path) -> None:
    files = run_of_files(tmp_path / "run", 5)
    ckptdiff.chain_add(tmp_path / "chain", files, keyframe_every=2, codec="sparse")
    assert ckptdiff.chain_list(tmp_path / "chain").codec == "sparse" and ckptdiff.chain_verify(tmp_path / "chain").ok
    for step in (100, 300, 400):
        ckptdiff.chain_restore(tmp_path / "chain", step, tmp_path / f"{step}.safetensors", base=files[0])
        assert tree(tmp_path / f"{step}.safetensors") == tree(files[step // 100])


def test_a_chain_at_a_url(checkpoints: list[Path], tmp_path: Path) -> None:
    """In memory, by fsspec; tests/io/test_store_s3.py has S3."""
    chain = f"memory://{tmp_path.name}/run"
    ckptdiff.chain_add(chain, checkpoints[:4], keyframe_every=2, remove_originals=False)
    ckptdiff.chain_add(chain, checkpoints[4:], base=checkpoints[0])
    check_steps(chain, checkpoints, tmp_path, [100, 400, 600])
    assert ckptdiff.chain_verify(chain).patches == 8
    pruned = ckptdiff.chain_prune(chain, ["200", "600"], base=checkpoints[0])
    assert pruned.kept == (200, 600) and len(pruned.keyframes) == 2 and ckptdiff.chain_verify(chain).ok
    check_steps(chain, checkpoints, tmp_path / "a run", [200, 600])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert set(open_store(chain).objects("epochs")) == {"epochs/000003.json"}


def test_originals_are_removed_once_the_chain_has_them(checkpoints: list[Path], tmp_path: Path) -> None:
    chain, kept = tmp_path / "chain", tmp_path / "kept"
    shutil.copytree(checkpoints[0].parent, kept)
    originals = [kept / path.name for path in checkpoints]
    result = ckptdiff.chain_add(chain, checkpoints, remove_originals=True)
    assert [row.removed for row in result.steps] == [0, *[5] * 6]
    assert tree(checkpoints[0]) == tree(originals[0]), "the base stays"
    assert all([path.name for path in folder.iterdir()] == [LEFT_OUT] for folder in checkpoints[1:]), "what the chain lacks stays"
    check_steps(chain, originals, tmp_path, [100, 600], base=checkpoints[0])
    for name in ("config.json", "model-00001-of-00002.safetensors"):  # as a run leaves it that was killed
        shutil.copy(originals[5] / name, checkpoints[5] / name)
    shutil.rmtree(checkpoints[2])
    again = ckptdiff.chain_add(chain, checkpoints, remove_originals=True)
    assert [(row.state, row.removed) for row in again.steps] == [("base", 0), *[("present", 0)] * 4, ("present", 2), ("present", 0)]
    with pytest.raises(ckptdiff.CheckpointError, match="no such file or folder"):
        ckptdiff.chain_add(chain, tmp_path / "checkpoint-900", remove_originals=True)
    with pytest.raises(ckptdiff.CheckpointError, match="is on the Hub, from where nothing is removed: leave out --remove-originals"):
        ckptdiff.chain_add(chain, "org/step-900", remove_originals=True)
    with pytest.raises(ckptdiff.CheckpointError, match="no checkpoint to add"):
        ckptdiff.chain_add(chain, [])


def test_the_base_is_never_removed(checkpoints: list[Path], tmp_path: Path) -> None:
    ckptdiff.chain_add(tmp_path / "chain", checkpoints[:2], base=checkpoints[0], remove_originals=True)
    assert (checkpoints[0] / "config.json").exists() and not (checkpoints[1] / "config.json").exists()
    assert ckptdiff.chain_list(tmp_path / "chain").base_step == 0


def test_a_changed_original_is_not_removed(checkpoints: list[Path], tmp_path: Path) -> None:
    ckptdiff.chain_add(tmp_path / "chain", checkpoints[:2])
    (checkpoints[1] / "config.json").write_text("changed")
    with pytest.raises(ckptdiff.IntegrityError, match=r"config\.json: is not the file that step 100 of .* has"):
        ckptdiff.chain_add(tmp_path / "chain", checkpoints[:2], remove_originals=True)
    assert weights(checkpoints[1]) and (checkpoints[1] / "tokenizer.json").exists()


@pytest.mark.parametrize(
    ("keep", "kept", "new"),
    [
        (["last:2"], (500, 600), 1),
        (["every:200", "100"], (100, 200, 400, 600), 1),
    ],
)
def test_what_is_kept_can_be_restored(keep: list[str], kept: tuple[int, ...], new: int, checkpoints: list[Path], tmp_path: Path) -> None:
    chain = tmp_path / "chain"
    ckptdiff.chain_add(chain, checkpoints, keyframe_every=5)  # a keyframe of step 600
    before = tree(chain)
    planned = ckptdiff.chain_prune(chain, keep, dry_run=True)
    assert tree(chain) == before and planned.kept == kept and len(planned.keyframes) == new
    done = ckptdiff.chain_prune(chain, keep, base=checkpoints[0])
    assert (done.kept, done.dropped, done.keyframes, done.removed) == (kept, planned.dropped, planned.keyframes, planned.removed)
    assert done.removed_size == planned.removed_size and [row.step for row in ckptdiff.chain_list(chain).steps] == list(kept)
    check_steps(chain, checkpoints, tmp_path, kept)
    verified = ckptdiff.chain_verify(chain)
    assert verified.ok and not verified.notes
    ckptdiff.chain_add(chain, training_run(tmp_path / "longer", 8)[6:])  # training goes on
    check_steps(chain, [*checkpoints, tmp_path / "longer" / "checkpoint-700"], tmp_path, [700])


def test_a_keyframe_needs_the_base(checkpoints: list[Path], tmp_path: Path) -> None:
    ckptdiff.chain_add(tmp_path / "chain", checkpoints)
    before = tree(tmp_path / "chain")
    with pytest.raises(ckptdiff.CheckpointError, match=r"give it with --base .*: it takes keyframes to keep step 300, 600"):
        ckptdiff.chain_prune(tmp_path / "chain", "300")
    with pytest.raises(ckptdiff.BaseMismatchError, match=r"is step 200 of the chain, not its base"):
        ckptdiff.chain_prune(tmp_path / "chain", "300", base=checkpoints[2])
    assert tree(tmp_path / "chain") == before


def test_commands(checkpoints: list[Path], tmp_path: Path) -> None:
    chain, steps = tmp_path / "chain", [str(path) for path in checkpoints]
    added = run("chain", "add", chain, *steps[:4], "--keyframe-every", "2")
    assert added.exit_code == 0 and "added  3 steps: " in added.stdout and "which the chain has no copy of: keep it" in added.stdout
    more = json.loads(run("chain", "add", chain, *steps[3:], "--base", steps[0], "--json").stdout)
    assert [row["state"] for row in more["steps"]] == ["present", "added", "added", "added"] and not more["created"]
    listed = run("chain", "list", chain)
    assert listed.stdout.splitlines()[3].split()[:4] == ["300", "step", "+", "keyframe"] and "stored  6 steps, " in listed.stdout
    rows = json.loads(run("chain", "list", chain, "--json").stdout)["steps"]
    assert [row["step"] for row in rows] == [100, 200, 300, 400, 500, 600] and all(len(row["identity"]) == 32 for row in rows)
    restored = run("chain", "restore", chain, 200, "-o", tmp_path / "out", "--base", steps[0])
    assert "200, from the chain's base by 2 patches" in restored.stdout and tree(tmp_path / "out") == weights(checkpoints[2])
    assert error_of(run("chain", "restore", chain, 200, "-o", tmp_path / "out", "--base", steps[0], "--json"))["kind"] == "output"
    assert run("chain", "verify", chain).stdout == "no problem in 6 steps of 8 patches\n"
    pruned = run("chain", "prune", chain, "--keep", "last:1", "--dry-run")
    assert "would be removed  " in pruned.stdout and "dropped  5 steps: 100, 200, 300, 400, 500" in pruned.stdout
    missing = run("chain", "restore", chain, 250, "-o", tmp_path / "x", "--base", steps[0])
    assert missing.exit_code == 3 and "has no step 250: the nearest of its 6 are 200 and 300" in missing.stderr
    base = run("chain", "restore", chain, 0, "-o", tmp_path / "x", "--base", steps[0])
    assert "step 0 is the chain's base, of which the chain has no copy" in base.stderr
    assert read_history(open_store(chain)).epoch == 2


def test_a_base_on_the_hub_is_recorded(request: pytest.FixtureRequest) -> None:
    pytest.importorskip("huggingface_hub")
    user = request.getfixturevalue("reader")
    user.run("chain", "add", "chain", "run/step-100", "--base", "org/base", "--keyframe-every", "1")
    listed = json.loads(user.run("chain", "list", "chain", "--json").stdout)
    assert listed["base_repo"].startswith("org/base@") and listed["base_step"] is None
    assert "rebuilding step 100 in " in user.run("chain", "add", "chain", "run/step-200").stderr
    user.run("chain", "restore", "chain", "200", "-o", "out")
    assert tree(user.folder / "out") == tree(user.folder / "run" / "step-200")
    assert user.run("chain", "prune", "chain", "--keep", "200").stdout.count("0 keyframes") == 1


def test_a_keyframe_that_was_not_put(tmp_path: Path) -> None:
    """As a publisher leaves it that puts patches first and was killed: the next `add` puts it before it writes another step."""
    run, chain = training_run(tmp_path / "run", 5), tmp_path / "chain"
    ckptdiff.chain_add(chain, run[:4], keyframe_every=2)
    (keyframe,) = (chain / "keyframes").iterdir()
    shutil.rmtree(keyframe)
    assert len(read_history(open_store(chain)).plan(2) or ()) == 3
    notes: list[str] = []
    ckptdiff.chain_add(chain, run[3:], base=run[0], noted=notes.append)
    assert any("for the keyframe that a killed publisher did not put" in note for note in notes)
    history = read_history(open_store(chain))
    assert [len(history.plan(k) or ()) for k in range(4)] == [1, 2, 1, 2] and keyframe.is_dir()
    check_steps(chain, run, tmp_path, (100, 200, 300, 400))

"""apply of more patches than a chain has: in parts, of which none stays, and none is begun where it cannot be finished."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from safetensors import safe_open

import ckptdiff
from tests.support.chains import run_of_files, training_run, weights
from tests.support.checkpoints import tree
from tests.support.commands import run

Usage = namedtuple("Usage", "total used free")


def there_and_back(folder: Path, made: list[Path]) -> list[Path]:
    """Patches from the first checkpoint to the second, and back."""
    ways = [folder / "there.patch", folder / "back.patch"]
    ckptdiff.make(made[0], made[1], ways[0])
    ckptdiff.make(made[1], made[0], ways[1])
    return ways


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("of", [training_run, run_of_files])
def test_more_than_64_patches(of: object, tmp_path: Path) -> None:
    made = of(tmp_path / "run", 2)  # type: ignore[operator]
    ways, notes = there_and_back(tmp_path, made), list[str]()
    done = ckptdiff.apply(made[0], [*ways * 64, ways[0]], tmp_path / "out", noted=notes.append)
    assert (tree(tmp_path / "out") if made[0].is_file() else weights(tmp_path / "out")) == (
        tree(made[1]) if made[0].is_file() else weights(made[1])
    )
    assert done.out == tmp_path / "out" and len(notes) == 1 and hidden(tmp_path) == []
    assert notes[0].startswith("129 patches: 64 are applied at a time, and the checkpoint in between is written 2 times on the way")
    ckptdiff.apply(made[0], ways * 32, tmp_path / "just one part", noted=notes.append)
    assert len(notes) == 1


def test_only_and_the_command(tmp_path: Path) -> None:
    made = run_of_files(tmp_path / "run", 2)
    ways = there_and_back(tmp_path, made)
    done = run("apply", made[0], *[*ways * 32, ways[0]], "-o", tmp_path / "one.safetensors", "--only", "a.weight")
    assert (
        done.exit_code == 0
        and "ckptdiff: 65 patches: 64 are applied at a time, and the checkpoint in between is written once" in done.stderr
    )
    with safe_open(tmp_path / "one.safetensors", "np") as file:
        assert list(file.keys()) == ["a.weight"]
    again = run("apply", made[0], *[*ways * 32, ways[0]], "-o", tmp_path / "one.safetensors", "--only", "a.weight", "--overwrite")
    assert again.exit_code == 0


def test_what_is_known_before_anything_is_rebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run_of_files(tmp_path / "run", 2)
    ways, listed = there_and_back(tmp_path, made), list[list[str]]()
    order = [*ways * 40, ways[1]]
    before = tree(tmp_path)
    with pytest.raises(ckptdiff.BaseMismatchError, match=r"back\.patch: is listed twice in a row: apply it once"):
        ckptdiff.apply(made[0], order, tmp_path / "out", listed=listed.append)
    with pytest.raises(ckptdiff.OutputError, match=r"the output is the input .*there\.patch"):
        ckptdiff.apply(made[0], ways * 40, ways[0], overwrite=True, listed=listed.append)
    with pytest.raises(ckptdiff.FormatError, match="are base and patch the wrong way round"):
        ckptdiff.apply(ways[0], [made[0], *ways * 40], tmp_path / "out", listed=listed.append)
    with monkeypatch.context() as patch, pytest.raises(ckptdiff.OutputError, match=r"bytes are needed, 9,000 are free"):
        patch.setattr(shutil, "disk_usage", lambda path: Usage(10**6, 0, 9000))
        ckptdiff.apply(made[0], ways * 40, tmp_path / "out", listed=listed.append)
    assert tree(tmp_path) == before and not listed


def test_a_fault_in_a_later_part_leaves_nothing(tmp_path: Path) -> None:
    made = run_of_files(tmp_path / "run", 2)
    ways = there_and_back(tmp_path, made)
    broken = tmp_path / "broken.patch"
    data = bytearray(ways[0].read_bytes())
    data[-1] ^= 1
    broken.write_bytes(data)
    before = tree(tmp_path)
    with pytest.raises(ckptdiff.IntegrityError, match=r"broken\.patch"):
        ckptdiff.apply(made[0], [*ways * 40, broken], tmp_path / "out")
    assert tree(tmp_path) == before and hidden(tmp_path) == []


def test_a_step_far_from_the_one_that_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chain's own keyframes keep it to 64 patches; from a step that is given there may be more."""
    checkpoints = training_run(tmp_path / "run", 6)
    ckptdiff.chain_add(tmp_path / "chain", checkpoints, keyframe_every=2)
    monkeypatch.setattr("ckptdiff.verbs.apply.MAX_CHAIN", 2)
    notes = list[str]()
    done = ckptdiff.chain_restore(tmp_path / "chain", 500, tmp_path / "out", base=checkpoints[0], noted=notes.append)
    assert len(done.patches) == 1 and not notes
    done = ckptdiff.chain_restore(tmp_path / "chain", 500, tmp_path / "far", base=checkpoints[1], noted=notes.append)
    assert len(done.patches) == 4 and len(notes) == 2 and tree(tmp_path / "far") == tree(tmp_path / "out") == weights(checkpoints[5])

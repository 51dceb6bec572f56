"""Work folders: told by their form, their marker and their lock, and never two of one name."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

import ckptdiff
from ckptdiff.io.work_folder import work_folder
from ckptdiff.patching.output import build_beside
from tests.support.killed_runs import beside, left_by_a_killed_run
from tests.support.small_pair import Pair


def test_a_work_folder_is_removed_by_its_form_its_marker_and_its_lock(files: Pair, tmp_path: Path) -> None:
    """At 687b727 the prefix alone decided, and the second of these, another output's only old copy, was deleted."""
    kept = [
        tmp_path / f".out.ckptdiff-{name}" for name in ("backup", "v2.ckptdiff-old", "abcdefgh", "abcdefghi", "ABCDEFGH", "running1", "a")
    ]
    for folder in kept:
        folder.mkdir(mode=0o700)
        (folder / "mine").write_text("mine")
        os.utime(folder, (1, 1))
    for folder in (kept[1], kept[3], kept[4], kept[5], kept[6]):
        (folder / "ckptdiff-work").touch()
    (tmp_path / ".out.ckptdiff-linked01").symlink_to(kept[2])
    (tmp_path / ".out.ckptdiff-file0001").write_text("mine")
    (tmp_path / ".out.ckptdiff-emptydir").mkdir(mode=0o755)
    other = left_by_a_killed_run(tmp_path, ".out.ckptdiff-v2.ckptdiff-abcdefgh", old="mine")
    gone = [left_by_a_killed_run(tmp_path, f".out.ckptdiff-gone000{k}", result="half") for k in range(2)]
    (tmp_path / ".out.ckptdiff-new00000").mkdir(mode=0o700)  # killed before it was marked
    lock = os.open(kept[5] / "ckptdiff-work", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    ckptdiff.apply(files.base, files.patch, tmp_path / "out")
    os.close(lock)
    assert all((folder / "mine").exists() for folder in kept) and (other / "old" / "file").exists()
    assert not any(folder.exists() for folder in gone) and not (tmp_path / ".out.ckptdiff-new00000").exists()
    for name in ("linked01", "file0001", "emptydir"):
        assert os.path.lexists(tmp_path / f".out.ckptdiff-{name}")
    with pytest.raises(ckptdiff.CheckpointError, match=r"put it back: mv .*\.out\.ckptdiff-v2\.ckptdiff-abcdefgh/old .*out\.ckptdiff-v2"):
        ckptdiff.info(tmp_path / "out.ckptdiff-v2")


def test_in_a_folder_that_is_everybodys_only_ours_is_removed(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("making a folder of another user needs root")
    tmp_path.chmod(0o1777)
    ours, theirs = (left_by_a_killed_run(tmp_path, f"ckptdiff-demo-{name}", result="half") for name in ("ours0000", "theirs00"))
    os.chown(theirs, 65534, 65534)
    with work_folder(tmp_path, "ckptdiff-demo-") as work:
        assert not ours.exists() and theirs.exists() and work.path.parent == tmp_path
    assert beside(tmp_path) == ["ckptdiff-demo-theirs00"]


def test_long_names_that_share_their_beginning_have_their_own_work_folders(files: Pair, tmp_path: Path) -> None:
    first, second = (tmp_path / ("ü" * 60 + str(k)) for k in range(2))
    with build_beside(first) as built, build_beside(second) as other:
        names = [path.parent.name.rpartition("-")[0] for path in (built, other)]
        assert names[0] != names[1] and all(100 < len(os.fsencode(name)) < 143 for name in names)
        built.write_text("a")
        other.write_text("b")

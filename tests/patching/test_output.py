"""Outputs are put in place in one step, are mended after a crash, and never replace what is not ours."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import ckptdiff
from ckptdiff.io import durable
from ckptdiff.io.open_files import OPEN_FILES
from tests.support.checkpoints import bf16, tree, write, write_sharded
from tests.support.killed_runs import beside, left_by_a_killed_run
from tests.support.refusals import refused
from tests.support.small_pair import Pair, tensors


@pytest.fixture
def old(folders: Pair, tmp_path: Path) -> Path:
    """An output of an earlier run: the same weights in one file."""
    base, _ = tensors()
    write_sharded(tmp_path / "earlier", {"model.safetensors": base}, index=None)
    (tmp_path / "earlier" / "config.json").write_text("{}")
    ckptdiff.make(folders.base, tmp_path / "earlier", tmp_path / "earlier-patch")
    ckptdiff.apply(folders.base, tmp_path / "earlier-patch", tmp_path / "out")
    shutil.rmtree(tmp_path / "earlier")
    shutil.rmtree(tmp_path / "earlier-patch")
    return tmp_path / "out"


@pytest.fixture(params=["exchange", "two renames"])
def each_rename(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file system that can exchange, and one that cannot."""
    if request.param != "exchange":
        monkeypatch.setattr(durable, "_renameat2", lambda *_: False)
    return request.param


def overwrite(folders: Pair, out: Path) -> None:
    ckptdiff.apply(folders.base, folders.patch, out, overwrite=True)


def test_an_output_of_other_shards_is_replaced(folders: Pair, old: Path, each_rename: str) -> None:
    overwrite(folders, old)
    assert tree(old) == tree(folders.target) and beside(old.parent) == ["out"]


def fail_nth(monkeypatch: pytest.MonkeyPatch, name: str, nth: int, code: int, only: Callable[[object], bool] = lambda _: True) -> list[int]:
    """Let the ``nth`` call of a function of ``os`` (counted from 1; 0: all) fail; returns a list that counts the calls."""
    real, calls = getattr(os, name), [0]

    def call(*arguments: object) -> object:
        if only(arguments[0]):
            calls[0] += 1
            if nth in (0, calls[0]):
                raise OSError(code, os.strerror(code))
        return real(*arguments)

    monkeypatch.setattr(os, name, call)
    return calls


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_an_error_of_any_flush_leaves_the_old_or_the_new_and_says_which(
    code: int, folders: Pair, old: Path, each_rename: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the flush after the second rename once moved the old output onto the new one, and both stayed."""
    after = tree(folders.target)
    with monkeypatch.context() as patched:
        calls = fail_nth(patched, "fsync", -1, code)
        overwrite(folders, old)
    ends = []
    for nth in range(1, calls[0] + 1):
        shutil.rmtree(old)
        shutil.copytree(folders.base, old)
        (old / "README.md").write_text("old")
        before = tree(old)
        with monkeypatch.context() as patched, pytest.raises(ckptdiff.OutputError) as raised:
            fail_nth(patched, "fsync", nth, code)
            overwrite(folders, old)
        written = f"{old} is written, and whole, but {old.parent} could not be flushed to the disk ({os.strerror(code)})" in str(
            raised.value
        )
        assert tree(old) == (after if written else before) and beside(old.parent) == ["out"], (nth, str(raised.value))
        assert written or "cannot be written: Input" in str(raised.value) or "the disk is full" in str(raised.value)
        ends.append(written)
    assert ends == [False] * (len(ends) - 1) + [True]


def test_an_error_of_either_rename_leaves_the_old_output(folders: Pair, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_renameat2", lambda *_: False)
    for nth in (1, 2):
        with monkeypatch.context() as patched, refused(ckptdiff.OutputError, "cannot be written: Input/output error", old.parent):
            fail_nth(patched, "rename", nth, errno.EIO)
            overwrite(folders, old)


def test_where_the_old_output_cannot_be_moved_back_it_is_said_where_it_is(
    folders: Pair, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durable, "_renameat2", lambda *_: False)
    real, calls, before = os.rename, [0], tree(old)

    def rename(source: Path, target: Path) -> None:
        calls[0] += 1
        if calls[0] > 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(source, target)

    with monkeypatch.context() as patched, pytest.raises(ckptdiff.OutputError) as raised:
        patched.setattr(os, "rename", rename)
        overwrite(folders, old)
    (work,) = (path for path in old.parent.iterdir() if path.name.startswith(".out"))
    assert f"{work / 'old'}, the old output, could not be moved back (Input/output error)" in str(raised.value)
    assert tree(work / "old") == before
    with pytest.raises(ckptdiff.OutputError, match="out: exists"):  # the next run that writes it mends that
        ckptdiff.apply(folders.base, folders.patch, old)
    assert tree(old) == before and beside(old.parent) == ["out"]


@pytest.mark.parametrize("there", ["nothing", "the new output", "something else"])
def test_a_writer_mends_what_a_killed_run_left(there: str, folders: Pair, tmp_path: Path) -> None:
    """Killed before the second rename, after it, and before it with something else in its place since."""
    out = tmp_path / "out"
    content = {"old": "mine", "result": "new"} if there != "the new output" else {"old": "mine"}
    work = left_by_a_killed_run(tmp_path, **content)
    if there != "nothing":
        shutil.copytree(folders.target, out)
    if there == "something else":
        with refused(ckptdiff.OutputError, f"out: the old one is in {work / 'old'}, as something else came into its place", tmp_path):
            overwrite(folders, out)
        return
    with pytest.raises(ckptdiff.OutputError, match="out: exists"):
        ckptdiff.apply(folders.base, folders.patch, out)
    assert beside(tmp_path) == ["out"]
    assert (out / "file").read_text() == "mine" if there == "nothing" else tree(out) == tree(folders.target)


def test_an_old_output_that_is_half_removed_is_never_put_back(folders: Pair, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is killed while it removes what it has replaced; then somebody moves the new output away."""

    class Killed(BaseException): ...

    def killed(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        raise Killed

    monkeypatch.setattr(durable, "_renameat2", lambda *_: False)
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)  # that of a killed run is gone
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(shutil, "rmtree", killed)
        overwrite(folders, old)
    assert tree(old) == tree(folders.target)
    os.rename(old, old.parent / "mine")
    with pytest.raises(ckptdiff.CheckpointError, match=r"out: no such file or folder$"):
        ckptdiff.compare(old, folders.target)
    ckptdiff.apply(folders.base, folders.patch, old)
    assert tree(old) == tree(folders.target) and beside(old.parent) == ["mine", "out"]


FOREIGN = ["notes.txt", "lora.safetensors", "README.md", "optimizer.pt", ".git/HEAD", "sub/model.safetensors", "sub/config.json"]


@pytest.mark.parametrize("name", FOREIGN)
def test_overwrite_names_what_it_would_lose(name: str, folders: Pair, old: Path) -> None:
    """Such files were once deleted."""
    if name == "README.md":  # the target has one: take another patch
        (folders.target / name).unlink()
        shutil.rmtree(folders.patch)
        ckptdiff.make(folders.base, folders.target, folders.patch)
    (old / name).parent.mkdir(exist_ok=True)
    (old / name).write_text("mine")
    with refused(ckptdiff.OutputError, f'out: --overwrite would delete "{name}", which neither the new output', old.parent):
        overwrite(folders, old)
    assert (old / name).read_text() == "mine"


def test_overwrite_counts_links_to_folders_and_names_five(folders: Pair, old: Path, tmp_path: Path) -> None:
    for k in range(6):
        (old / f"{k}.txt").write_text("mine")
    (old / "a-link").symlink_to(tmp_path)
    with refused(ckptdiff.OutputError, '"0.txt", "1.txt", "2.txt", "3.txt", "4.txt" and 2 more, which', tmp_path):
        overwrite(folders, old)


def test_overwrite_of_a_home_is_refused_before_it_is_listed(folders: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home" / "sub").mkdir(parents=True)
    monkeypatch.setattr("ckptdiff.patching.overwrite._files_below", lambda _: pytest.fail("listed"))
    with refused(ckptdiff.OutputError, "home: is neither a checkpoint nor a patch", tmp_path):
        overwrite(folders, tmp_path / "home")


def test_overwrite_of_what_came_meanwhile(folders: Pair, old: Path) -> None:
    def appear(what: str, done: int, total: int) -> None:
        (old / "late.txt").write_text("mine")

    with pytest.raises(ckptdiff.OutputError, match="would delete"):
        ckptdiff.apply(folders.base, folders.patch, old, overwrite=True, progress=appear)
    assert (old / "late.txt").read_text() == "mine" and beside(old.parent) == ["out"]


def test_a_patch_takes_the_place_of_a_patch_and_not_of_a_checkpoint(folders: Pair, tmp_path: Path) -> None:
    with refused(ckptdiff.OutputError, 'would delete "model.safetensors"', tmp_path):
        ckptdiff.make(folders.target, folders.target, tmp_path / "base", overwrite=True)
    (folders.target / "README.md").unlink()  # the old patch has files/README.md.zst, the new one has not
    ckptdiff.make(folders.base, folders.target, folders.patch, overwrite=True)
    assert not (folders.patch / "files" / "README.md.zst").exists()
    (folders.patch / "files" / "mine.zst").write_text("mine")
    with refused(ckptdiff.OutputError, 'would delete "files/mine.zst"', tmp_path):
        ckptdiff.make(folders.base, folders.target, folders.patch, overwrite=True)
    (folders.patch / "files" / "mine.zst").unlink()
    (folders.patch / "ckptdiff.json").write_text("{}")  # broken: now it does not tell what is ours
    (folders.target / "config.json").unlink()
    with refused(ckptdiff.OutputError, 'would delete "files/config.json.zst"', tmp_path):
        ckptdiff.make(folders.base, folders.target, folders.patch, overwrite=True)


def test_a_pipeline_keeps_its_models_apart(tmp_path: Path) -> None:
    for side, rows in (("base", 1), ("target", 2)):
        for part in ("unet", "vae"):
            weights = {f"w{k}": bf16(np.full(9, k + rows)) for k in range(rows)}
            shards = {f"model-{k + 1:05}-of-{rows:05}.safetensors": {f"w{k}": weights[f"w{k}"]} for k in range(rows)}
            write_sharded(tmp_path / side / part, shards)
            (tmp_path / side / part / "config.json").write_text(side)
        (tmp_path / side / "model_index.json").write_text("{}")
    ckptdiff.make(tmp_path / "base", tmp_path / "target", tmp_path / "patch")
    shutil.copytree(tmp_path / "base", tmp_path / "out")
    overwrite(Pair(tmp_path / "base", tmp_path / "target", tmp_path / "patch"), tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "target")
    write(tmp_path / "out" / "text" / "model.safetensors", {"w": bf16([1.0])})
    with refused(ckptdiff.OutputError, 'would delete "text/model.safetensors"', tmp_path):
        overwrite(Pair(tmp_path / "base", tmp_path / "target", tmp_path / "patch"), tmp_path / "out")


def is_folder(fd: object) -> bool:
    return stat.S_ISDIR(os.fstat(fd).st_mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS])
def test_a_folder_that_cannot_be_flushed_is_no_error_and_a_file_is(
    code: int, folders: Pair, old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        calls = fail_nth(patched, "fsync", 0, code, is_folder)
        overwrite(folders, old)
        ckptdiff.make(folders.base, folders.target, tmp_path / "new")
    assert calls[0] > 2 and tree(old) == tree(folders.target) and tree(tmp_path / "new") == tree(folders.patch)
    with monkeypatch.context() as patched, refused(ckptdiff.OutputError, f"cannot be written: {os.strerror(code)}", tmp_path):
        fail_nth(patched, "fsync", 0, code, lambda fd: not is_folder(fd))
        overwrite(folders, old)


def test_exhausted_open_files_leave_nothing(folders: Pair, old: Path, tmp_path: Path) -> None:
    overwrite(folders, old)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    OPEN_FILES._shrink(0)  # those that other tests left open would be closed where a number is needed
    taken = [max(map(int, os.listdir("/proc/self/fd")))]
    while len(taken) == 1 or taken[-1] < taken[0]:
        taken.append(os.open("/dev/null", os.O_RDONLY))  # the limit is one of numbers, so that it counts with none of them free
    before, ends = sorted(tmp_path.rglob("*")), []
    try:
        for more in range(40):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1 + more, hard))
            try:
                overwrite(folders, old)
                ends.append("")
            except ckptdiff.CkptdiffError as error:
                ends.append(str(error))
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert sorted(tmp_path.rglob("*")) == before, more
    finally:
        for fd in taken[1:]:
            os.close(fd)
    failed = sum(map(bool, ends))
    assert 0 < failed < 39 and all(ends[:failed]) and all("Too many open files" in text for text in ends[:failed]), ends

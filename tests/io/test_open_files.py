"""A bounded number of files is open at a time, and a file that is opened again must be the same file."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import ckptdiff
from ckptdiff.io import open_files
from ckptdiff.io.source import LocalFile, read_bytes
from tests.support.checkpoints import bf16, tree, write_sharded

SHARDS = 90
LIMIT = 64
"""Open files that the process below may have: fewer than shards on either side, or in the patch."""

VERBS = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))
import ckptdiff
ckptdiff.make("base", "target", "patch")
ckptdiff.make("target", "base", "back")
ckptdiff.apply("base", "patch", "out", threads=3)
ckptdiff.apply("base", ["patch", "back", "patch"], "out3")
assert ckptdiff.verify("patch", base="base", target="out").ok
assert ckptdiff.compare("target", "out").same
assert ckptdiff.report("base", "patch", rank="none").totals.elements == {shards} * 16
assert len(ckptdiff.info("patch").tensors) == {shards}
"""


def sharded(folder: Path, step: float) -> None:
    names = [f"model-{k + 1:05}-of-{SHARDS:05}.safetensors" for k in range(SHARDS)]
    write_sharded(folder, {name: {f"w{k}": bf16([k + step] + [1.0] * 15)} for k, name in enumerate(names)})


def test_many_shards_under_a_low_limit(tmp_path: Path) -> None:
    sharded(tmp_path / "base", 0)
    sharded(tmp_path / "target", 0.5)
    code = VERBS.format(limit=LIMIT, shards=SHARDS)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "out") == tree(tmp_path / "out3") == tree(tmp_path / "target")


def test_the_command_keeps_to_the_limit_it_is_given(tmp_path: Path) -> None:
    sharded(tmp_path / "base", 0)
    sharded(tmp_path / "target", 0.5)
    code = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({LIMIT}, {LIMIT})); from ckptdiff.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, "make", "base", "target", "-o", "p"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(open_files, "capacity", lambda: 3)
    return 3


def some(folder: Path, count: int) -> list[LocalFile]:
    for k in range(count):
        (folder / f"f{k}").write_bytes(bytes([k]) * 1000)
    return [LocalFile(folder / f"f{k}") for k in range(count)]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_no_more_are_open_than_there_is_room_for(few: int, tmp_path: Path) -> None:
    before = descriptors()
    files = some(tmp_path, 20)
    assert descriptors() <= before + few
    assert [read_bytes(file, 999, 1)[0] for file in files] == list(range(20)) and descriptors() <= before + few
    for file in files:
        file.close()
    assert descriptors() <= before
    assert read_bytes(files[5], 0, 2) == b"\5\5"
    files[5].close()


def test_threads_share_files_that_come_and_go(few: int, tmp_path: Path) -> None:
    files = some(tmp_path, 12)

    def read(k: int) -> bool:
        return read_bytes(files[k % 12], k % 900, 100) == bytes([k % 12]) * 100

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(3000)))
    for file in files:
        file.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: os.utime(path, ns=(1, 1)), "was changed by another program while it was read: run again"),
        (lambda path: path.write_bytes(b"x"), "was changed by another program while it was read: run again"),
        (lambda path: path.unlink(), "cannot be opened: No such file or directory"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "not a regular file"),
    ],
    ids=["touched", "rewritten", "gone", "a fifo"],
)
def test_a_file_that_is_another_when_it_is_opened_again(few: int, tmp_path: Path, change, words: str) -> None:
    files = some(tmp_path, 8)
    change(tmp_path / "f0")
    for use in (lambda: read_bytes(files[0], 0, 1), files[0].check_unchanged):
        with pytest.raises(ckptdiff.CheckpointError) as caught:
            use()
        assert str(caught.value) == f"{tmp_path / 'f0'}: {words}"
    for file in files:
        file.close()


def test_a_relative_path_is_of_the_folder_where_it_was_named(few: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f0").write_bytes(b"here")
    monkeypatch.chdir(tmp_path)
    file = LocalFile(Path("f0"))
    file.close()
    monkeypatch.chdir("/")
    assert read_bytes(file, 0, 4) == b"here" and file.name == "f0"
    file.close()


def test_what_cannot_be_opened_leaves_nothing_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    before = descriptors()
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "none"):
        with pytest.raises(ckptdiff.CheckpointError):
            LocalFile(path)
    assert descriptors() == before

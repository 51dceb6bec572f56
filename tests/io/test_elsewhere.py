"""Jobs in other processes: which file they see, what is tried again, what errors say; and the real Ray, where it is installed."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import ckptdiff
from ckptdiff.errors import CheckpointError, IntegrityError, ResourceError, UnsupportedError
from ckptdiff.io.elsewhere import Elsewhere, JobError, LostError, do_batch
from ckptdiff.io.parallel import Work
from ckptdiff.io.ray_pool import open_pool
from ckptdiff.io.source import LocalFile
from tests.support.checkpoints import tree
from tests.support.commands import run
from tests.support.small_pair import Pair


@dataclass(frozen=True)
class Number:
    """A job."""

    number: int
    nbytes: int = 1


class Doubling(Work[Number, int]):
    """Doubles numbers; on some it raises an error."""

    def __init__(self, errors: dict[int, Exception], file: LocalFile | None = None) -> None:
        self.errors, self.file = errors, file

    def __call__(self, job: Number) -> int:
        if job.number in self.errors:
            raise self.errors[job.number]
        return 2 * job.number

    def about(self, job: Number) -> str:
        return f"number {job.number}"


class Here:
    """A pool whose processes are this one; what is submitted as batch number ``lost`` is lost. Notes how many are under way."""

    count = 2

    def __init__(self, lost: int = -1) -> None:
        self.lost, self.shared, self.most, self.cancelled = lost, 0, 0, list[int]()
        self._numbers = 0
        self._open = set[int]()

    def share(self, work: bytes) -> bytes:
        self.shared += 1
        return work

    def submit(self, key: str, shared: bytes, batch: bytes, memory: int) -> tuple[int, Any]:
        self._numbers += 1
        self._open.add(self._numbers)
        self.most = max(self.most, len(self._open))
        return self._numbers, (key, shared, batch)

    def result(self, submitted: tuple[int, Any]) -> bytes:
        number, arguments = submitted
        self._open.remove(number)
        if number == self.lost:
            raise LostError("it was killed")
        return do_batch(*arguments)

    def cancel(self, submitted: Iterable[tuple[int, Any]]) -> None:
        self.cancelled += [number for number, _ in submitted]


def test_results_are_in_order_and_few_batches_are_under_way() -> None:
    pool = Here()
    execute, work = Elsewhere(pool, 3), Doubling({})
    for _ in range(2):
        assert list(execute(work, map(Number, range(100)))) == list(range(0, 200, 2))
    assert (pool.most, pool.shared, pool.cancelled) == (4, 1, [])


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (IntegrityError("a digest"), IntegrityError, "^a digest$"),
        (CheckpointError("x: cannot be read"), CheckpointError, "^x: cannot be read$"),
        (OSError(errno.ENOSPC, "full"), OSError, "No space left on device"),
        (MemoryError(), ResourceError, r"^number 7: failed on worker .+, process \d+: out of memory.*; it was at test_elsewhere.py:"),
        (
            KeyError("x"),
            ResourceError,
            r"^number 7: failed on worker .+, process \d+: KeyError: 'x'; it was at test_elsewhere.py:\d+ __call__",
        ),
    ],
)
def test_errors(error: Exception, expected: type[Exception], text: str) -> None:
    pool = Here()
    with pytest.raises(expected, match=text) as raised:
        list(Elsewhere(pool, 1)(Doubling({7: error}), map(Number, range(100))))
    assert type(raised.value) is expected and pool.cancelled == [9, 10, 11]


def test_an_error_that_another_try_may_not_give_is_raised_in_the_worker() -> None:
    """Ray repeats what raises a JobError; what a file holds is not repeated."""
    work, batch = ckptdiff.__version__.encode() + b"\n", pickle.dumps([Number(7)])
    with pytest.raises(JobError):
        do_batch("a", work + pickle.dumps(Doubling({7: OSError(errno.EIO, "flaky")})), batch)
    assert b"a digest" in do_batch("b", work + pickle.dumps(Doubling({7: IntegrityError("a digest")})), batch)


def test_a_lost_worker_and_work_that_cannot_be_sent() -> None:
    with pytest.raises(
        ResourceError, match=r"^number 4: a worker was lost again and again .* it was killed; has each worker enough memory"
    ):
        list(Elsewhere(Here(lost=3), 2)(Doubling({}), map(Number, range(100))))
    work = Doubling({})
    work.errors = {1: (lambda: None)}  # type: ignore[dict-item]
    with pytest.raises(UnsupportedError, match=r"other processes cannot open what this one has open .*: leave --ray out"):
        list(Elsewhere(Here(), 2)(work, map(Number, range(3))))


def test_another_file_or_version_is_told(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(100_000))
    work = Doubling({}, LocalFile(path))
    assert list(Elsewhere(Here(), 2)(work, [Number(1)])) == [2]
    middle = bytearray(100_000)
    middle[50_000] = 1
    for data, found in (
        (bytes(99_999), "has 99,999 bytes, expected 100,000"),
        (bytes(middle), "has other bytes"),
        (None, "cannot be opened"),
    ):
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(CheckpointError, match=rf"f: .*{found}.* That is on worker .*: all workers must see the inputs and the output"):
            list(Elsewhere(Here(), 2)(work, [Number(1)]))
    done = pickle.loads(do_batch("c", b"0.0.7\n" + pickle.dumps(work), pickle.dumps([Number(1)])))
    assert "cannot do the jobs of 0.0.7: install the same version everywhere" in str(done.error)


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray(files: Pair, tmp_path: Path) -> None:
    done = run("apply", files.base, files.patch, "-o", tmp_path / "out", "--ray")
    assert done.exit_code == 3 and "--ray needs Ray; in a clone of the ckptdiff repository: pip install '.[ray]'" in done.stderr


def test_what_is_no_address(files: Pair, tmp_path: Path) -> None:
    done = run("apply", "--ray", files.base, files.patch, "-o", tmp_path / "out")
    assert done.exit_code == 2 and "is no address: expected HOST:PORT, auto or local; or give --ray behind all else" in " ".join(
        done.stderr.split()
    )


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_the_real_ray(folders: Pair, tmp_path: Path) -> None:
    """One cluster of two workers on this machine, for all of it; ``tests.support.ray_acceptance`` has larger pairs and faults."""
    with open_pool("local", 2):  # which imports Ray: it reads then where its servers listen
        import ray

        ckptdiff.make(folders.base, folders.target, tmp_path / "again", ray="auto")
        ckptdiff.apply(folders.base, folders.patch, tmp_path / "out", ray="auto")
        assert (tree(tmp_path / "again"), tree(tmp_path / "out")) == (tree(folders.patch), tree(folders.target))
        assert ckptdiff.verify(folders.patch, base=folders.base, ray="auto").ok
        with pytest.raises(ckptdiff.BaseMismatchError, match="is already the target of"):
            ckptdiff.apply(folders.target, folders.patch, tmp_path / "no", ray="auto")
        assert ray.is_initialized() and ray.nodes()[0]["NodeManagerAddress"] == "127.0.0.1"
        session = Path(ray.nodes()[0]["RayletSocketName"]).parents[1]
    assert not ray.is_initialized() and session.parent.name.startswith("ckptdiff-ray-") and not session.parent.exists()
    with pytest.raises(ResourceError, match=r"^Ray at 127\.0\.0\.1:1: cannot be reached: "):
        ckptdiff.apply(folders.base, folders.patch, tmp_path / "no", ray="127.0.0.1:1")

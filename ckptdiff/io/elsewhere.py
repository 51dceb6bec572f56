"""Jobs in other processes, on this machine or on others: how they are sent there, done there, and what comes back."""

from __future__ import annotations

import errno
import os
import pickle
import socket
import traceback
from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from ckptdiff import __version__
from ckptdiff.errors import BaseMismatchError, CkptdiffError, FormatError, IntegrityError, ResourceError, UnsupportedError, cut
from ckptdiff.io.parallel import JOB_BYTES, J, T, Work, batches
from ckptdiff.machine import machine_error

BATCH = 1 << 26
"""Bytes of jobs that a process is given at once, unless there is little work: to send jobs and results takes milliseconds."""
MOST_JOBS = 1 << 12
"""Jobs that it is given at once, however small they are."""
SHOWN_FRAMES = 4
"""Lines of a traceback that an error shows."""


class Pool(Protocol):
    """Processes that can be told to call :func:`do_batch`."""

    @property
    def count(self) -> int:
        """How many batches they do at a time."""

    def share(self, work: bytes) -> Any:
        """Keep pickled work for all processes; what is returned goes to :meth:`submit`."""

    def submit(self, key: str, shared: Any, batch: bytes, memory: int) -> Any:
        """Have a process do ``do_batch(key, work, batch)``, for which it may take so many bytes of memory; returns at once."""

    def result(self, submitted: Any) -> bytes:
        """What the process returned.

        Raises:
            JobError: it raised that, each time that it was tried. LostError: the process ended, each time.
        """

    def cancel(self, submitted: Iterable[Any]) -> None:
        """Have batches not be done, or stopped; returns when no process works on one."""


class JobError(Exception):
    """A job failed in another process. Its arguments are what can be pickled of what happened there."""

    def __init__(self, about: str, where: str, cause: str, frames: str, error: CkptdiffError | None, code: int | None) -> None:
        super().__init__(about, where, cause, frames, error, code)
        self.about, self.where, self.cause, self.frames, self.error, self.code = about, where, cause, frames, error, code


class LostError(Exception):
    """A process that did a batch was lost; its argument says how."""


# --- where the command runs ---


class Elsewhere:
    """An :class:`~ckptdiff.io.parallel.Executor` on other processes.

    At most twice as many batches are under way, or done and not yet taken, as there are processes.
    """

    def __init__(self, pool: Pool, batch: int) -> None:
        self._pool, self._batch = pool, batch
        self._last: tuple[Work[Any, Any], str, Any] | None = None

    def __call__(self, work: Work[J, T], jobs: Iterable[J]) -> Generator[T, None, None]:
        work = work.elsewhere
        pending: deque[tuple[Any, J]] = deque()
        try:
            for batch in batches(jobs, self._batch, MOST_JOBS):
                pending.append((self._submit(work, batch), batch[0]))
                if len(pending) >= 2 * self._pool.count:
                    yield from self._take(work, pending)
            while pending:
                yield from self._take(work, pending)
        finally:
            self._pool.cancel(submitted for submitted, _ in pending)

    def _submit(self, work: Work[J, T], batch: list[J]) -> Any:
        """Give a batch to the pool; work that is not the one before is pickled, and shared, first."""
        if self._last is None or self._last[0] is not work:
            self._last = work, os.urandom(16).hex(), self._pool.share(_pickled(work))
        _, key, shared = self._last
        return self._pool.submit(key, shared, pickle.dumps(batch, pickle.HIGHEST_PROTOCOL), max(map(work.memory, batch)))

    def _take(self, work: Work[J, T], pending: deque[tuple[Any, J]]) -> list[T]:
        """The results of the batch that was submitted first, which stays among the pending ones until they are here."""
        submitted, first = pending[0]
        try:
            done: _Done = pickle.loads(self._pool.result(submitted))
        except LostError as error:
            pending.popleft()
            raise ResourceError(
                f"{work.about(first)}: a worker was lost again and again while it did this and the jobs after it: {error}; "
                "has each worker enough memory, and does its machine run?"
            ) from None
        except JobError as error:
            pending.popleft()
            _raise(error)
        pending.popleft()
        if done.error is not None:
            raise done.error
        return done.results


def _pickled(work: Work[Any, Any]) -> bytes:
    try:
        return __version__.encode() + b"\n" + pickle.dumps(work, pickle.HIGHEST_PROTOCOL)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise UnsupportedError(
            f"other processes cannot open what this one has open ({cut(error)}): leave --ray out, or give files and folders that all "
            "machines see"
        ) from None


def _raise(error: JobError) -> NoReturn:
    """Raise what a job failed of: the same error, if that is one for users or of a disk, or one that says all that is known."""
    if error.error is not None:
        raise error.error
    if error.code in (errno.ENOSPC, errno.EDQUOT):
        raise OSError(error.code, os.strerror(error.code))
    raise ResourceError(f"{error.about}: failed on worker {error.where}: {error.cause}; it was at {error.frames}")


class ProcessWorkers:
    """:class:`~ckptdiff.io.parallel.Workers` in other processes."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def executor(self, nbytes: int, least: int = JOB_BYTES) -> Elsewhere:
        """As of :class:`~ckptdiff.io.parallel.Workers`."""
        return Elsewhere(self._pool, min(BATCH, nbytes // (4 * self._pool.count)))

    def alone(self) -> tuple[Elsewhere, int]:
        """As of :class:`~ckptdiff.io.parallel.Workers`: a job is a batch, on one core."""
        return Elsewhere(self._pool, 0), 1


# --- in a process that does jobs ---


@dataclass(frozen=True, slots=True)
class _Done:
    """What came of a batch."""

    results: list[Any]
    error: CkptdiffError | None = None
    """An error that another try would give too."""


FINAL = (FormatError, UnsupportedError, IntegrityError, BaseMismatchError)
"""Errors of what files hold; all others may be of the machine, or of a file system for a moment, and are worth another try."""


class _Opened:
    """The work that this process did last, whose files stay open for the next batch."""

    key = ""
    work: Work[Any, Any] | None = None


def do_batch(key: str, work: Any, batch: bytes) -> bytes:
    """Do a batch of jobs in this process.

    Args:
        key: tells pickled work from other work.
        work: it, as a buffer.
        batch: the jobs, pickled.

    Returns:
        What came of it, for :class:`Elsewhere`.

    Raises:
        JobError: a job failed, and may not fail again.
    """
    try:
        opened = _open(key, work)
    except CkptdiffError as error:
        message = f"{error}. That is on worker {_here()}: all workers must see the inputs and the output at the paths that they have here"
        return pickle.dumps(_Done([], type(error)(message)))
    jobs: list[Any] = pickle.loads(batch)
    results, job = [], jobs[0]
    try:
        try:
            for job in jobs:
                results.append(opened(job))
        finally:
            opened.rest()
    except FINAL as error:
        return pickle.dumps(_Done([], error))
    except Exception as error:
        raise _job_error(opened.about(job), error) from None
    return pickle.dumps(_Done(results), pickle.HIGHEST_PROTOCOL)


def _open(key: str, work: Any) -> Work[Any, Any]:
    """Unpickle work, which opens its files; raises CkptdiffError."""
    if _Opened.key != key or _Opened.work is None:
        _Opened.work = None  # first, so that its memory is free
        version, _, pickled = bytes(work).partition(b"\n")
        if version != __version__.encode():
            raise UnsupportedError(f"ckptdiff {__version__} cannot do the jobs of {version.decode()}: install the same version everywhere")
        _Opened.key, _Opened.work = key, pickle.loads(pickled)
    return _Opened.work


def _here() -> str:
    """This process, for messages."""
    return f"{socket.gethostname()}, process {os.getpid()}"


def _job_error(about: str, error: Exception) -> JobError:
    lacking = machine_error(error)
    cause = str(lacking) if lacking is not None else f"{type(error).__name__}: {cut(' '.join(str(error).split()))}"
    frames = traceback.extract_tb(error.__traceback__)[-SHOWN_FRAMES:]
    shown = " < ".join(f"{os.path.basename(frame.filename)}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    return JobError(about, _here(), cause, shown, error if isinstance(error, CkptdiffError) else None, getattr(error, "errno", None))

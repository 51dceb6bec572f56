"""Errors that come of this machine, not of an input or output: no memory, no more threads, a library that cannot be loaded."""

from __future__ import annotations

import errno
import resource

from ckptdiff.errors import ResourceError


def machine_error(error: BaseException) -> ResourceError | None:
    """The error to raise in place of one that says what this machine lacks; None for any other error."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or _is_zstd_memory(error):
        return ResourceError(f"out of memory{_limit(', under a limit of {} (ulimit -v)')}: free some, raise the limit, or give --threads 1")
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        limit = _limit(", or the limit of {} on memory (ulimit -v)")
        return ResourceError(f"no more threads can be started: raise the limit on processes (ulimit -u){limit}, or give --threads 1")
    if isinstance(error, ImportError) or _was_importing(error):
        limit = _limit("; the limit of {} on memory (ulimit -v) may be too low")
        return ResourceError(f"a library cannot be loaded: {_cause(error)}{limit}")
    return None


def _is_zstd_memory(error: BaseException) -> bool:
    """Whether zstandard had no memory; it has one class of errors, without codes."""
    return type(error).__name__ == "ZstdError" and "not enough memory" in str(error)


def _was_importing(error: BaseException) -> bool:
    """Whether an error was raised while a module was imported: loading a shared library may raise an OSError without a code."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_next is not None and trace.tb_next.tb_frame.f_code.co_name == "<module>":
            return True
        trace = trace.tb_next
    return False


def _cause(error: BaseException) -> str:
    """The first sentence of the first error, which names the library; the errors that follow from it only guess."""
    before = error.__cause__ or error.__context__
    while isinstance(before, (ImportError, OSError)):
        error, before = before, before.__cause__ or before.__context__
    return " ".join(str(error).split()).partition(". ")[0][:300]


def _limit(text: str) -> str:
    """``text`` with the limit on this process's memory, if there is one."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return "" if limit == resource.RLIM_INFINITY else text.format(f"{limit // 1024:,} kB")

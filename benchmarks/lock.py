"""How long Python's lock is held for a tensor and for a block of 2 MB, by samples on the clock of CPU time.

    python benchmarks/lock.py FOLDER [--tensors 10000] [--mb 512] [--share 0.02] [--error 0.04] [--codec context]

makes three pairs of bf16 checkpoints in FOLDER if they are not there, of one tiny tensor, of many, and of a few large ones; calls ``make``
and ``apply`` for each in this process, warm, until the standard error of the time under the lock is below that share of it; and prints CPU
seconds of a call, those under the lock, and what each tensor or block adds to those of the first pair. Rebuilt files are compared with the
target's.

For every millisecond of CPU time the kernel's perf events send this process a signal, and a compiled handler counts whether its thread
holds the lock. So what other programs do changes little: they take no CPU time of this one's, while samplers that go by the clock on the
wall count on when a thread waits for a core with the lock in its hand. All work is on one thread. Linux on x86-64 or aarch64; without root
`sysctl kernel.perf_event_paranoid=1`.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import filecmp
import gc
import math
import mmap
import os
import platform
import shutil
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numba.extending
import numpy as np
from cost_model import MIB, Size, write_pair

import ckptdiff

PERIOD = 997_000
"""Nanoseconds of CPU time between samples."""
SA_RESTART, F_SETSIG, F_SETOWN_EX = 0x10000000, 10, 15
PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241}
"""Numbers of the system call."""
PERF_ATTRIBUTES = struct.pack("<2I5Q2I", 1, 64, 0, PERIOD, 0, 0, 0, 1, 0).ljust(64, b"\0")
"""``struct perf_event_attr``: software (1), 64 bytes, the clock of the CPU (0), a signal a period."""
COUNTS = np.zeros(2, np.int64)
"""Samples without the lock, and with it."""
ADDRESS = COUNTS.ctypes.data
holds_lock = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.cast(ctypes.pythonapi.PyGILState_Check, ctypes.c_void_p).value)


@numba.extending.intrinsic
def integers_at(_: Any, address: Any) -> Any:
    """A pointer to integers at an address."""
    signature = numba.types.CPointer(numba.types.int64)(numba.types.intp)
    return signature, lambda context, builder, made, values: builder.inttoptr(values[0], context.get_value_type(made.return_type))


@numba.cfunc(numba.types.void(numba.types.int32))
def take_sample(_: int) -> None:
    """The handler, which must not need the lock itself."""
    counts = numba.carray(integers_at(ADDRESS), 2)
    counts[holds_lock() & 1] += 1


class SignalAction(ctypes.Structure):
    """``struct sigaction`` of Linux's C libraries."""

    _fields_ = (("handler", ctypes.c_void_p), ("mask", ctypes.c_ulong * 16), ("flags", ctypes.c_int), ("restorer", ctypes.c_void_p))


@contextmanager
def samples() -> Iterator[None]:
    """Count meanwhile. The handler stays: when Python ends, no signal may come any more, since the counts go."""
    library = ctypes.CDLL(None, use_errno=True)
    action = SignalAction(take_sample.address, (ctypes.c_ulong * 16)(), SA_RESTART, None)
    if library.sigaction(signal.SIGPROF, ctypes.byref(action), None):
        raise SystemExit("the signal's handler cannot be set")
    event = library.syscall(PERF_EVENT_OPEN[platform.machine()], PERF_ATTRIBUTES, 0, -1, -1, 0)
    if event < 0:
        raise SystemExit(f"no perf events: {os.strerror(ctypes.get_errno())}")
    with open(event), mmap.mmap(event, 2 * mmap.PAGESIZE):
        fcntl.fcntl(event, fcntl.F_SETFL, os.O_ASYNC)
        fcntl.fcntl(event, F_SETSIG, signal.SIGPROF)
        fcntl.fcntl(event, F_SETOWN_EX, struct.pack("2i", 0, threading.get_native_id()))
        yield


class Figures(NamedTuple):
    """Means of some calls."""

    calls: int
    cpu: float
    """Seconds of CPU time."""
    lock: float
    """Those under the lock."""
    error: float
    """Standard error of these, at most."""


def measured(call: Callable[[], object], error: float) -> Figures:
    """Call until the time under the lock is known well enough, after a call that warms up."""
    call()
    COUNTS[:], calls, started = 0, 0, time.process_time()
    while calls < 3 or COUNTS[1] * error**2 < 1:
        call()
        calls += 1
    cpu, (free, held) = (time.process_time() - started) / calls, COUNTS.tolist()
    share = held / (free + held)
    return Figures(calls, cpu, cpu * share, cpu * share / math.sqrt(held))


def figures(folder: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, Figures]]:
    """The figures of each verb for a pair."""
    base, target, patch, out = (folder / name for name in ("base", "target", "patch", "out"))
    codec, error = arguments.codec, arguments.error
    yield "make", measured(lambda: ckptdiff.make(base, target, patch, codec=codec, threads=1, overwrite=True), error)
    yield "apply", measured(lambda: ckptdiff.apply(base, patch, out, threads=1, overwrite=True), error)
    if not filecmp.cmp(target / "model.safetensors", out / "model.safetensors", shallow=False):
        raise SystemExit(f"{folder}: not exact")
    for path in (patch, out):
        shutil.rmtree(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tensors", type=int, default=10_000)
    parser.add_argument("--mb", type=int, default=512)
    parser.add_argument("--share", type=float, default=0.02)
    parser.add_argument("--error", type=float, default=0.04)
    parser.add_argument("--codec", default="context")
    arguments = parser.parse_args()
    gc.set_threshold(100_000, 20, 20)  # as the command line does
    with samples():
        print_rows(arguments)


def print_rows(arguments: argparse.Namespace) -> None:
    """Measure both verbs on all pairs."""
    large = Size(math.ceil(arguments.mb / 64), 64 * MIB)
    print("| call | tensors x bytes | calls | CPU, s | lock, s | lock, ms | |\n|---|---|---|---|---|---|---|")
    first = dict[str, Figures]()
    for size, units, what in (
        (Size(1, 128), 1, ""),
        (Size(arguments.tensors, 128), arguments.tensors, "a tensor"),
        (large, large.blocks, "a block"),
    ):
        folder = arguments.folder / f"{size.tensors}x{size.nbytes}"
        if not folder.exists():
            write_pair(folder, size, arguments.share)
        for verb, found in figures(folder, arguments):
            least = first.setdefault(verb, found)
            each = f"{1e3 * (found.lock - least.lock) / units:.4f} ± {1e3 * found.error / units:.4f}" if what else ""
            print(f"| {verb} | {size} | {found.calls} | {found.cpu:.3f} | {found.lock:.4f} | {each} | {what} |", flush=True)


if __name__ == "__main__":
    main()

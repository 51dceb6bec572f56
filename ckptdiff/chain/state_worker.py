"""A process that writes states to a chain, so that training goes on beside it: the memory is shared, and commands go through a pipe.

``python -m ckptdiff.chain.state_worker CONNECTION MEMORY`` takes the numbers of open files. It ends when the other end of the pipe does.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Any

import numpy as np

from ckptdiff.chain.documents import ChainDocument
from ckptdiff.chain.state_writer import Copies, StateWriter, WriterOptions
from ckptdiff.errors import CkptdiffError, ResourceError
from ckptdiff.io.store import Store
from ckptdiff.live.state_copy import Layout, StateCopy
from ckptdiff.machine import machine_error


@dataclass(frozen=True, slots=True)
class Setup:
    """What the process is told at first."""

    store: Store
    chain: ChainDocument
    layout: Layout
    options: WriterOptions
    copies: int
    """How many copies of the state the memory has: reference, staging, and the base if there is a third."""


class SharedMemory:
    """Memory that other processes may have too, and that is gone with the last of them, however they end: it has no name."""

    def __init__(self, size: int) -> None:
        if hasattr(os, "memfd_create"):
            self.file = os.memfd_create("ckptdiff")
        else:
            with tempfile.TemporaryFile() as file:
                self.file = os.dup(file.fileno())
        os.ftruncate(self.file, max(size, 1))
        self.bytes = memory_of(self.file, size)

    def close(self) -> None:
        """Close the file; the memory stays as long as arrays of it do."""
        with suppress(OSError):
            os.close(self.file)


def memory_of(file: int, size: int) -> Any:
    """The memory of an open file: uint8[size]."""
    return np.frombuffer(mmap.mmap(file, max(size, 1)), np.uint8)[:size]


def copies_in(memory: Any, layout: Layout, count: int) -> Copies:
    """The copies of states that lie one after another in memory."""
    states = [StateCopy(layout, memory[k * layout.size : (k + 1) * layout.size]) for k in range(count)]
    return Copies(states[0], states[1], states[2] if count > 2 else None)


class Worker:
    """The other process, as the publisher sees it. Commands are done one after another."""

    def __init__(self, setup: Setup, memory: SharedMemory) -> None:
        here, there = Pipe()
        self._connection, self._waiting = here, deque[Future[Any]]()
        self._lock, self.error = threading.Lock(), None
        command = [sys.executable, "-m", "ckptdiff.chain.state_worker", str(there.fileno()), str(memory.file)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with there:
            self.process = subprocess.Popen(
                command, pass_fds=(there.fileno(), memory.file), env=environment, stdin=subprocess.DEVNULL, start_new_session=True
            )
        self._reader = threading.Thread(target=self._read, name="ckptdiff-publisher", daemon=True)
        self._reader.start()
        self.call("open", setup).result()

    error: ResourceError | None
    """Why it does nothing any more; None as long as it does."""

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """Have a method of the :class:`~ckptdiff.chain.state_writer.StateWriter` called; raises :attr:`error`."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            if self.error is not None:
                raise self.error
            self._waiting.append(future)
            with suppress(OSError):  # it has ended: the reader finds that too
                self._connection.send((method, arguments))
        return future

    def _read(self) -> None:
        while True:
            try:
                done, result = self._connection.recv()
            except (EOFError, OSError):
                break
            future = self._waiting.popleft()
            future.set_result(result) if done else future.set_exception(result)
        self._ended()

    def _ended(self) -> None:
        code = self.process.wait()
        with self._lock:
            how = f"was killed by signal {-code}" if code < 0 else f"has ended with code {code}"
            self.error = ResourceError(f"the publisher's process {how}: call resume() to start another one")
            while self._waiting:
                self._waiting.popleft().set_exception(self.error)

    def close(self) -> None:
        """Let it end after what it is doing, and wait for that."""
        with self._lock, suppress(OSError):
            self._connection.send(None)
        self._reader.join()
        self._connection.close()


def serve(connection: Connection, file: int) -> None:
    """What the other process does: open a writer, and call what it is told to, until the pipe ends."""
    writer: StateWriter | None = None
    while True:
        try:
            message = connection.recv()
        except (EOFError, OSError):
            return
        if message is None:
            return
        method, arguments = message
        answer: tuple[bool, Any]
        try:
            if writer is None:
                (setup,) = arguments
                copies = copies_in(memory_of(file, setup.copies * setup.layout.size), setup.layout, setup.copies)
                writer = StateWriter(setup.store, setup.chain, copies, setup.options)
                answer = True, None
            else:
                answer = True, getattr(writer, method)(*arguments)
        except CkptdiffError as error:
            answer = False, error
        except Exception as error:  # a bug, or a lack of the machine: the caller shall see it
            answer = False, machine_error(error) or RuntimeError(f"in the publisher's process: {type(error).__name__}: {error}")
        try:
            connection.send(answer)
        except OSError:
            return


def main(arguments: Sequence[str]) -> None:
    """Serve the pipe and the memory whose numbers are given."""
    connection, file = map(int, arguments)
    serve(Connection(connection), file)


if __name__ == "__main__":
    main(sys.argv[1:])

"""States of a model in memory published as versions of a chain, from a trainer."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

from ckptdiff.chain.creation import open_or_make
from ckptdiff.chain.following import Version
from ckptdiff.chain.state_worker import Setup, SharedMemory, Worker, copies_in
from ckptdiff.chain.state_writer import Copies, StateWriter, WriterOptions
from ckptdiff.errors import CheckpointError
from ckptdiff.io.store import Store
from ckptdiff.io.store_urls import open_store
from ckptdiff.live.encoder import Encoder
from ckptdiff.live.state_copy import StateCopy, copied

WORKERS = (None, "thread", "process")


class Publisher:
    """Publishes states of a model, one after another, as steps of a chain (``spec/chain-v1.md``).

    It keeps a copy of the last state on the host, from which the next patch is made, and which advances only once that is complete in the
    store. With a worker it has one more copy, which :meth:`publish` copies the state into; with a codec other than ``sparse`` one more of
    the base, for keyframes. Use it in a ``with`` statement, or close it.

    Args:
        store: a folder or a URL that fsspec knows (``s3://bucket/run``). If it is empty the chain is made; if it has steps, call
            :meth:`resume` first. A publisher that has written there before is shut out.
        base: the chain's base: a state dict or a module of torch or numpy tensors, or a checkpoint's path.
        keyframe_every: the most patches that a step takes (1 to 64; 50 for a new chain).
        codec: ``sparse`` (a new chain's, unless told), ``context`` or ``raw``. A chain keeps both of these.
        dtype: as of :class:`ckptdiff.Encoder`: what fp32 masters are cast to.
        acknowledged: whether each version waits for :meth:`ack` or :meth:`reject` before the next one.
        worker: ``process``: encode and write in another process, so that :meth:`publish` only copies; ``thread``: in another thread;
            None: in the calling one.
        threads: how many to encode with; the bytes do not depend on it.

    Raises:
        BaseMismatchError: the chain has another base. CheckpointError: another policy, or the base cannot be read.
        OutputError: something else is there. StoreError: the store fails. FormatError: the chain is broken, or forked.
    """

    def __init__(
        self,
        store: str | os.PathLike[str],
        *,
        base: Any,
        keyframe_every: int | None = None,
        codec: str | None = None,
        dtype: Any = None,
        acknowledged: bool = False,
        worker: Literal["process", "thread"] | None = None,
        threads: int | None = None,
    ) -> None:
        if worker not in WORKERS:
            raise CheckpointError(f"worker={worker!r}: expected 'process', 'thread' or None")
        self._closed = False
        self._store = open_store(store)
        options = WriterOptions(codec=codec, keyframe_every=keyframe_every, acknowledged=acknowledged, threads=threads)
        reference = copied(base, dtype)
        chain = open_or_make(self._store, Encoder(reference, threads=threads).identity, codec, keyframe_every)
        needs_base = chain.codec != "sparse"
        self._way: _Direct | _InThread | _InProcess
        if worker == "process":
            self._way = _InProcess(self._store, chain, reference, options, needs_base)
            return
        base_copy = _copy_of(reference) if needs_base else None
        staging = StateCopy.new(reference.layout) if worker == "thread" else None
        writer = StateWriter(self._store, chain, Copies(reference, staging, base_copy), options)
        self._way = _InThread(writer, staging) if staging is not None else _Direct(writer)

    def publish(self, state: Any, step: int) -> Any:
        """Publish a state as a step.

        Args:
            state: a state dict or a module, with the base's names and shapes.
            step: its number, above that of the last one.

        Returns:
            The :class:`ckptdiff.Version`; with a worker, a :class:`concurrent.futures.Future` of it, once the state is copied and may be
            changed. Where the version before is still being written, that is waited for first.

        Raises:
            CheckpointError: the step is not above the last one, or the last one waits to be acknowledged; or the state has other tensors.
            OutputError: another publisher has taken over, or :meth:`resume` must be called first. ResourceError: the worker process has
            ended. StoreError: the store fails. With a worker, the future raises them. The chain has the step, or it has not.
        """
        return self._open.publish(state, step)

    @property
    def _open(self) -> _Direct | _InThread | _InProcess:
        if self._closed:
            raise CheckpointError(f"{self._store.name}: this publisher is closed: make another one")
        return self._way

    def resume(self) -> Version | None:
        """Take the chain over, and go on from its last step, whatever has happened; a worker that has ended is started again.

        A version that waited to be acknowledged counts as taken.

        Returns:
            The last step; None if there is none.

        Raises:
            BaseMismatchError, FormatError: no copy that is at hand leads to the last step. UnsupportedError: it has other tensors.
            OutputError: another publisher takes over at this moment. StoreError: the store fails.
        """
        result: Version | None = self._open.call("resume")
        return result

    def ack(self, version: Version | int) -> None:
        """Say that the version, or the step of this number, was taken, where versions are acknowledged: the next patch starts from it.

        Raises:
            CheckpointError: it does not wait for that.
        """
        self._open.call("ack", _step_of(version))

    def reject(self, version: Version | int) -> None:
        """Say that the last version was not taken: the next step gets a keyframe. Where versions are acknowledged it is withdrawn from the
        chain, and the next patch starts from the version before.

        Raises:
            CheckpointError: it is not the last one. OutputError: another publisher has taken over. StoreError: the store fails.
        """
        self._open.call("reject", _step_of(version))

    def close(self) -> None:
        """Wait for what is being written, and end the worker. The chain may be gone on with by another publisher."""
        if not self._closed:
            self._closed = True
            self._way.close()

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _step_of(version: Version | int) -> int:
    return version.step if isinstance(version, Version) else version


def _copy_of(state: StateCopy) -> StateCopy:
    copy = StateCopy.new(state.layout)
    copy.take(state)
    return copy


class _Direct:
    """In the calling thread."""

    def __init__(self, writer: StateWriter) -> None:
        self._writer = writer

    def publish(self, state: Any, step: int) -> Version:
        return self._writer.publish(state, step)

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self._writer, method)(*arguments)

    def close(self) -> None:
        """Nothing is open."""


class _Staged(ABC):
    """Through a staged copy, by one who is busy with it until its future is done."""

    def __init__(self, staging: StateCopy) -> None:
        self._staging, self._busy = staging, Future[Version]()
        self._busy.cancel()

    def publish(self, state: Any, step: int) -> Future[Version]:
        self.check()
        self.wait()
        self._staging.put_all(state)
        self._busy = self.submit("publish", None, step)
        return self._busy

    def call(self, method: str, *arguments: Any) -> Any:
        self.wait()
        return self.submit(method, *arguments).result()

    def wait(self) -> None:
        """Wait until the staged copy is not used any more; what came of it is said by the future."""
        if not self._busy.cancelled():
            self._busy.exception()

    @abstractmethod
    def check(self) -> None:
        """Raise if nothing can be published."""

    @abstractmethod
    def submit(self, method: str, *arguments: Any) -> Future[Any]:
        """Have a method of the writer called, after all before it."""


class _InThread(_Staged):
    def __init__(self, writer: StateWriter, staging: StateCopy) -> None:
        super().__init__(staging)
        self._writer, self._pool = writer, ThreadPoolExecutor(1, thread_name_prefix="ckptdiff-publisher")

    def check(self) -> None:
        """A thread does not end by itself."""

    def submit(self, method: str, *arguments: Any) -> Future[Any]:
        work: Callable[..., Any] = getattr(self._writer, method)
        return self._pool.submit(work, *arguments)

    def close(self) -> None:
        self._pool.shutdown(wait=True)


class _InProcess(_Staged):
    def __init__(self, store: Store, chain: Any, reference: StateCopy, options: WriterOptions, needs_base: bool) -> None:
        layout, count = reference.layout, 3 if needs_base else 2
        self._memory = SharedMemory(count * layout.size)
        copies = copies_in(self._memory.bytes, layout, count)
        assert copies.staging is not None
        for copy in (copies.reference, copies.staging, copies.base):
            if copy is not None:
                copy.take(reference)
        super().__init__(copies.staging)
        self._setup = Setup(store, chain, layout, options, count)
        self._worker = Worker(self._setup, self._memory)

    def check(self) -> None:
        if self._worker.error is not None:
            raise self._worker.error

    def submit(self, method: str, *arguments: Any) -> Future[Any]:
        if method == "resume" and self._worker.error is not None:
            self._worker.close()
            self._worker = Worker(self._setup, self._memory)
        return self._worker.call(method, *arguments)

    def close(self) -> None:
        self._worker.close()
        self._memory.close()

"""States of a model, one after another, written to a chain: what :class:`ckptdiff.Publisher` does, in whatever thread or process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from ckptdiff.chain.documents import ChainDocument, Head
from ckptdiff.chain.following import Version, last_of, path_to, put_together, read_patches
from ckptdiff.chain.history import History, read_history
from ckptdiff.chain.names import DIGITS, HEAD, MAX_STEP, PatchName
from ckptdiff.chain.writer import ChainWriter
from ckptdiff.errors import BaseMismatchError, CheckpointError, CkptdiffError, FormatError, OutputError, StoreError, UnsupportedError
from ckptdiff.io.store import Store
from ckptdiff.live.encoder import Encoder
from ckptdiff.live.patch import Patch, compose_in_memory
from ckptdiff.live.restored import restored
from ckptdiff.live.state_copy import StateCopy
from ckptdiff.patching.chain import MAX_CHAIN

THE_REFERENCE = "the publisher's copy of the last state"
"""How messages call it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterOptions:
    """How states are written; as of :class:`ckptdiff.Publisher`."""

    codec: str | None
    keyframe_every: int | None
    acknowledged: bool
    threads: int | None


@dataclass(slots=True)
class Copies:
    """The copies of states that a publisher has. Another process may share their memory."""

    reference: StateCopy
    """The last state whose version is complete."""
    staging: StateCopy | None
    """What is to be published; None if it is read from where the caller has it. While ``reference`` is written to, it becomes this."""
    base: StateCopy | None
    """The chain's base, which keyframes are made from; None where ``sparse`` patches are composed to keyframes."""


class StateWriter:
    """The one who writes states to a chain.

    Attributes:
        last: the last version of the chain; None if it has none.
        pending: the version that is neither acknowledged nor rejected.
    """

    def __init__(self, store: Store, chain: ChainDocument, copies: Copies, options: WriterOptions) -> None:
        self.store, self.chain, self.copies, self.options = store, chain, copies, options
        self.last: Version | None = None
        self.pending: Version | None = None
        self._before: tuple[Version | None, list[PatchName]] = None, []
        self._tail: list[PatchName] = []  # the patches that lead from the base to the last step
        self._keyframe_wanted, self._swept = False, False
        self._encoder = Encoder(copies.reference, codec=chain.codec, threads=options.threads)
        self._publisher: ChainWriter | None = None
        self._why = f"{store.name}: has steps already: call resume() to go on from the last one"
        if not read_history(store).steps and self._encoder.identity == chain.base_identity.hex():
            self._publisher = ChainWriter.take_over(store, chain)

    # --- publishing ---

    def publish(self, state: Any, step: int) -> Version:
        """Write a state, or the staged one (None), as a step."""
        publisher, times = self._check(step), [time.perf_counter()]
        try:
            patch = self._encoded(self._encoder, state)
            times.append(time.perf_counter())
            keyframe = self._keyframe(patch, state) if self._keyframe_due else None
            times.append(time.perf_counter())
            version = self._version(publisher, patch, keyframe, step)
            self._write(publisher, version, patch, keyframe, times)
        except BaseException:
            self._encoder.rollback()
            raise
        version.timings.update((what, times[k + 1] - times[k]) for k, what in enumerate(("encode", "keyframe", "write", "head")))
        return version

    def _encoded(self, encoder: Encoder, state: Any) -> Patch:
        """The patch that an encoder makes of a state, or of the staged one (None)."""
        if state is None:
            assert self.copies.staging is not None
            encoder.add_copy(self.copies.staging)
        elif isinstance(state, StateCopy):
            encoder.add_copy(state)
        else:
            encoder.add_all(state)
        return encoder.finish()

    def _check(self, step: int) -> ChainWriter:
        """The publisher, if a step can be written now."""
        where, last = self.store.name, -1 if self.chain.base_step is None else self.chain.base_step
        if self._publisher is None:
            raise OutputError(self._why)
        if self.pending is not None:
            raise CheckpointError(f"{where}: step {self.pending.step} is neither acknowledged nor rejected: call ack() or reject() first")
        last = self.last.step if self.last is not None else last
        if not isinstance(step, int) or not 0 <= step <= MAX_STEP:
            raise CheckpointError(f"{where}: step {step!r}: expected a whole number from 0 to {MAX_STEP}")
        if step <= last:
            how = "is there already" if step == last else f"comes before step {last}, the last one, which only grows at its end"
            raise CheckpointError(f"{where}: step {step} {how}: publish a step above {last}")
        return self._publisher

    def _version(self, publisher: ChainWriter, patch: Patch, keyframe: Patch | None, step: int) -> Version:
        """What is about to be written."""
        facts = self._encoder.finished
        return Version(
            step=step,
            identity=facts.target_identity,
            epoch=publisher.epoch,
            parent=self.last.step if self.last is not None else None,
            patch_size=len(patch.to_bytes()),
            keyframe_size=len(keyframe.to_bytes()) if keyframe is not None else 0,
            changed=facts.changed,
            units=facts.units,
        )

    def _names(self, version: Version, before: Version | None) -> tuple[PatchName, PatchName]:
        """The names of a version's patch, from the version before, and of its keyframe."""
        base, target = self.chain.base_identity.hex()[:DIGITS], version.identity[:DIGITS]
        start = base if before is None else before.identity[:DIGITS]
        name = PatchName(version.step, version.parent, start, target, version.epoch, True, False)
        return name, PatchName(version.step, None, base, target, version.epoch, True, True)

    def _write(self, publisher: ChainWriter, version: Version, patch: Patch, keyframe: Patch | None, times: list[float]) -> None:
        """Put a version, and let it be the last one."""
        name, keyframe_name = self._names(version, self.last)
        with self._unless_written(name):
            publisher.put_bytes(name, patch.to_bytes())
            if keyframe is not None:  # after the patch, so that who follows from step to step never meets a step without it
                publisher.put_bytes(keyframe_name, keyframe.to_bytes())
            times.append(time.perf_counter())
            publisher.put_head(Head(version.step, version.epoch, bytes.fromhex(version.identity)))
            times.append(time.perf_counter())
            if not self._swept:
                publisher.remove_epochs()
            self._before = self.last, self._tail
            self.last, self._tail = version, [*self._tail, name] if keyframe is None else [keyframe_name]
            self._keyframe_wanted, self._swept = False, True
            if self.options.acknowledged:
                self.pending = version
            else:
                self._encoder.commit()

    @property
    def _keyframe_due(self) -> bool:
        return bool(self._tail) and (self._keyframe_wanted or len(self._tail) >= min(self.chain.keyframe_every, MAX_CHAIN - 1))

    def _keyframe(self, patch: Patch | None, state: Any) -> Patch:
        """A patch straight from the base to a state, or the staged one (None), which the last step and a patch give."""
        if self.copies.base is not None:
            return self._encoded(Encoder(self.copies.base, codec=self.chain.codec, threads=self.options.threads), state)
        with ExitStack() as stack:
            patches = [*read_patches(self.store, self._tail, None, stack), *([patch] if patch is not None else [])]
            return compose_in_memory(patches, threads=self.options.threads, copies=False)

    @contextmanager
    def _unless_written(self, name: PatchName) -> Iterator[None]:
        """After an error with which a patch may have been written, only :meth:`resume` goes on."""
        try:
            yield
        except BaseException as error:
            written = True
            with suppress(StoreError):
                written = self.store.size(name.key) is not None
            if written or isinstance(error, OutputError):
                self._publisher = None
                self._why = f"{self.store.name}: the last publish failed ({error or type(error).__name__}): call resume()"
            raise

    # --- acknowledging ---

    def ack(self, step: int) -> None:
        """The pending version was taken: the next patch starts from it."""
        self._check_pending(step)
        self._encoder.commit()
        self.pending = None

    def reject(self, step: int) -> None:
        """The last version was not taken: a keyframe follows. One that is pending is withdrawn."""
        if self.pending is None:
            if self.last is None or self.last.step != step:
                raise CheckpointError(f"{self.store.name}: step {step} is not the last one: only that can be rejected")
            self._keyframe_wanted = True
            return
        withdrawn, publisher = self._check_pending(step), self._publisher
        if publisher is None:
            raise OutputError(self._why)
        self._encoder.rollback()
        self._publisher, self._why = None, f"{self.store.name}: step {step} was not withdrawn wholly: call resume()"
        publisher = ChainWriter.take_over(self.store, self.chain, publisher.epoch)
        for name in reversed(self._names(withdrawn, self._before[0])):  # a step whose keyframe is left would still be one
            publisher.remove([name.key], name.marker)
        self.last, self._tail = self._before
        if self.last is None:
            self.store.delete(HEAD)
        else:
            publisher.put_head(Head(self.last.step, self.last.epoch, bytes.fromhex(self.last.identity)))
        self._publisher, self.pending, self._keyframe_wanted, self._swept = publisher, None, True, False

    def _check_pending(self, step: int) -> Version:
        """The version that waits to be acknowledged, which must be of this step."""
        if self.pending is None or self.pending.step != step:
            what = "no step" if self.pending is None else f"step {self.pending.step}"
            raise CheckpointError(f"{self.store.name}: step {step} does not wait to be acknowledged: {what} does")
        return self.pending

    # --- going on ---

    def resume(self) -> Version | None:
        """Take over, and let the copy be the chain's last state, whatever it was."""
        self._encoder.rollback()
        self.pending, self._keyframe_wanted = None, False
        self._publisher, self._swept, self._why = None, False, f"{self.store.name}: resume() failed: call it again"
        publisher = ChainWriter.take_over(self.store, self.chain)
        history = read_history(self.store)
        self.last = last_of(history)
        if self.last is not None:
            at = len(history.steps) - 1
            tail = history.plan(at)
            if tail is None:
                path_to(history, at, self.chain.base_identity, "the base")  # says what is missing
            self._tail = tail or []
            check_files(history, self._tail)
            self._bring_to(history, at, bytes.fromhex(self.last.identity))
            if len(self._tail) > self.chain.keyframe_every:  # the one who was killed had put the patch, and not yet the keyframe
                name = history.steps[at].name
                name = replace(name, parent=None, base=self.chain.base_identity.hex()[:DIGITS], is_keyframe=True)
                publisher.put_bytes(name, self._keyframe(None, self.copies.reference).to_bytes())
                self._tail = [name]
            publisher.put_head(Head(self.last.step, self.last.epoch, bytes.fromhex(self.last.identity)))
        else:
            self._tail = []
            self._bring_to_base()
        self._publisher = publisher
        return self.last

    def _sources(self) -> Iterator[StateCopy]:
        """The copies that may have a state of the chain: one that was being written to when a process was killed has not."""
        for copy in (self.copies.reference, self.copies.staging, self.copies.base):
            if copy is not None:
                yield copy

    def _bring_to(self, history: History, at: int, identity: bytes) -> None:
        error: CkptdiffError | None = None
        for source in self._sources():
            encoder = Encoder(source, threads=self.options.threads)
            found = bytes.fromhex(encoder.identity)
            if found == identity:
                self._become(source)
                return
            try:
                names = path_to(history, at, found, THE_REFERENCE)
            except (BaseMismatchError, FormatError) as unreachable:
                error = error or unreachable
                continue
            with ExitStack() as stack:
                patches = read_patches(self.store, names, history, stack)
                self._become(restored(source, put_together(patches, self._encoder.threads), self._encoder.threads))
            return
        assert error is not None
        raise error

    def _bring_to_base(self) -> None:
        """The chain has no step: its base must be at hand."""
        for source in self._sources():
            if Encoder(source, threads=self.options.threads).identity == self.chain.base_identity.hex():
                self._become(source)
                return
        raise BaseMismatchError(
            f"{self.store.name}: has no step, and {THE_REFERENCE} is not its base: make another Publisher with the base"
        )

    def _become(self, state: StateCopy) -> None:
        """Let the reference be this state."""
        if state is not self.copies.reference:
            if self.copies.staging is not None and state is not self.copies.staging:
                self.copies.staging.take(state)
            self.copies.reference.take(state)
        self._encoder = Encoder(self.copies.reference, codec=self.chain.codec, threads=self.options.threads)


def check_files(history: History, names: list[PatchName]) -> None:
    """Raise UnsupportedError for a chain of checkpoint folders, which a state in memory cannot go on."""
    folder = next((name for name in names if not name.is_file), None)
    if folder is not None:
        raise UnsupportedError(
            f"{history.store.name}: {folder.key} is of a checkpoint folder, of which a state in memory lacks files: go on with chain_add"
        )

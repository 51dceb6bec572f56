"""Versions of a chain taken by an engine: found, fetched, checked and put together beside it, and applied in its pause."""

from __future__ import annotations

import os
import re
import time
from contextlib import ExitStack
from typing import Any

from ckptdiff.chain.documents import read_chain
from ckptdiff.chain.following import Version, latest, newest_head, path_to, put_together, read_patches
from ckptdiff.chain.history import History, read_history
from ckptdiff.chain.names import CHAIN, DIGITS, PatchName
from ckptdiff.chain.retention import find_step
from ckptdiff.errors import BaseMismatchError, FormatError
from ckptdiff.io.parallel import default_threads
from ckptdiff.io.store_urls import open_store
from ckptdiff.live.identity import identity
from ckptdiff.live.patch import Patch
from ckptdiff.live.switch import LoadedPatch

HEX = re.compile(r"[0-9a-f]{32}")
THE_MODEL = "the model"
"""How messages call it."""


class Staged:
    """A version that is ready to be applied; made by :meth:`Subscriber.stage`. Close it if it is not applied.

    Attributes:
        step: the version's number.
        identity: identity of the version's state, in hexadecimal.
        base_identity: that of the state which it starts from.
        patches: names of the patches in the chain that lead there, in order.
        opened: what :meth:`apply_` applies, in order: one patch, put together from them where that can be, or just these.
        nbytes: bytes that were fetched.
        timings: seconds that parts took: ``find``, ``fetch`` (and check), ``compose``, ``load`` where a model was given, and ``apply``.
    """

    def __init__(self, subscriber: Subscriber, step: int, names: list[PatchName], patches: list[Patch], stack: ExitStack) -> None:
        self._subscriber, self.opened, self._stack = subscriber, tuple(patches), stack
        self.step, self.patches = step, tuple(name.key for name in names)
        self.identity, self.base_identity = patches[-1].target_identity, patches[0].base_identity
        self.nbytes, self.timings = 0, dict[str, float]()
        self._loaded: tuple[Any, LoadedPatch] | None = None

    def load(self, model: Any) -> None:
        """Decode it against a model, which is read but not written to, so that :meth:`apply_` has less to do. Several patches that could
        not be put together stay as they are.

        Raises:
            BaseMismatchError: the model is not at the version's base.
        """
        begun = time.perf_counter()
        if len(self.opened) == 1:
            self._loaded = model, self.opened[0].load(model, threads=self._subscriber.threads)
        self.timings["load"] = time.perf_counter() - begun

    def apply_(self, model: Any) -> None:
        """Turn a model that is at the version's base into the version in place; after an error it is as it was.

        The digests of all tensors are compared before, and those of the changed ones afterwards.

        Raises:
            BaseMismatchError: the model is not at the version's base (a step was missed, or it is of another run), or it is at the version
                already (kind ``already_target``). Nothing was written.
            UnsupportedError: it cannot become the version in place. IntegrityError: it did not; all was taken back.
        """
        begun, done = time.perf_counter(), list[LoadedPatch]()
        try:
            if self._loaded is not None and self._loaded[0] is model:
                self._loaded[1].apply_()
            elif len(self.opened) == 1:
                self.opened[0].apply_(model, threads=self._subscriber.threads)
            else:
                for patch in self.opened:
                    loaded = patch.load(model, threads=self._subscriber.threads)
                    loaded.apply_()
                    done.append(loaded)
        except BaseException:
            for loaded in reversed(done):
                loaded.revert_(check=False)
            raise
        self.timings["apply"] = time.perf_counter() - begun
        self._subscriber.step, self._subscriber.identity = self.step, self.identity
        self.close()

    def close(self) -> None:
        """Forget the patches, and remove what was fetched into files."""
        self._stack.close()

    def __repr__(self) -> str:
        return f"<ckptdiff.Staged: step {self.step}, {len(self.patches)} patches, {self.nbytes:,} bytes>"


class Subscriber:
    """Follows a chain, for an engine that has one of its states.

    It writes nothing to the chain, and holds nothing open: there may be any number, anywhere, and one that was killed is made anew.

    Args:
        store: the chain, a folder or a URL that fsspec knows.
        at: what the engine has: None for the chain's base; a :class:`ckptdiff.Version`; the identity of a state in hexadecimal; or the
            model itself, of which all is read.
        threads: how many to use.

    Attributes:
        step: the step that the engine is at, as far as it is known; None at the base, or before the first :meth:`stage`.
        identity: identity of the engine's state, in hexadecimal.

    Raises:
        FormatError: there is no chain, or it is broken. StoreError: it cannot be read.
    """

    def __init__(self, store: str | os.PathLike[str], *, at: Any = None, threads: int | None = None) -> None:
        self._store, self.threads = open_store(store), threads or default_threads()
        chain = read_chain(self._store)
        if chain is None:
            raise FormatError(f"{self._store.name}: is not a chain: it has no {CHAIN}; a publisher makes one")
        self._chain = chain
        self.step: int | None = None
        if isinstance(at, Version):
            self.step, self.identity = at.step, at.identity
        elif at is None:
            self.identity = chain.base_identity.hex()
        else:
            is_identity = isinstance(at, str) and HEX.fullmatch(at)
            self.identity = at if is_identity else identity(at, threads=threads)

    def latest(self) -> Version | None:
        """The last version of the chain; None if it has none. Little is read, unless the publisher was killed or has just begun."""
        return latest(self._store, self._chain, self.step)

    def stage(self, to: Version | int | None = None, model: Any = None) -> Staged:
        """Fetch what leads from the engine's state to a version, check it, and put it together, all outside the engine's pause.

        From the base it is the nearest keyframe and the patches after it; from a step, the patches after that. Where ``sparse`` codes all
        of them they become one patch.

        Args:
            to: the version, or the number of its step; None: the last one.
            model: the engine's model, to decode the patch against at once (:meth:`Staged.load`).

        Raises:
            BaseMismatchError: the engine's state is not of this chain, or comes after the version; or it is the version already (kind
                ``already_target``).
            CheckpointError: there is no such step. FormatError, IntegrityError, UnsupportedError: a patch is missing or broken.
            StoreError: the store fails.
        """
        begun, wanted = time.perf_counter(), to.step if isinstance(to, Version) else to
        step, names, history = self._find(wanted)
        found = time.perf_counter()
        with ExitStack() as stack:
            patches = read_patches(self._store, names, history, stack)
            if patches[0].base_identity != self.identity:
                raise BaseMismatchError(
                    f"{names[0].key}: was made from the state {patches[0].base_identity}, but {THE_MODEL} is at {self.identity}"
                )
            nbytes, fetched = sum(patch.nbytes for patch in patches), time.perf_counter()
            staged = Staged(self, step, names, put_together(patches, self.threads), stack.pop_all())
        staged.nbytes = nbytes
        staged.timings |= {"find": found - begun, "fetch": fetched - found, "compose": time.perf_counter() - fetched}
        if model is not None:
            staged.load(model)
        return staged

    def _find(self, wanted: int | None) -> tuple[int, list[PatchName], History | None]:
        """The step, the patches that lead there, and the chain's history if it was listed."""
        base, head = self._chain.base_identity.hex(), newest_head(self._store, self._chain)
        is_known = self.step is not None or self.identity == base
        if head is not None and wanted in (None, head.step) and is_known and (self.step is None or self.step < head.step):
            digits = self.identity[:DIGITS], head.identity.hex()[:DIGITS]
            following = PatchName(head.step, self.step, *digits, head.epoch, True, False)
            if self._store.size(following.key) is not None:  # the next one, as is usual: nothing has to be listed
                return head.step, [following], None
        for again in (True, True, False):
            try:
                return self._listed(wanted)
            except FormatError:  # a listing may show a step that was put while it was made, and not the one before
                if not again:
                    raise
        raise AssertionError

    def _listed(self, wanted: int | None) -> tuple[int, list[PatchName], History]:
        """:meth:`_find` by a listing."""
        history = read_history(self._store)
        if not history.steps and wanted is None:
            raise BaseMismatchError(f"{self._store.name}: has no step yet: {THE_MODEL} stays at the base", "already_target")
        at = len(history.steps) - 1 if wanted is None else find_step(history, wanted)
        start = history.find(self.step) if self.step is not None else None
        if start is not None and not self.identity.startswith(history.steps[start].target):
            start = None  # a step that was withdrawn, and written anew
        return history.steps[at].number, path_to(history, at, bytes.fromhex(self.identity), THE_MODEL, start), history

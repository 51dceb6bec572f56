"""What an engine does on request: find and prepare an update while it serves, apply it in its pause, take it back."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from ckptdiff.chain.subscriber import Subscriber
from ckptdiff.engines.ways import Switch, Way
from ckptdiff.errors import BaseMismatchError, CheckpointError, CkptdiffError, IntegrityError
from ckptdiff.live.patch import Patch


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an engine is asked to serve: exactly one of a patch's target, a step of a chain, and its base."""

    patch: str | None = None
    """Path of a patch, or its id on the Hub."""
    chain: str | None = None
    """Path or URL of a chain."""
    step: int | None = None
    """Of the chain; None: the last one."""
    base: bool = False
    """Whether to go back to what the engine was loaded with."""

    def __post_init__(self) -> None:
        if (self.patch is not None) + (self.chain is not None) + self.base != 1 or (self.step is not None and self.chain is None):
            raise CheckpointError("an update names one of a patch, a chain (and its step), and base")


@dataclass(slots=True)
class _Layer:
    """A patch that is applied, and may be taken back."""

    base: str
    target: str
    switch: Switch
    files: ExitStack


@dataclass(slots=True)
class Prepared:
    """An update that is ready to be applied."""

    identity: str
    """Identity of the result, in hexadecimal."""
    start: str
    """Identity of the state that it starts from."""
    back: int
    """How many of the patches that were applied are taken back first, the last one first."""
    patches: Sequence[Patch]
    """What is applied then, in order."""
    step: int | None
    """Number of the result in its chain."""
    stays: bool
    """Whether its patches are kept, to be taken back by later updates: those of a chain are not."""
    nbytes: int
    """Bytes of the patches."""
    subscriber: tuple[str, Subscriber] | None = None
    """The chain, and who follows it."""
    files: ExitStack = field(default_factory=ExitStack)
    switches: list[tuple[_Layer, bool]] = field(default_factory=list)
    """The switches that it takes, in order: each applies a patch, or takes one back."""


class Updater:
    """Updates of one served model (of one rank). What is served when it is made counts as the base.

    Args:
        way: how patches get into the model.
        threads: how many to use.
    """

    def __init__(self, way: Way, threads: int | None = None) -> None:
        self.way, self.base, self._threads = way, way.identity, threads
        self.step: int | None = None
        self.timings = dict[str, float]()
        self._layers, self._last = list[_Layer](), list[tuple[_Layer, bool]]()
        self._last_start: tuple[str, int | None, list[_Layer]] | None = None
        self._subscriber: tuple[str, Subscriber] | None = None
        self._prepared: Prepared | None = None
        self._error: CkptdiffError | None = None
        self._thread: threading.Thread | None = None

    # --- while the engine serves ---

    def stage(self, wanted: Wanted) -> None:
        """Begin to find, fetch, check and prepare an update on another thread. An update that was prepared before is forgotten."""
        self._join()
        self._forget()
        self._thread = threading.Thread(target=self._stage, args=(wanted,), name="ckptdiff-stage", daemon=True)
        self._thread.start()

    def _stage(self, wanted: Wanted) -> None:
        begun = time.perf_counter()
        try:
            prepared = self._prepared = self._find(wanted)
            taken = self._layers[len(self._layers) - prepared.back :]
            opened = [_Layer(p.base_identity, p.target_identity, self.way.open(p), prepared.files) for p in prepared.patches]
            prepared.switches = [*((layer, True) for layer in reversed(taken)), *((layer, False) for layer in opened)]
            layer, back = prepared.switches[0]  # those after it start from what it leads to
            layer.switch.stage(back)
        except CkptdiffError as error:
            self._forget()
            self._error = error
        except Exception as error:
            self._forget()
            self._error = CheckpointError(f"the update could not be prepared: {type(error).__name__}: {error}")
        self.timings = {"stage": time.perf_counter() - begun}

    def _find(self, wanted: Wanted) -> Prepared:
        if wanted.base:
            back = len(self._layers) if self._layers and self._layers[0].base == self.base else 0
            if not back:
                self._refuse(self.base, "the base")
            return Prepared(self.base, self.way.identity, back, (), None, True, 0)
        return self._find_patch(wanted.patch) if wanted.patch is not None else self._find_step(wanted.chain or "", wanted.step)

    def _find_patch(self, path: str) -> Prepared:
        with ExitStack() as stack:
            patch = stack.enter_context(Patch.open(path))
            if patch.target_identity == self.way.identity:
                self._refuse(patch.target_identity, path)
            back = self._layers_above(patch.base_identity)
            if back is None:
                self._refuse(patch.base_identity, path)
                raise AssertionError
            return Prepared(patch.target_identity, self.way.identity, back, (patch,), None, True, patch.nbytes, files=stack.pop_all())

    def _find_step(self, chain: str, step: int | None) -> Prepared:
        start, back = self.way.identity, 0
        if self._subscriber is not None and self._subscriber[0] == chain and self._subscriber[1].identity == start:
            subscriber = self._subscriber[1]
        else:
            subscriber = Subscriber(chain, threads=self._threads)
            above = self._layers_above(subscriber.identity) if self._layers else None
            if above is not None:
                back = above
            else:
                subscriber = Subscriber(chain, at=start, threads=self._threads)
        staged = subscriber.stage(to=step)
        files = ExitStack()
        files.callback(staged.close)
        return Prepared(staged.identity, start, back, staged.opened, staged.step, False, staged.nbytes, (chain, subscriber), files)

    def _layers_above(self, state: str) -> int | None:
        """How many layers are to be taken back to get to a state; None if that does not lead there."""
        if state == self.way.identity:
            return 0
        return next((len(self._layers) - k for k, layer in enumerate(self._layers) if layer.base == state), None)

    def _refuse(self, start: str, what: str) -> None:
        now = self.way.identity
        if start == now:
            raise BaseMismatchError(f"the engine is at {now} already, where {what} leads: there is nothing to do", "already_target")
        raise BaseMismatchError(
            f"the engine is at {now}, and {what} starts from {start}, which it does not know how to get back to: was a step missed, or is "
            "it of another base? Nothing was written"
        )

    # --- in the engine's pause ---

    def apply(self) -> None:
        """Apply what was prepared; after an error the model is as it was.

        Raises:
            CheckpointError: nothing was. CkptdiffError: it could not be prepared, or cannot be applied.
        """
        begun = time.perf_counter()
        self._join()
        self._check_known()
        if self._error is not None:
            raise self._error
        prepared = self._prepared
        if prepared is None:
            raise CheckpointError("no update is prepared: stage one first")
        if prepared.start != self.way.identity:
            raise BaseMismatchError(f"the engine is at {self.way.identity}, but what was prepared starts from {prepared.start}")
        done = list[tuple[_Layer, bool]]()
        try:
            for layer, back in prepared.switches:
                layer.switch.switch(back)
                done.append((layer, back))
        except BaseException:
            _take_back(done)
            raise
        self._note(prepared, done)
        self.timings = {**self.timings, "apply": time.perf_counter() - begun}

    def _note(self, prepared: Prepared, done: list[tuple[_Layer, bool]]) -> None:
        """Note that an update is done; what the one before it had open is closed, unless it is still applied."""
        for layer, _ in self._last:
            if all(layer is not other for other in (*self._layers, *(layer for layer, _ in done))):
                layer.files.close()
        self._last_start, self._last = (prepared.start, self.step, self._layers), done
        kept = self._layers[: len(self._layers) - prepared.back]
        self._layers = [*kept, *(layer for layer, back in done if not back)] if prepared.stays else []
        self.step, self._prepared, self._subscriber = prepared.step, None, prepared.subscriber
        if prepared.subscriber is not None:
            prepared.subscriber[1].step, prepared.subscriber[1].identity = prepared.step, prepared.identity

    def undo(self, to: str) -> None:
        """Take the last update back, if the model is not in the state ``to`` (an identity, in hexadecimal).

        It is for an update that failed on another rank.

        Raises:
            BaseMismatchError: the last update does not start from there. IntegrityError: it is not known what is served.
        """
        self._join()
        self._forget()
        self._check_known()
        if self.way.identity == to:
            return
        if self._last_start is None or self._last_start[0] != to:
            raise BaseMismatchError(f"the engine is at {self.way.identity}, and its last update did not start from {to}: load it anew")
        _take_back(self._last)
        (_, self.step, self._layers), self._last, self._last_start = self._last_start, [], None
        self._subscriber = None

    def state(self) -> dict[str, Any]:
        """What is served and prepared, as JSON: ``identity``, ``step``, ``base``, ``staging``, ``error``, ``timings`` in seconds, and
        ``prepared`` with ``identity``, ``step`` and ``nbytes``."""
        staging = self._thread is not None and self._thread.is_alive()
        prepared = self._prepared if not staging else None
        told = {"identity": prepared.identity, "step": prepared.step, "nbytes": prepared.nbytes} if prepared is not None else None
        error = {"kind": self._error.kind, "text": str(self._error)} if self._error is not None else None
        served: dict[str, Any] = {"identity": self.way.identity, "step": self.step, "base": self.base}
        return {**served, "staging": staging, "prepared": told, "error": error, "timings": dict(self.timings)}

    def _check_known(self) -> None:
        if self.way.broken is not None:
            raise IntegrityError(f"the engine: {self.way.broken}: load it anew")

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _forget(self) -> None:
        """Forget what was prepared, and why it could not be."""
        if self._prepared is not None:
            for layer, _ in self._prepared.switches:
                layer.switch.unstage()
            self._prepared.files.close()
        self._prepared, self._error = None, None


def _take_back(done: list[tuple[_Layer, bool]]) -> None:
    """Undo what was applied, or taken back, the last first."""
    for layer, was_back in reversed(done):
        layer.switch.switch(not was_back)

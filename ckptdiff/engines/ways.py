"""Ways in which a patch gets into a served model: moved in place, or through a mirror of the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ckptdiff.engines.carriers import Distances, open_weights, weights_of
from ckptdiff.engines.served import Record
from ckptdiff.engines.through import load_through
from ckptdiff.errors import BaseMismatchError, CkptdiffError, IntegrityError, UnsupportedError, cut
from ckptdiff.lazy import torch
from ckptdiff.live.identity import identity
from ckptdiff.live.patch import Patch
from ckptdiff.live.switch import LoadedPatch

Mirror = dict[str, "torch.Tensor"]
"""The tensors of a checkpoint on the host."""


class Applied(Protocol):
    """A patch that was applied. Both ways raise as :meth:`Way.apply`, and leave the model as it was after an error."""

    def back(self) -> None:
        """Take it back."""

    def again(self) -> None:
        """Apply it again, after it was taken back."""


class Way(Protocol):
    """A way in which patches get into a served model."""

    @property
    def identity(self) -> str:
        """Identity of what is served, in hexadecimal."""

    @property
    def broken(self) -> str | None:
        """Why it is not known what is served, after an update that could not be taken back; None if it is."""

    def prepare(self, patch: Patch) -> None:
        """Do what can be done beside the engine, before it pauses: the model must be at the patch's base.

        Raises:
            CkptdiffError: the patch cannot be applied in this way.
        """

    def apply(self, patch: Patch) -> Applied:
        """Apply a patch to the model; after an error it is as it was.

        Raises:
            BaseMismatchError: the patch does not start from what is served. UnsupportedError: it cannot be done exactly in this way.
            IntegrityError: the result was wrong. FormatError: the patch does not give what it states.
        """


class Move:
    """Patches by :func:`~ckptdiff.engines.load_through`: no mirror of the model.

    Args:
        model: the served model.
        record: what it serves.
        base: the checkpoint that it was loaded from, which patches that ``sparse`` does not code are decoded against.
    """

    def __init__(self, model: Any, record: Record, base: Any) -> None:
        self._model, self._record, self._base, self._base_identity = model, record, base, record.identity

    @property
    def identity(self) -> str:
        """See :class:`Way`."""
        return self._record.identity

    @property
    def broken(self) -> str | None:
        """See :class:`Way`."""
        return self._record.broken

    def prepare(self, patch: Patch) -> None:
        """See :class:`Way`."""
        self._record.check_follows(Distances(patch, self._base_of(patch), self._record.threads), False)

    def apply(self, patch: Patch) -> Applied:
        """See :class:`Way`."""
        self.move(patch, False)
        return _Moved(self, patch)

    def move(self, patch: Patch, back: bool) -> None:
        """Move the model by a patch, or ``back`` by it."""
        load_through(self._model, patch, back=back, verify=self._record, base=self._base_of(patch), threads=self._record.threads)

    def _base_of(self, patch: Patch) -> Any:
        return self._base if patch.base_identity == self._base_identity else None


class _Moved:
    def __init__(self, way: Move, patch: Patch) -> None:
        self._way, self._patch = way, patch

    def back(self) -> None:
        self._way.move(self._patch, True)

    def again(self) -> None:
        self._way.move(self._patch, False)


Push = Callable[[Mirror, "LoadedPatch | None"], None]
"""Loads a mirror into the engine: all of it, or what a patch changed."""


class ThroughMirror:
    """Patches applied to a copy of the checkpoint on the host, and loaded from there by the engine.

    The copy takes the memory of the whole checkpoint, on every rank.

    Args:
        base: the checkpoint that the model was loaded from.
        push: loads the mirror into the engine. If it fails, it is called again for the mirror as it was.
        threads: how many to use.
    """

    def __init__(self, base: Any, push: Push, threads: int) -> None:
        with open_weights(base) as checkpoint:
            self.mirror: Mirror = {tensor.name: carrier.tensor for tensor, carrier in weights_of(checkpoint)}
        self.identity, self._push, self._threads = identity(self.mirror, threads=threads), push, threads
        self._prepared: tuple[Patch, LoadedPatch] | None = None
        self.broken: str | None = None

    def prepare(self, patch: Patch) -> None:
        """See :class:`Way`."""
        self._check(patch)
        self._prepared = patch, patch.load(self.mirror, threads=self._threads)

    def _check(self, patch: Patch) -> None:
        if patch.target_identity == self.identity:
            raise BaseMismatchError(f"the model is at {self.identity} already, where {patch.opened.path} leads", "already_target")
        if patch.base_identity != self.identity:
            raise BaseMismatchError(f"the model is at {self.identity}, but {patch.opened.path} starts from {patch.base_identity}")

    def apply(self, patch: Patch) -> Applied:
        """See :class:`Way`."""
        self._check(patch)
        prepared, self._prepared = self._prepared, None
        loaded = prepared[1] if prepared is not None and prepared[0] is patch else patch.load(self.mirror, threads=self._threads)
        applied = _Mirrored(self, loaded, patch.base_identity, patch.target_identity)
        applied.again()
        return applied

    def switch(self, loaded: LoadedPatch, back: bool, result: str) -> None:
        """Apply a loaded patch to the mirror and the engine, or take it back."""
        (loaded.revert_ if back else loaded.apply_)()
        try:
            self._push(self.mirror, loaded)
        except BaseException as error:
            (loaded.apply_ if back else loaded.revert_)()
            try:
                self._push(self.mirror, loaded)
            except BaseException as failure:
                self.broken = f"an update failed ({cut(error)}), and could not be taken back ({cut(failure)})"
                raise IntegrityError(f"the model: {self.broken}: load it anew") from error
            if isinstance(error, CkptdiffError) or not isinstance(error, Exception):
                raise
            raise UnsupportedError(
                f"the model: its loader failed ({type(error).__name__}: {cut(error)}); the weights are what they were"
            ) from error
        self.identity = result


class _Mirrored:
    def __init__(self, way: ThroughMirror, loaded: LoadedPatch, base: str, target: str) -> None:
        self._way, self._loaded, self._base, self._target = way, loaded, base, target

    def back(self) -> None:
        self._way.switch(self._loaded, True, self._base)

    def again(self) -> None:
        self._way.switch(self._loaded, False, self._target)

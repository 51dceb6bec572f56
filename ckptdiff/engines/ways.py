"""Ways in which a patch gets into a served model: moved in place, or through a mirror of the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ckptdiff.engines.carriers import Distances, open_weights, weights_of
from ckptdiff.engines.placed import PlacedPatch, is_placed
from ckptdiff.engines.served import Record
from ckptdiff.engines.through import load_through
from ckptdiff.errors import BaseMismatchError, CkptdiffError, IntegrityError, UnsupportedError, cut
from ckptdiff.lazy import torch
from ckptdiff.live.identity import identity
from ckptdiff.live.patch import Patch
from ckptdiff.live.switch import LoadedPatch

Mirror = dict[str, "torch.Tensor"]
"""The tensors of a checkpoint on the host."""


class Switch(Protocol):
    """A patch that a model is switched to, and back from."""

    def stage(self, back: bool) -> None:
        """Do what can be done for a switch beside the engine, before it pauses.

        Raises:
            CkptdiffError: the patch cannot be applied, or taken ``back``, in this way. Nothing was written to the model.
        """

    def unstage(self) -> None:
        """Forget what was staged: the switch will not be made."""

    def switch(self, back: bool) -> None:
        """Apply the patch to the model, or take it ``back``, staged or not; after an error the model is as it was.

        Raises:
            BaseMismatchError: the switch does not start from what is served. UnsupportedError: it cannot be done exactly in this way.
            IntegrityError: the result was wrong. FormatError: the patch does not give what it states.
        """


class Way(Protocol):
    """A way in which patches get into a served model."""

    @property
    def identity(self) -> str:
        """Identity of what is served, in hexadecimal."""

    @property
    def broken(self) -> str | None:
        """Why it is not known what is served, after an update that could not be taken back; None if it is."""

    def open(self, patch: Patch) -> Switch:
        """What switches the model to a patch's target; the patch must stay open as long as it is used."""


class Move:
    """Patches by moving the model's memory: no mirror of the model.

    Args:
        model: the served model.
        record: what it serves.
        base: the checkpoint that it was loaded from, which patches that ``sparse`` does not code are decoded against.
    """

    def __init__(self, model: Any, record: Record, base: Any) -> None:
        self.model, self.record, self._base, self._base_identity = model, record, base, record.identity

    @property
    def identity(self) -> str:
        """See :class:`Way`."""
        return self.record.identity

    @property
    def broken(self) -> str | None:
        """See :class:`Way`."""
        return self.record.broken

    def open(self, patch: Patch) -> Switch:
        """See :class:`Way`."""
        return _Moved(self, patch, self._base if patch.base_identity == self._base_identity else None)


class _Moved:
    """A switch by moving: with places known from the record, or else through the engine's loader (:func:`load_through`)."""

    def __init__(self, way: Move, patch: Patch, base: Any) -> None:
        self._way, self._patch, self._base = way, patch, base
        self._staged: tuple[bool, PlacedPatch] | None = None

    def stage(self, back: bool) -> None:
        """See :class:`Switch`."""
        record = self._way.record
        distances = Distances(self._patch, self._base, record.threads)
        if not is_placed(record, distances):
            record.check_follows(distances, back)
            return
        placed = PlacedPatch(self._way.model, record, distances, back)
        placed.check()
        placed.decode()
        self._staged = back, placed

    def unstage(self) -> None:
        """See :class:`Switch`."""
        self._staged = None

    def switch(self, back: bool) -> None:
        """See :class:`Switch`."""
        if self._staged is None or self._staged[0] != back:
            self.stage(back)
        staged, self._staged = self._staged, None
        if staged is not None:
            staged[1].apply()
        else:
            record = self._way.record
            load_through(self._way.model, self._patch, back=back, verify=record, base=self._base, threads=record.threads)


Load = Callable[[], None]
"""Loads what was prepared into the engine."""
Prepare = Callable[[Mirror, LoadedPatch], Load]
"""Prepares to load a mirror into the engine, all of it or what a patch changed; the mirror stays as it is until that is done."""
Check = Callable[[Mirror], None]
"""Compares what the engine has with a mirror of it; raises BaseMismatchError."""


class ThroughMirror:
    """Patches applied to a copy of the checkpoint on the host, and loaded from there by the engine.

    The copy takes the memory of the whole checkpoint, on every rank. It is ahead of the engine while a switch is staged.

    Args:
        base: the checkpoint that the model was loaded from.
        prepare: prepares to load the mirror into the engine. If that fails, it is called again for the mirror as it was.
        threads: how many to use.
        check: called when a switch is staged, where the engine's memory can be compared.
    """

    def __init__(self, base: Any, prepare: Prepare, threads: int, check: Check = lambda mirror: None) -> None:
        with open_weights(base) as checkpoint:
            self.mirror: Mirror = {tensor.name: carrier.tensor for tensor, carrier in weights_of(checkpoint)}
        self.identity, self.prepare, self.threads, self.check = identity(self.mirror, threads=threads), prepare, threads, check
        self.broken: str | None = None

    def open(self, patch: Patch) -> Switch:
        """See :class:`Way`."""
        return _Mirrored(self, patch)


class _Mirrored:
    def __init__(self, way: ThroughMirror, patch: Patch) -> None:
        self._way, self._patch = way, patch
        self._loaded: LoadedPatch | None = None
        self._staged: tuple[bool, Load] | None = None

    def stage(self, back: bool) -> None:
        """See :class:`Switch`: the mirror is switched."""
        patch, served = self._patch, self._way.identity
        start, end = (patch.target_identity, patch.base_identity) if back else (patch.base_identity, patch.target_identity)
        if served == end:
            raise BaseMismatchError(f"the model is at {served} already, where {patch.opened.path} leads", "already_target")
        if served != start:
            raise BaseMismatchError(f"the model is at {served}, but {patch.opened.path} starts from {start}")
        self._way.check(self._way.mirror)
        if self._loaded is None:
            self._loaded = patch.load(self._way.mirror, threads=self._way.threads)
        self._switch_mirror(back)
        try:
            self._staged = back, self._way.prepare(self._way.mirror, self._loaded)
        except BaseException:
            self._switch_mirror(not back)
            raise

    def unstage(self) -> None:
        """See :class:`Switch`."""
        if self._staged is not None:
            self._switch_mirror(not self._staged[0])
            self._staged = None

    def _switch_mirror(self, back: bool) -> None:
        assert self._loaded is not None
        (self._loaded.revert_ if back else self._loaded.apply_)()

    def switch(self, back: bool) -> None:
        """See :class:`Switch`."""
        if self._staged is None or self._staged[0] != back:
            self.unstage()
            self.stage(back)
        assert self._staged is not None and self._loaded is not None
        (_, load), way = self._staged, self._way
        try:
            load()
        except BaseException as error:
            self.unstage()
            try:
                way.prepare(way.mirror, self._loaded)()
            except BaseException as failure:
                way.broken = f"an update failed ({cut(error)}), and could not be taken back ({cut(failure)})"
                raise IntegrityError(f"the model: {way.broken}: load it anew") from error
            if isinstance(error, CkptdiffError) or not isinstance(error, Exception):
                raise
            raise UnsupportedError(
                f"the model: its loader failed ({type(error).__name__}: {cut(error)}); the weights are what they were"
            ) from error
        self._staged = None
        way.identity = self._patch.base_identity if back else self._patch.target_identity

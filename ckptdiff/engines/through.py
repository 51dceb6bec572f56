"""A served model moved in place: ulp distances go through the engine's own loader, and the memory it would write to moves instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

from ckptdiff.engines.carriers import Carrier, Distances, GivenDistances
from ckptdiff.engines.destinations import key_of, place_of
from ckptdiff.engines.interception import Copy, FinalCopies
from ckptdiff.engines.served import Loader, Record, run_loader
from ckptdiff.errors import IntegrityError, UnsupportedError, cut
from ckptdiff.format.digests import tensor_digest
from ckptdiff.io.parallel import JobPool, default_threads
from ckptdiff.lazy import torch
from ckptdiff.live.changes import Change
from ckptdiff.live.patch import Patch
from ckptdiff.live.writing import writing


def load_through(
    model: Any,
    changes: Patch | Sequence[Change],
    *,
    back: bool = False,
    verify: Record | None = None,
    base: Any = None,
    loader: Loader | None = None,
    threads: int | None = None,
) -> None:
    """Move a served model by what a patch changes, through the engine's own loader; after an error the model is as it was.

    The loader is given tensors of the checkpoint's names, shapes and dtypes whose bits are ulp distances, and maps, cuts and copies them as
    it would a checkpoint. Each place that it would copy to moves by these distances instead. So fused, sharded and replicated parameters
    work, and no copy of the model is needed: memory for the largest tensor is.

    A move is relative: made twice, or from another base, it gives other weights, and nothing in the distances tells. So give ``verify``.

    Args:
        model: the served model, a module with a ``load_weights``; or its tensors by name, with ``loader``.
        changes: a patch; or what :meth:`ckptdiff.Patch.changes` gave, without ``verify``.
        back: take the patch back instead.
        verify: what is served (:func:`ckptdiff.engines.record`). The patch must start from just that, and the memory still be what it was;
            afterwards each place that holds a whole tensor must have the digest that the patch states, and the record is that of the
            result. None: nothing is compared.
        base: the checkpoint that the patch was made from, where ``sparse`` does not code all of it.
        loader: what loads into the model, if not ``model.load_weights``.
        threads: how many to use.

    Raises:
        BaseMismatchError: the patch does not start from what is served (kind ``already_target``: the model is where it leads), or
            something wrote to the model.
        UnsupportedError: it cannot be done exactly: the model is served in another dtype, quantized or packed, the loader does more than
            copy, or the patch needs the base, or has other tensors.
        IntegrityError: the result was wrong, and was taken back; or an update could not be taken back, and the model must be loaded anew.
        FormatError: the patch does not give what it states.
    """
    count = threads or default_threads()
    distances = Distances(changes, base, count) if isinstance(changes, Patch) else GivenDistances(changes)
    if verify is not None and not isinstance(distances, Distances):
        raise UnsupportedError("verify= needs a patch: changes alone do not tell from where they start")
    if verify is not None and isinstance(distances, Distances):
        verify.check_follows(distances, back)
        with writing(verify.memory):
            verify.check_memory(model)
            _Move(model, loader, distances, back, verify).run()
            return
    _Move(model, loader, distances, back, None).run()


class _Move:
    """One update of a model, which is taken back if it fails.

    Each place is moved on a thread of its own, which no Ctrl-C interrupts: what was moved is known at any time.
    """

    def __init__(self, model: Any, loader: Loader | None, distances: Distances | GivenDistances, back: bool, record: Record | None) -> None:
        self._model, self._loader, self._distances, self._back, self._record = model, loader, distances, back, record
        self._done = Counter[str]()
        self._digests = dict[int, bytes]()
        self._dtypes = dict[str, str]()

    def run(self) -> None:
        """Move the model; raises what :func:`load_through` does."""
        try:
            self._pass(None, self._back, None)
            self._check_reached()
            if self._record is not None and isinstance(self._distances, Distances):
                self._check_result(self._distances, self._record)
        except BaseException as error:
            self._take_back(error)
            raise

    def _pass(self, names: Collection[str] | None, back: bool, limits: Counter[str] | None) -> None:
        """Let the loader run over the distances of some tensors. ``limits``: how many copies of each are to be moved; None: all."""
        with closing(JobPool(1)) as mover, torch.no_grad():

            def sink(copy: Copy) -> None:
                if limits is None or copy.number < limits[copy.name]:
                    mover.submit(partial(self._move, copy, back, limits is None)).result()

            run_loader(self._model, self._loader, FinalCopies(self._model, sink), self._carriers(names))

    def _carriers(self, names: Collection[str] | None) -> Iterator[Carrier]:
        return map(self._noted, self._distances.carriers(names))

    def _noted(self, carrier: Carrier) -> Carrier:
        self._dtypes[carrier.name] = carrier.dtype
        return carrier

    def _move(self, copy: Copy, back: bool, noted: bool) -> None:
        place = place_of(copy.name, self._dtypes[copy.name], copy.destination, False)
        if self._record is not None:
            known = self._record.places.get(copy.name, [])
            if copy.number >= len(known) or known[copy.number].key != key_of(copy.destination):
                raise UnsupportedError(
                    f"the model: tensor {cut(copy.name)}: its loader now puts it elsewhere than when the record was made: make the record "
                    "anew; nothing was written"
                )
            place = known[copy.number]
        leaves = place.move(copy.source, back)
        if noted:
            self._done[copy.name] += 1
            if leaves:
                self._digests[id(place)] = tensor_digest(leaves)

    def _check_reached(self) -> None:
        """Raise UnsupportedError unless each change reached the places that its tensor has."""
        for name in self._distances.changed:
            wanted = len(self._record.places.get(name, [])) if self._record is not None else max(self._done[name], 1)
            if self._done[name] != wanted:
                raise UnsupportedError(
                    f"the model: tensor {cut(name)}: its loader made {self._done[name]} copies of it, expected {wanted}: is it a tied or "
                    "unused tensor, or one that another rank has? Make a record of what is served, and give it as verify; nothing was "
                    "written"
                )

    def _check_result(self, distances: Distances, record: Record) -> None:
        """Compare what came out with the digests of the patch, and note it."""
        patch, served = distances.patch, [name for name in distances.changed if name in record.places]
        entries = {entry.name: entry for entry in distances.entries()}
        before = {id(place): place.digest for name in served for place in record.places[name]}
        try:
            record.moved(self._digests, served)
            wrong = record.wrong_place(served, lambda name: entries[name].base_digest if self._back else entries[name].digest)
            if wrong is not None:
                raise IntegrityError(
                    f"the model: tensor {cut(wrong.name)} came out with the digest {wrong.digest.hex()}, not that which "
                    f"{patch.opened.path} states: the patch is broken, or something else wrote to the model; it was taken back"
                )
            record.become(entries.values(), patch.base_identity if self._back else patch.target_identity, self._back)
        except BaseException:
            for name in served:
                for place in record.places[name]:
                    place.digest = before[id(place)]
            raise

    def _take_back(self, error: BaseException) -> None:
        """Take back what was moved; raises IntegrityError if that fails."""
        done = Counter(self._done)
        if not done:
            return
        try:
            self._pass(done.keys(), not self._back, done)
            if self._record is not None:
                self._record.check_memory(self._model)
        except BaseException as failure:
            text = f"an update failed ({cut(error)}), and could not be taken back ({cut(failure)})"
            if self._record is not None:
                self._record.broken = text
            raise IntegrityError(f"the model: {text}: load it anew") from error

"""What an engine serves: where its loader puts each tensor of the checkpoint, the identity of that, and digests of the memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ckptdiff.engines.carriers import Carrier, Distances, open_weights, weights_of
from ckptdiff.engines.destinations import Place, differs, key_of, leaves_of_places, part_of, place_of
from ckptdiff.engines.interception import Copy, FinalCopies, storages_of
from ckptdiff.errors import BaseMismatchError, CkptdiffError, UnsupportedError, cut
from ckptdiff.format.digests import identity, tensor_digest
from ckptdiff.format.dtypes import DTYPES
from ckptdiff.format.entry import Entry
from ckptdiff.io.parallel import default_threads
from ckptdiff.lazy import torch
from ckptdiff.live.hashing import leaves_in_memory
from ckptdiff.patching.torch_dtypes import flat_bytes

Loader = Callable[[Iterator[tuple[str, "torch.Tensor"]]], object]
"""Loads tensors of a checkpoint, given by name, into a model: a model's ``load_weights``."""
Digests = Literal["whole", "sampled"]


class Content(NamedTuple):
    """What a tensor of the checkpoint is."""

    dtype: str
    shape: tuple[int, ...]
    digest: bytes


class Record:
    """What a model serves, on this rank; made by :func:`record`, kept by :func:`ckptdiff.engines.load_through`.

    Args:
        contents: the tensors of the checkpoint, by name.
        places: where the loader puts each of them on this rank, by name.
        digests: which of the places' blocks are hashed.
        threads: how many to use.

    Attributes:
        identity: identity (:func:`ckptdiff.identity`) of what is served, in hexadecimal.
        memory: where the places lie.
        broken: why the model's content is unknown, after an update that could not be taken back; None if it is known.
    """

    def __init__(self, contents: dict[str, Content], places: dict[str, list[Place]], digests: Digests, threads: int) -> None:
        self.contents, self.places, self.sampled, self.threads = contents, places, digests == "sampled", threads
        self.identity = identity(("", name, *content) for name, content in contents.items()).hex()
        self.broken: str | None = None
        self.memory = [place.memory for place in self.all_places()]
        self._note(self.all_places(), {})

    def all_places(self) -> list[Place]:
        """Every place on this rank."""
        return [place for row in self.places.values() for place in row]

    def check_follows(self, distances: Distances, back: bool) -> None:
        """Raise BaseMismatchError, or UnsupportedError, unless a patch starts from (``back``: leads to) exactly what is served."""
        patch = distances.patch
        start, end = (patch.target_identity, patch.base_identity) if back else (patch.base_identity, patch.target_identity)
        if self.broken is not None:
            raise BaseMismatchError(f"the model: its content is unknown: {self.broken}: load it anew; nothing was written")
        if start != self.identity:
            if end == self.identity:
                raise BaseMismatchError(
                    f"the model is at {end} already, where {patch.opened.path} leads: nothing was written", "already_target"
                )
            raise BaseMismatchError(
                f"the model is at {self.identity}, but {patch.opened.path} starts from {start}: was a step missed, or is it of another "
                "base? Nothing was written"
            )
        entries = {entry.name: entry for entry in distances.entries()}
        if entries.keys() != self.contents.keys():
            other = next(iter(entries.keys() ^ self.contents.keys()))
            raise UnsupportedError(
                f"{patch.opened.path}: its base and its target do not have the same tensors ({cut(other)}): reload the model whole"
            )
        for name, content in self.contents.items():
            if _content(entries[name], not back and entries[name].has_base) != content:
                raise UnsupportedError(
                    f"{patch.opened.path}: tensor {cut(name)}: is not made from {content.dtype} {cut(list(content.shape))} of this name "
                    "alone: it cannot be moved; reload the model whole, or update it through a mirror"
                )

    def check_storages(self, model: Any) -> None:
        """Raise BaseMismatchError unless the model still has the memory that it had when the record was made."""
        storages = storages_of(model)
        for place in self.all_places():
            if place.view.untyped_storage()._cdata not in storages:
                raise BaseMismatchError(
                    f"the model: tensor {cut(place.name)}: has other memory than when the record was made: was the model loaded anew, "
                    "moved or cast? Make the record anew; nothing was written"
                )

    def check_memory(self, model: Any) -> dict[int, list[bytes]]:
        """Raise BaseMismatchError unless the model still has the memory that it had, with the digests that were noted last.

        Returns:
            The leaves of each place, by its id.
        """
        self.check_storages(model)
        places = self.all_places()
        found = leaves_of_places(places, self.sampled, self.threads)
        for place, leaves in zip(places, found, strict=True):
            if tensor_digest(leaves) != place.digest:
                raise BaseMismatchError(
                    f"the model: tensor {cut(place.name)}: was changed since {self.identity} was loaded, by something else: load the model "
                    "anew; nothing was written"
                )
        return {id(place): leaves for place, leaves in zip(places, found, strict=True)}

    def wrong_place(self, names: Iterable[str], digest_of: Callable[[str], bytes]) -> Place | None:
        """The first place that holds a whole tensor, one of these, and not the content that it should.

        The digests of these places must have been noted (:meth:`moved`). Parts of a tensor are not compared: a patch has no digest of them.
        """
        places = (place for name in names for place in self.places[name])
        return next((place for place in places if place.whole and not self.sampled and place.digest != digest_of(place.name)), None)

    def moved(self, digests: Mapping[int, bytes], names: Iterable[str]) -> None:
        """Note the memory of tensors that were moved; ``digests``: those that are known, by the id of the place."""
        self._note([place for name in names for place in self.places.get(name, [])], digests)

    def become(self, patch_entries: Iterable[Entry], target: str, back: bool) -> None:
        """Note that the model is now what a patch leads to."""
        self.contents = {entry.name: _content(entry, back and entry.has_base) for entry in patch_entries}
        self.identity = target

    def _note(self, places: Sequence[Place], digests: Mapping[int, bytes]) -> None:
        known = {} if self.sampled else digests
        left = [place for place in places if id(place) not in known]
        for place, leaves in zip(left, leaves_of_places(left, self.sampled, self.threads), strict=True):
            place.digest = tensor_digest(leaves)
        for place in places:
            place.digest = known.get(id(place), place.digest)


def _content(entry: Entry, of_base: bool) -> Content:
    """What a patch says of its target's tensor, or of what that was made from."""
    return Content(
        (entry.base_dtype or entry.dtype) if of_base else entry.dtype, entry.shape, entry.base_digest if of_base else entry.digest
    )


def record(model: Any, base: Any, *, loader: Loader | None = None, digests: Digests = "whole", threads: int | None = None) -> Record:
    """Find out where a model's loader puts each tensor of a checkpoint, and that the model has just that content there.

    Every tensor of the checkpoint goes through the loader, whose final copies are compared with the model instead of made: nothing is
    written. Takes memory for the largest tensor.

    Args:
        model: the served model, a module with a ``load_weights``; or its tensors by name, with ``loader``.
        base: the checkpoint that it was loaded from: a file, a folder, an id on the Hub, or a state dict.
        loader: what loads into it, if not ``model.load_weights``.
        digests: ``whole``: all of the model's memory is hashed before an update, and what changed afterwards; ``sampled``: one block of
            2 MiB in 16, which only notices what changes much.
        threads: how many to use.

    Raises:
        BaseMismatchError: the model does not have the content of the checkpoint.
        UnsupportedError: the loader does more than copy, or the model is served in another dtype. CheckpointError, HubError: the base
            cannot be read.
    """
    count, places, contents = threads or default_threads(), dict[str, list[Place]](), dict[str, Content]()
    given = dict[str, tuple[str, tuple[int, ...], int]]()

    def compare(copy: Copy) -> None:
        dtype, shape, address = given[copy.name]
        if differs(copy.destination, copy.source):
            raise BaseMismatchError(f"the model: tensor {cut(copy.name)}: is not that of {base_name}: was it loaded from there?")
        part = part_of(copy.source, address, shape, DTYPES[dtype].carrier)
        places.setdefault(copy.name, []).append(
            place_of(copy.name, dtype, copy.destination, copy.destination.numel() == math.prod(shape), part)
        )

    with open_weights(base) as checkpoint, torch.no_grad():
        base_name = str(checkpoint.path)

        def carriers() -> Iterator[Carrier]:
            for tensor, carrier in weights_of(checkpoint):
                given[tensor.name] = tensor.dtype, tuple(carrier.tensor.shape), carrier.tensor.data_ptr()
                (leaves,) = leaves_in_memory([flat_bytes(carrier.tensor, tensor.name)], count)
                contents[tensor.name] = Content(tensor.dtype, tensor.shape, tensor_digest(leaves))
                yield carrier

        run_loader(model, loader, FinalCopies(model, compare), carriers())
    _check_apart(places)
    return Record(contents, places, digests, count)


def run_loader(model: Any, loader: Loader | None, copies: FinalCopies, carriers: Iterator[Carrier]) -> None:
    """Run a model's loader over carriers, with its final copies taken.

    Raises:
        UnsupportedError: it fails, or does more than copy. CkptdiffError: what ``copies`` or ``carriers`` raise.
    """
    load = loader if loader is not None else getattr(model, "load_weights", None)
    if load is None:
        raise UnsupportedError(f"the model: {type(model).__name__} has no load_weights: give loader=, what loads a checkpoint into it")
    try:
        with copies:
            load(copies.handing_out(carriers))
    except (CkptdiffError, MemoryError):
        raise
    except Exception as error:
        raise UnsupportedError(
            f"the model: its loader failed ({type(error).__name__}: {cut(error)}): are its weights quantized, packed or gone? "
            "Update it by a full reload; nothing was written"
        ) from error
    copies.check_memory()


def _check_apart(places: dict[str, list[Place]]) -> None:
    """Raise UnsupportedError if two copies of the loader go to one place: which of them counts, only the loader knows."""
    seen = dict[tuple[int, tuple[int, ...], tuple[int, ...]], str]()
    for name, row in places.items():
        for place in row:
            other = seen.setdefault(key_of(place.view), name)
            if place.view.numel() and (other != name or sum(key_of(p.view) == key_of(place.view) for p in row) > 1):
                raise UnsupportedError(f"the model: {cut(other)} and {cut(name)} are loaded to one place: leave one out of the checkpoint")

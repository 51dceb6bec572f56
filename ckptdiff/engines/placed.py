"""A patch made ready for a served model beside the engine: its ulp distances, cut as the engine's loader cut the checkpoint.

:func:`ckptdiff.engines.record` has noted which part of which tensor the loader put where. So the loader need not run again: positions in
the checkpoint become positions in the model's memory, and what is left for the engine's pause is to move the units there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ckptdiff import device, kernels
from ckptdiff.engines.carriers import Distances, ranges_of, reversed_range
from ckptdiff.engines.destinations import SAMPLED, Place
from ckptdiff.engines.served import Record
from ckptdiff.errors import BaseMismatchError, IntegrityError, cut
from ckptdiff.format.digests import BLOCK, tensor_digest
from ckptdiff.format.dtypes import Bytes, Units
from ckptdiff.format.entry import Entry
from ckptdiff.lazy import torch
from ckptdiff.live.changes import Positions
from ckptdiff.live.hashing import leaves_in_memory
from ckptdiff.live.switch import LoadedPatch, LoadedUpdates
from ckptdiff.live.updates import RangeUpdate, TensorUpdate, on_device
from ckptdiff.live.writing import writing
from ckptdiff.patching.torch_dtypes import flat_bytes

MIN_STAGED = 1 << 25
"""Bytes of decoded changes that are always held for the pause; or half of the largest tensor, where that is more. The rest is decoded in
the pause."""


def is_placed(record: Record, distances: Distances) -> bool:
    """Whether a patch's changes can be put in place without the engine's loader."""
    return all(place.part is not None and place.view.is_contiguous() for name in distances.changed for place in record.places.get(name, []))


def check_values(model: Any, record: Record, mirror: Mapping[str, torch.Tensor]) -> None:
    """Compare a model with a mirror of the checkpoint that it should have, wherever the places of a tensor are known (:func:`is_placed`).

    Raises:
        BaseMismatchError: it has other values, or other memory than when the record was made.
    """
    record.check_storages(model)
    for place in record.all_places()[:: SAMPLED if record.sampled else 1]:
        if place.part is not None and place.view.is_contiguous():
            flat, units = place.flat(), np.asarray(flat_bytes(mirror[place.name], place.name)).view(place.dtype.unit)
            found = flat if isinstance(flat, np.ndarray) else np.asarray(flat_bytes(flat.cpu(), place.name))
            if not np.array_equal(found.view(place.dtype.unit), place.part.take(units)):
                raise BaseMismatchError(
                    f"the model: tensor {cut(place.name)}: was changed since the last update, by something else, or that update went "
                    "wrong: load the model anew; nothing was written"
                )


def prepare_values(model: Any, record: Record, mirror: Mapping[str, torch.Tensor], loaded: LoadedPatch) -> Callable[[], None] | None:
    """Prepare to write what a patch changed to a model's places, from a mirror of the checkpoint that has it.

    Returns:
        What writes it; None if the places of a tensor are not known well enough (:func:`is_placed`).
    """
    writes = list[tuple[Any, Any, Any]]()
    for name, positions in loaded.touched():
        for place in record.places.get(name, []):
            if place.part is None or not place.view.is_contiguous():
                return None
            flat, changed = place.flat(), np.asarray(flat_bytes(mirror[name], name)).view(place.dtype.unit)[positions]
            where, values = place.part.select(positions, changed)
            if isinstance(flat, np.ndarray):
                writes.append((flat.view(place.dtype.unit), where, values))
            else:
                signed = torch.from_numpy(values.view(f"i{place.dtype.carrier}")).to(flat.device)
                writes.append((device.ops.units_of(flat, place.dtype), torch.from_numpy(where).to(flat.device), signed))

    def write() -> None:
        record.check_storages(model)
        for units, where, values in writes:
            _put(units, where, values)

    return write


def _put(units: Any, where: Any, values: Any) -> None:
    """Write values to a place, at positions in it."""
    units[where] = values


class PlacedPatch:
    """A patch for a served model, in one direction.

    Args:
        model, record: the model, and what it serves.
        distances: those of the patch.
        back: whether the patch is to be taken back.
    """

    def __init__(self, model: Any, record: Record, distances: Distances, back: bool) -> None:
        self._model, self._record, self._distances, self._back = model, record, distances, back
        self._leaves: dict[int, list[bytes]] | None = None
        self._entries = {entry.name: entry for entry in distances.entries()}
        largest = max((self._entries[name].nbytes for name in distances.changed), default=0)
        self._groups = list(_groups(distances.changed, self._entries, max(MIN_STAGED, largest)))
        self._room = max(MIN_STAGED, largest // 2)
        self._loaded = list[LoadedPatch]()
        self._digests = dict[int, bytes]()

    def check(self) -> None:
        """Compare the record with the patch, and all of the model's memory with the record.

        Raises:
            BaseMismatchError, UnsupportedError: as :func:`~ckptdiff.engines.load_through`.
        """
        self._record.check_follows(self._distances, self._back)
        self._leaves = self._record.check_memory(self._model)

    def decode(self) -> None:
        """Decode as much as is held for the pause; the memory must have been checked.

        Raises:
            FormatError: the patch does not give what it states.
        """
        for names in self._groups[len(self._loaded) :]:
            if self._loaded and sum(loaded.nbytes for loaded in self._loaded) >= self._room:
                return
            self._loaded.append(self._load(names))

    def apply(self) -> None:
        """Move the model; after an error it is as it was.

        Raises:
            BaseMismatchError: the patch does not start from what is served. IntegrityError: a place came out wrong.
            FormatError: the patch does not give what it states.
        """
        if self._leaves is None:
            self.check()
            self.decode()
        else:
            self._record.check_follows(self._distances, self._back)
            self._record.check_storages(self._model)
        with writing(self._record.memory):
            self._write()
        patch = self._distances.patch
        self._record.become(self._entries.values(), patch.base_identity if self._back else patch.target_identity, self._back)

    def _write(self) -> None:
        done = 0
        try:
            for k, names in enumerate(self._groups):
                loaded = self._loaded[k] if k < len(self._loaded) else self._load(names)
                loaded.write(False, not self._record.sampled)
                done += 1
            self._record.moved(self._digests, self._distances.changed)
        except BaseException as error:
            self._take_back(done, error)
            raise

    def _take_back(self, done: int, error: BaseException) -> None:
        """Take back the first groups; raises IntegrityError if that fails."""
        try:
            for k in reversed(range(done)):
                loaded = self._loaded[k] if k < len(self._loaded) else self._load(self._groups[k], False)
                loaded.write(True, False)
        except BaseException as failure:
            self._record.broken = f"an update failed ({cut(error)}), and could not be taken back ({cut(failure)})"
            raise IntegrityError(f"the model: {self._record.broken}: load it anew") from error

    def _load(self, names: Sequence[str], checked: bool = True) -> LoadedPatch:
        """The changes of some tensors, at the places that they are in; with the digests that these will have, if ``checked``."""
        updates, views = list[TensorUpdate](), dict[str, torch.Tensor]()
        for name, ranges in self._distances.ranges(names):
            for number, place in enumerate(self._record.places.get(name, [])):
                key = f"{name} (place {number + 1})" if number else name
                moves = [reversed_range(part) for part in ranges] if self._back else ranges
                updates.append(self._update(key, place, moves, checked and not self._record.sampled))
                views[key] = place.view
        return LoadedUpdates(str(self._distances.patch.opened.path), updates, self._record.threads, lambda: views)

    def _update(self, key: str, place: Place, ranges: Sequence[RangeUpdate], checked: bool) -> TensorUpdate:
        assert place.part is not None and self._leaves is not None
        flat, before = place.flat(), self._leaves.get(id(place), [])
        parts = list(ranges) if place.part.is_whole else list(_cut(ranges, place, len(flat)))
        if not isinstance(flat, np.ndarray):
            parts = [on_device(flat, parts, place.dtype)] if parts else []
        entry = self._entries[place.name]
        if place.whole or not checked:
            digest = entry.base_digest if self._back else entry.digest
        else:
            digest = _digest_after(flat, parts, before, place)
        self._digests[id(place)] = digest
        return TensorUpdate(key, place.dtype, flat, parts, before, digest)


def _groups(names: Iterable[str], entries: Mapping[str, Entry], nbytes: int) -> Iterator[list[str]]:
    """Tensors put together to about so many bytes."""
    group, size = list[str](), 0
    for name in names:
        if group and size + entries[name].nbytes > nbytes:
            yield group
            group, size = [], 0
        group.append(name)
        size += entries[name].nbytes
    if group:
        yield group


def _cut(ranges: Sequence[RangeUpdate], place: Place, nbytes: int) -> Iterator[RangeUpdate]:
    """What the changes of a tensor mean for the part of it that a place has."""
    assert place.part is not None
    width, positions, zigzags = place.dtype.carrier, list[Positions](), list[Units]()
    for part in ranges:
        found = np.flatnonzero(part.zigzags) if part.positions is None else part.positions
        in_place = place.part.select(
            found.astype(np.int64) + part.start // width, part.zigzags[found] if part.positions is None else part.zigzags
        )
        positions.append(in_place[0])
        zigzags.append(in_place[1])
    if positions:
        yield from ranges_of(np.concatenate(positions), np.concatenate(zigzags), nbytes, place.dtype)


def _digest_after(flat: Bytes | torch.Tensor, parts: Sequence[RangeUpdate], before: list[bytes], place: Place) -> bytes:
    """Digest that a place has after its changes, of which a patch states none where it holds a part of a tensor: copies are moved."""
    leaves = list(before)
    for part in parts:
        data, blocks = flat[part.start : part.stop], slice(part.start // BLOCK, -(-part.stop // BLOCK))
        if leaves_in_memory([data], 1) != [before[blocks]]:
            raise BaseMismatchError(f"the model: tensor {cut(place.name)}: was changed since the update was staged; it was taken back")
        if isinstance(data, np.ndarray):
            leaves[blocks] = kernels.moves.move_run(data.copy(), part.positions, part.zigzags, place.dtype, False, True)
        else:
            copied = data.clone()
            device.ops.apply_changes(device.ops.units_of(copied, place.dtype), part.positions, part.zigzags, place.dtype, False)
            (leaves[blocks],) = leaves_in_memory([copied], 1)
    return tensor_digest(leaves)

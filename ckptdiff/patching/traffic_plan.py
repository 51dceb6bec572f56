"""What ``make`` and ``apply`` will ask of stores, told from headers and tables: requests, and bytes both ways."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ckptdiff.checkpoint.contents import Checkpoint
from ckptdiff.checkpoint.scopes import is_index
from ckptdiff.format.sealed import MAX_DELTA_FILE
from ckptdiff.io.places import Place, size_of
from ckptdiff.io.range_cache import CHUNK
from ckptdiff.io.store_file import HEAD, StoreFile
from ckptdiff.io.store_path import StorePath
from ckptdiff.io.store_traffic import Traffic
from ckptdiff.io.store_upload import PART, part_size
from ckptdiff.patching.patch import OpenPatch


def total(parts: Iterable[Traffic]) -> Traffic:
    """The sum of some traffic."""
    return sum(parts, Traffic())


def reading(size: int, start: int = 0) -> Traffic:
    """An object read once from ``start`` to its end."""
    if size <= HEAD:
        return Traffic(1, size)
    first = start // CHUNK
    return Traffic(-(-size // CHUNK) - first, size - first * CHUNK)


def writing(size: int) -> Traffic:
    """An object of a folder written in parts, the folder's mark looked at before it is made, and its size after that."""
    if size < PART:
        return Traffic(3, written=size)
    return Traffic(-(-size // part_size(size)) + 4, written=size)


def spooling(size: int, files: int) -> Traffic:
    """Payloads that lie in the store until their patch file is written: put, read for each of so many files, listed and deleted."""
    parts = size // PART
    return Traffic(3 * parts + 1 + (files if parts else 0), parts * PART, parts * PART)


MARKING = Traffic(9)
"""The output looked for, uploads of killed runs too; a folder marked as unfinished, the mark looked at, and what else is there; and what is
there once it is done, and the mark deleted."""


def planned_make(base: Checkpoint, target: Checkpoint, written: Sequence[int] = (), payloads: int = 0) -> Traffic:
    """What ``make`` asks of stores once it has opened and paired two checkpoints.

    Args:
        base, target: the checkpoints; those on this machine cost nothing.
        written: bytes of each object of the patch, if that is written to a store. They are known only once it is made.
        payloads: bytes of the payloads of a patch that is written to a store.
    """
    weights = [size for side in (base, target) for size in _weight_sizes(side)]
    read = [reading(size, start=0) + Traffic(1) for size in weights]  # and it is looked up again, whether it is unchanged
    others = [target.others[name] for name in target.kept] + [
        base.others[name] for name in target.kept if name in base.others and not is_index(name)
    ]
    read += [reading(size) for size in _sizes(others) for _ in range(2 if size > MAX_DELTA_FILE else 1)]
    out = [*map(writing, written), spooling(payloads, len(target.weights)), MARKING] if written else []
    return total([*read, *out])


def planned_apply(base: Checkpoint, chain: Sequence[OpenPatch], out: Place) -> Traffic:
    """What ``apply`` asks of stores once base and patches are open, where all of the target is rebuilt, and all of the base is needed."""
    read = [reading(size) + Traffic(1) for size in _weight_sizes(base)]
    for patch in chain:
        for file in patch.files:
            if isinstance(file.source, StoreFile):  # all payloads are checked first, and then read again
                start = file.source.size - sum(entry.payload_size for entry in file.table.entries)
                read += [reading(file.source.size, start)] * 2
        stored = [other.stored for other in patch.others if other.kind != "same" and isinstance(patch.path, StorePath)]
        read += [reading(size) for size in stored for _ in range(2)]
    read += [
        reading(size) for size in _sizes(base.others[o.path] for o in chain[0].others if o.kind != "new" and o.path in base.others)
    ] * 2
    if isinstance(out, Path):
        return total(read)
    last = chain[-1]
    sizes = [*(file.metadata.target_size for file in last.files), *(other.size for other in last.others)]
    return total([*read, *map(writing, sizes), MARKING])


def _weight_sizes(checkpoint: Checkpoint) -> list[int]:
    return [file.file.size for file in checkpoint.weights if isinstance(file.file, StoreFile)]


def _sizes(places: Iterable[Place]) -> list[int]:
    return [size_of(place) for place in places if isinstance(place, StorePath)]

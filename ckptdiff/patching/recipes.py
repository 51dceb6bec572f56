"""What a target tensor is built from: a base tensor, and the entry of each patch of a chain above it (spec section 10, step 4)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ckptdiff import device
from ckptdiff.checkpoint.reader import Tensor
from ckptdiff.codecs import CODECS, sparse
from ckptdiff.errors import CkptdiffError, FormatError, IntegrityError, cut
from ckptdiff.format.digests import BLOCK, block_count, leaves_of, tensor_digest
from ckptdiff.format.dtypes import DTYPES, Bytes, Dtype
from ckptdiff.format.entry import Entry
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.patching.adapt import adapt, group_units, read_range

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class BaseTensor:
    """A tensor of the base, which must have ``digest``."""

    tensor: Tensor
    digest: bytes
    leaves: dict[int, list[bytes]] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    def build(self, start: int, stop: int) -> Bytes:
        data = read_range(self.tensor, start, stop)
        self.leaves[start] = leaves_of(data)
        return data


@dataclass(slots=True)
class PatchedTensor:
    """A tensor that a patch's entry makes out of ``below``, if it has a base; ``device``: where to move what ``sparse`` says moves."""

    file: PatchFile
    entry: Entry
    below: BaseTensor | PatchedTensor | None
    device: torch.device | None = None
    changed: dict[int, int] = field(default_factory=dict)
    leaves: dict[int, list[bytes]] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        return self.entry.dtype

    @property
    def nbytes(self) -> int:
        return self.entry.nbytes

    @property
    def digest(self) -> bytes:
        return self.entry.digest

    def build(self, start: int, stop: int) -> Bytes:
        entry, dtype = self.entry, DTYPES[self.entry.dtype]
        size = max(min(stop, entry.nbytes) - start, 0)
        if self.below is None:
            base = np.zeros(size, np.uint8)
        else:
            width = DTYPES[self.below.dtype].carrier
            if isinstance(self.below, BaseTensor) and units_of(self.below) > units_of(self):
                stop = start + size  # no more than is kept of it
            base = self.below.build(start // dtype.carrier * width, stop // dtype.carrier * width)
            base = adapt(base, self.below.dtype, entry.dtype, size)
        if entry.kind != "same" and size:
            base = self._decode(base, start)
        self.leaves[start] = leaves_of(base)
        return base

    def _decode(self, base: Bytes, start: int) -> Bytes:
        entry, dtype, first = self.entry, DTYPES[self.entry.dtype], start // BLOCK
        codec, parts = CODECS[entry.codec or ""], []
        for k, coded in enumerate(self.file.read_blocks(entry, first, first + block_count(len(base)))):
            block = base[k * BLOCK : (k + 1) * BLOCK]
            try:
                if self.device is not None and codec is sparse:
                    part, changed = self._move(coded, block, dtype)
                else:
                    part, changed = codec.decode(coded, block, len(block), dtype)
            except ValueError as error:
                raise FormatError(f"{self.file.source.name}: tensor {cut(entry.name)}, block {first + k}: {error}") from None
            parts.append(part)
            self.changed[first + k] = changed
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _move(self, coded: memoryview, block: Bytes, dtype: Dtype) -> tuple[Bytes, int]:
        """What ``sparse.decode`` gives, by way of a device."""

        positions, zigzags = sparse.unpack(coded, len(block) // dtype.carrier, dtype)
        assert self.device is not None
        return device.ops.moved(block, positions, zigzags, dtype, self.device), len(positions)


Recipe = BaseTensor | PatchedTensor


def layers(node: Recipe | None) -> list[Recipe]:
    """A node and all below it, lowest first."""
    found: list[Recipe] = []
    while node is not None:
        found.append(node)
        node = node.below if isinstance(node, PatchedTensor) else None
    return found[::-1]


def units_of(node: Recipe) -> int:
    """Units of what a node builds."""
    return node.nbytes // DTYPES[node.dtype].carrier


def whole_layers(node: Recipe) -> tuple[list[Recipe], Recipe | None]:
    """A node and those below it that are built whole with it, lowest first; and the next one below, of which only a part is needed.

    That one, and what it is built from, must be checked by itself: a patch may cut one long tensor into very many.
    """
    found = [node]
    while isinstance(found[-1], PatchedTensor) and (below := found[-1].below) is not None:
        if units_of(below) > units_of(found[-1]):
            return found[::-1], below
        found.append(below)
    return found[::-1], None


def anew(node: Recipe) -> Recipe:
    """The same node, of which nothing is built yet."""
    if isinstance(node, BaseTensor):
        return BaseTensor(node.tensor, node.digest)
    return PatchedTensor(node.file, node.entry, anew(node.below) if node.below is not None else None, node.device)


def ranges(node: Recipe) -> Iterator[tuple[int, int, bool]]:
    """What to build a node in: start and stop in bytes of the target, whole blocks of all layers, and whether it is the last."""
    parts, width = whole_layers(node)[0], DTYPES[node.dtype].carrier
    group = group_units(*(part.dtype for part in layers(node)))
    units = max(units_of(part) for part in parts)
    for first in range(0, max(units, 1), group):
        yield first * width, (first + group) * width, first + group >= units


def found_digest(node: Recipe) -> bytes:
    """The tensor digest of what a node has built."""
    return tensor_digest(leaf for start in sorted(node.leaves) for leaf in node.leaves[start])


def check_result(node: PatchedTensor) -> None:
    """Raise FormatError or IntegrityError unless an entry has changed as many units, and gives the digest, as it says."""
    check_changed(node)
    where, digest = f"{node.file.source.name}: tensor {cut(node.entry.name)}", found_digest(node)
    if digest != node.digest:
        raise IntegrityError(f"{where}: rebuilt with the digest {digest.hex()}, expected {node.digest.hex()}: fetch the patch again")


def check_changed(node: PatchedTensor) -> None:
    """Raise FormatError unless an entry has changed as many units as it says."""
    changed = sum(node.changed.values())
    if node.entry.kind == "delta" and changed != node.entry.changed:
        where = f"{node.file.source.name}: tensor {cut(node.entry.name)}"
        raise FormatError(f"{where}: its blocks change {changed} units, expected {node.entry.changed}")


def tensor_differs(node: BaseTensor, found: bytes) -> str:
    """Words for a base tensor of another digest."""
    return f"its tensor {cut(node.tensor.name)} has the digest {found.hex()}, expected {node.digest.hex()}"


def digest_of(tensor: Tensor) -> bytes:
    """Tensor digest of a base tensor, block by block."""
    return tensor_digest(leaf for start in range(0, tensor.nbytes, BLOCK) for leaf in leaves_of(read_range(tensor, start, start + BLOCK)))


class Once:
    """What is found out once, however many entries are made of one tensor: a patch may cut a long one into a hundred thousand."""

    def __init__(self) -> None:
        self._digests: dict[int, bytes] = {}
        self._errors: dict[tuple[int, str], CkptdiffError | None] = {}
        self._lock = threading.RLock()

    def digest_of(self, tensor: Tensor) -> bytes:
        """Tensor digest of a base tensor."""
        with self._lock:
            if id(tensor) not in self._digests:
                self._digests[id(tensor)] = digest_of(tensor)
            return self._digests[id(tensor)]

    def check(self, node: Recipe, check: Callable[[Recipe], None]) -> None:
        """Build a node whole and check it; raises what ``check`` raises, each time."""
        key = (id(node.file), node.entry.name) if isinstance(node, PatchedTensor) else (id(node.tensor), node.digest.hex())
        with self._lock:
            if key not in self._errors:
                self._errors[key] = _error(anew(node), check)
            error = self._errors[key]
        if error is not None:
            raise error


def _error(node: Recipe, check: Callable[[Recipe], None]) -> CkptdiffError | None:
    try:
        for start, stop, _ in ranges(node):
            node.build(start, stop)
        check(node)
    except CkptdiffError as error:
        return error
    return None

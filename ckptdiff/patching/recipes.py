"""How a target tensor is built: from a base tensor, by an entry of each patch of a chain (spec section 10, step 4).

A recipe is a linked list of steps: its last step gives the target tensor, and each :class:`PatchedTensor` takes what its ``base`` gives.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ckptdiff import device
from ckptdiff.checkpoint.contents import Tensor
from ckptdiff.codecs import CODECS, sparse
from ckptdiff.errors import CkptdiffError, FormatError, IntegrityError, cut
from ckptdiff.format.digests import BLOCK, block_count, leaves_of, tensor_digest
from ckptdiff.format.dtypes import DTYPES, Bytes, Dtype
from ckptdiff.format.entry import Entry
from ckptdiff.format.patch_file import PatchFile
from ckptdiff.patching.adapt import adapt, read_range, units_per_group

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class BaseTensor:
    """A tensor of the base checkpoint, as it is."""

    tensor: Tensor
    digest: bytes
    """The tensor digest that it must have."""
    leaves: dict[int, list[bytes]] = field(default_factory=dict)
    """Leaves of what was read so far, by the offset in bytes at which each range begins."""

    @property
    def dtype(self) -> str:
        return self.tensor.dtype

    @property
    def nbytes(self) -> int:
        return self.tensor.nbytes

    def build(self, start: int, stop: int) -> Bytes:
        """Bytes ``start`` to ``stop``, or fewer where the tensor ends before; their leaves are noted."""
        data = read_range(self.tensor, start, stop)
        self.leaves[start] = leaves_of(data)
        return data


@dataclass(slots=True)
class PatchedTensor:
    """A tensor that a patch's entry gives, out of its base tensor if it has one."""

    file: PatchFile
    entry: Entry
    base: BaseTensor | PatchedTensor | None
    """The step that gives the entry's base tensor; None for a new tensor."""
    device: torch.device | None = None
    """The torch device that applies changes of the codec ``sparse``; None: the host does."""
    changed: dict[int, int] = field(default_factory=dict)
    """Number of changed units by number of the block, of blocks decoded so far."""
    leaves: dict[int, list[bytes]] = field(default_factory=dict)
    """Leaves of what was built so far, by the offset in bytes at which each range begins."""

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
        """Bytes ``start`` to ``stop``, or fewer where the tensor ends before; their leaves, and those of all steps below, are noted.

        Raises:
            FormatError: a block cannot be decoded.
        """
        entry, dtype = self.entry, DTYPES[self.entry.dtype]
        size = max(min(stop, entry.nbytes) - start, 0)
        if self.base is None:
            data = np.zeros(size, np.uint8)
        else:
            width = DTYPES[self.base.dtype].carrier
            if isinstance(self.base, BaseTensor) and units_of(self.base) > units_of(self):
                stop = start + size  # units of the base past the target's end are cut off: do not read them
            data = self.base.build(start // dtype.carrier * width, stop // dtype.carrier * width)
            data = adapt(data, self.base.dtype, entry.dtype, size)
        if entry.kind != "same" and size:
            data = self._decode(data, start)
        self.leaves[start] = leaves_of(data)
        return data

    def _decode(self, base: Bytes, start: int) -> Bytes:
        """Decode the blocks of a range that begins at ``start``, against the adapted bytes of its base."""
        entry, dtype, first = self.entry, DTYPES[self.entry.dtype], start // BLOCK
        codec, parts = CODECS[entry.codec or ""], []
        for k, coded in enumerate(self.file.read_blocks(entry, first, first + block_count(len(base)))):
            block = base[k * BLOCK : (k + 1) * BLOCK]
            try:
                if self.device is not None and codec is sparse:
                    part, changed = self._decode_on_device(coded, block, dtype)
                else:
                    part, changed = codec.decode(coded, block, len(block), dtype)
            except ValueError as error:
                raise FormatError(f"{self.file.source.name}: tensor {cut(entry.name)}, block {first + k}: {error}") from None
            parts.append(part)
            self.changed[first + k] = changed
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _decode_on_device(self, coded: memoryview, block: Bytes, dtype: Dtype) -> tuple[Bytes, int]:
        """The same as ``sparse.decode``, whose changes a torch device applies."""
        positions, zigzags = sparse.unpack(coded, len(block) // dtype.carrier, dtype)
        assert self.device is not None
        return device.ops.apply_changes_to_block(block, positions, zigzags, dtype, self.device), len(positions)


Recipe = BaseTensor | PatchedTensor


def steps_of(recipe: Recipe | None) -> list[Recipe]:
    """The steps of a recipe in the order in which they are built: the base tensor first."""
    steps: list[Recipe] = []
    while recipe is not None:
        steps.append(recipe)
        recipe = recipe.base if isinstance(recipe, PatchedTensor) else None
    return steps[::-1]


def units_of(recipe: Recipe) -> int:
    """The number of units of the tensor that a recipe builds."""
    return recipe.nbytes // DTYPES[recipe.dtype].carrier


def steps_built_whole(recipe: Recipe) -> tuple[list[Recipe], Recipe | None]:
    """The last steps of a recipe, which are built whole with its tensor, in order; and the step before them, of which only a part is.

    That step, and those before it, must be checked separately, and once: a patch may cut one long tensor into very many short ones.
    """
    steps = [recipe]
    while isinstance(steps[-1], PatchedTensor) and (base := steps[-1].base) is not None:
        if units_of(base) > units_of(steps[-1]):
            return steps[::-1], base
        steps.append(base)
    return steps[::-1], None


def unbuilt_copy(recipe: Recipe) -> Recipe:
    """The same recipe, with nothing built and no leaves noted yet."""
    if isinstance(recipe, BaseTensor):
        return BaseTensor(recipe.tensor, recipe.digest)
    return PatchedTensor(recipe.file, recipe.entry, unbuilt_copy(recipe.base) if recipe.base is not None else None, recipe.device)


def ranges(recipe: Recipe) -> Iterator[tuple[int, int, bool]]:
    """The ranges in which to build a tensor: start and stop in its bytes, and whether it is the last one.

    Each is whole blocks in the dtypes of all steps, and together they cover all steps that are built whole.
    """
    whole, width = steps_built_whole(recipe)[0], DTYPES[recipe.dtype].carrier
    group = units_per_group(*(step.dtype for step in steps_of(recipe)))
    units = max(units_of(step) for step in whole)
    for first in range(0, max(units, 1), group):
        yield first * width, (first + group) * width, first + group >= units


def built_digest(step: Recipe) -> bytes:
    """The tensor digest of what a step has built."""
    return tensor_digest(leaf for start in sorted(step.leaves) for leaf in step.leaves[start])


def check_result(step: PatchedTensor) -> None:
    """Raise FormatError or IntegrityError unless an entry has changed as many units, and gives the digest, as it says."""
    check_changed(step)
    where, digest = f"{step.file.source.name}: tensor {cut(step.entry.name)}", built_digest(step)
    if digest != step.digest:
        raise IntegrityError(f"{where}: rebuilt with the digest {digest.hex()}, expected {step.digest.hex()}: fetch the patch again")


def check_changed(step: PatchedTensor) -> None:
    """Raise FormatError unless an entry has changed as many units as it says."""
    changed = sum(step.changed.values())
    if step.entry.kind == "delta" and changed != step.entry.changed:
        where = f"{step.file.source.name}: tensor {cut(step.entry.name)}"
        raise FormatError(f"{where}: its blocks change {changed} units, expected {step.entry.changed}")


def describe_mismatch(step: BaseTensor, found: bytes) -> str:
    """The part of an error message that says which base tensor has another digest."""
    return f"its tensor {cut(step.tensor.name)} has the digest {found.hex()}, expected {step.digest.hex()}"


def digest_of(tensor: Tensor) -> bytes:
    """Tensor digest of a tensor of a checkpoint, read block by block."""
    return tensor_digest(leaf for start in range(0, tensor.nbytes, BLOCK) for leaf in leaves_of(read_range(tensor, start, start + BLOCK)))


class CheckCache:
    """Digests and checks of tensors that many entries start from, each done once: a patch may cut one tensor into a hundred thousand."""

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

    def check(self, recipe: Recipe, check: Callable[[Recipe], None]) -> None:
        """Build a whole tensor and check it; raises what ``check`` raises, at each call."""
        key = (id(recipe.file), recipe.entry.name) if isinstance(recipe, PatchedTensor) else (id(recipe.tensor), recipe.digest.hex())
        with self._lock:
            if key not in self._errors:
                self._errors[key] = _building_error(unbuilt_copy(recipe), check)
            error = self._errors[key]
        if error is not None:
            raise error


def _building_error(recipe: Recipe, check: Callable[[Recipe], None]) -> CkptdiffError | None:
    try:
        for start, stop, _ in ranges(recipe):
            recipe.build(start, stop)
        check(recipe)
    except CkptdiffError as error:
        return error
    return None

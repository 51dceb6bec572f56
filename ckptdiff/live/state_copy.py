"""The tensors of a state copied into one piece of memory, which another process may share; cast to the dtype that is served."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from ckptdiff.checkpoint.contents import Checkpoint
from ckptdiff.checkpoint.names import near_names
from ckptdiff.checkpoint.reader import open_checkpoint
from ckptdiff.errors import CheckpointError, UnsupportedError, cut
from ckptdiff.format.dtypes import DTYPE_NAMES, Bytes
from ckptdiff.lazy import torch
from ckptdiff.patching.memory import Row, open_rows, open_state, state_of
from ckptdiff.patching.torch_dtypes import Array, dtype_of, flat_bytes, shape_of

ALIGNMENT = 64
"""Bytes that the place of each tensor is a multiple of."""
CAST = ("F64", "F32", "F16", "BF16")
"""The dtypes that are cast to the served one, and that it may be."""
AS_BASE = "base"
"""Stands for the dtype that the base has each tensor in."""
THE_STATE = "the new state"
"""How messages call what is published."""


class Place(NamedTuple):
    """A tensor, and where it lies."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    """In elements."""
    start: int
    size: int
    """In bytes."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The tensors of a state, and where each lies in one piece of memory."""

    places: dict[str, Place]
    tied: dict[str, str]
    """Further names of tensors, and the name that each counts under."""
    dtype: str | None
    """The served dtype, that of :data:`CAST` which floats are cast to; ``base``; or None: nothing is cast."""

    @property
    def size(self) -> int:
        """Bytes of memory that it takes."""
        return max((place.start + place.size for place in self.places.values()), default=0)

    def place(self, name: str) -> Place:
        """The place of a tensor; raises CheckpointError if there is none of this name."""
        place = self.places.get(self.tied.get(name, name))
        if place is None:
            near = near_names(name, self.places)
            raise CheckpointError(
                f"{THE_STATE}: has the tensor {cut(name)}, which the base has not" + (f"; it has {near}" if near else "") + ": all states "
                "of a chain have the base's tensors, under its names"
            )
        return place

    def check(self, name: str, array: Array) -> Place:
        """The place of a tensor that may be copied there.

        Raises:
            CheckpointError: the base has no such tensor, or another shape or dtype.
        """
        place, dtype = self.place(name), dtype_of(array, f"{THE_STATE}: {name}")
        shape = shape_of(array, dtype)
        if shape != place.shape or (dtype != place.dtype and not (self.dtype and dtype in CAST and place.dtype in CAST)):
            advice = "" if self.dtype or not {dtype, place.dtype} <= set(CAST) else ": dtype= casts tensors before they are compared"
            raise CheckpointError(
                f"{THE_STATE}: tensor {cut(name)} is {dtype} {list(shape)}, expected {place.dtype} {list(place.shape)}, as the base has it"
                + advice
            )
        return place


def served_dtype(dtype: Any) -> str | None:
    """A dtype of torch or numpy, or the name of one, by its name in a checkpoint; ``base`` and None stay.

    Raises:
        CheckpointError: nothing can be cast to it.
    """
    if dtype is None or dtype == AS_BASE:
        return dtype
    text = str(getattr(dtype, "name", dtype)).removeprefix("torch.")
    for name in CAST:
        if text in (name, *DTYPE_NAMES[name]):
            return name
    known = ", ".join(DTYPE_NAMES[name][0] or name for name in CAST)
    raise CheckpointError(f"dtype={text!r}: expected one of {known}, or 'base': the dtype that the base has each tensor in")


@dataclass(slots=True)
class StateCopy:
    """A state in a piece of memory on the host.

    ``memory``: uint8[layout.size].
    """

    layout: Layout
    memory: Bytes
    rows: dict[str, Row] = field(init=False)
    """Its tensors by name."""

    def __post_init__(self) -> None:
        places = self.layout.places.values()
        self.rows = {p.name: Row(p.name, p.dtype, p.shape, self.memory[p.start : p.start + p.size]) for p in places}

    @classmethod
    def new(cls, layout: Layout) -> StateCopy:
        """One with memory of its own, which holds nothing yet."""
        return cls(layout, np.empty(layout.size, np.uint8))

    def put(self, name: str, array: Array) -> None:
        """Copy a tensor to its place, cast if it has to be. Errors are those of :meth:`Layout.check`, and UnsupportedError."""
        place = self.layout.check(name, array)
        if not place.size:
            return
        out, dtype = self.rows[place.name].flat, dtype_of(array, name)
        assert isinstance(out, np.ndarray)
        if dtype == place.dtype:
            flat = flat_bytes(array, f"{THE_STATE}: {name}")
            if isinstance(flat, np.ndarray):
                np.copyto(out, flat)
            elif len(flat):
                torch.from_numpy(out).copy_(flat)
        elif isinstance(array, np.ndarray):
            out[:] = cast(array, place.dtype, name).reshape(-1).view(np.uint8)
        else:
            kind = getattr(torch, DTYPE_NAMES[place.dtype][0] or "")
            torch.from_numpy(out).view(kind).reshape(array.shape).copy_(array.detach())

    def put_all(self, state: Any) -> None:
        """Copy all tensors of a state or a module; raises CheckpointError if one is missing too."""
        arrays = state_of(state, THE_STATE)
        check_complete(self.layout, arrays)
        check_tied(self.layout, arrays)
        for name, array in arrays.items():
            if name not in self.layout.tied:
                self.put(name, array)

    def take(self, other: StateCopy) -> None:
        """Copy all of another one."""
        np.copyto(self.memory, other.memory)

    def open(self, where: str, names: Iterable[str] | None = None) -> Checkpoint:
        """It, or some tensors of it, as a checkpoint."""
        return open_rows(self.rows.values() if names is None else (self.rows[name] for name in names), where, tied=self.layout.tied)


def cast(array: Array, dtype: str, name: str) -> Array:
    """A tensor in another dtype, rounded to the nearest, ties to even."""
    torch_name, numpy_name = DTYPE_NAMES[dtype]
    if not isinstance(array, np.ndarray):
        return array.detach().to(getattr(torch, torch_name or ""))
    try:
        return array.astype(np.dtype(numpy_name))
    except TypeError:
        raise UnsupportedError(f"{THE_STATE}: {name}: numpy has no {numpy_name}: import ml_dtypes, or give torch tensors") from None


def check_complete(layout: Layout, names: Iterable[str]) -> None:
    """Raise CheckpointError unless all tensors of the base are among these names."""
    missing = layout.places.keys() - set(names)
    if missing:
        raise CheckpointError(f"{THE_STATE}: lacks the tensor {cut(min(missing))}, which the base has: give all of them")


def check_tied(layout: Layout, arrays: Mapping[str, Array]) -> None:
    """Raise CheckpointError if a further name of a tensor of the base has another content now."""
    for name, kept in layout.tied.items():
        if name in arrays and not same_content(arrays[name], arrays[kept]):
            raise CheckpointError(
                f"{THE_STATE}: {cut(name)} and {cut(kept)} are one tensor in the base, but have different contents: begin another chain, "
                "from a base with both"
            )


def same_content(one: Array, other: Array) -> bool:
    """Whether two tensors have the same dtype, shape and bytes."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    first, second = flat_bytes(one, THE_STATE), flat_bytes(other, THE_STATE)
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return first.ctypes.data == second.ctypes.data or bool(np.array_equal(first, second))
    return not isinstance(first, np.ndarray) and not isinstance(second, np.ndarray) and bool(torch.equal(first, second))


def copied(base: Any, dtype: Any, where: str = "the base") -> StateCopy:
    """A copy of a state, of a module, or of a checkpoint with one scope, its floats cast to the served dtype.

    Args:
        base: the tensors, or a path or an id on the Hub.
        dtype: as of :func:`served_dtype`.
        where: what messages call them.

    Raises:
        CheckpointError: it cannot be read, or is neither. UnsupportedError: it has several scopes, or a tensor cannot be read in place.
    """
    served = served_dtype(dtype)
    if not isinstance(base, (str, os.PathLike)):
        return _copied(open_state(state_of(base, where), where), served)
    with open_checkpoint(base) as opened:
        if len(opened.scopes) != 1:
            raise UnsupportedError(f"{base}: has the scopes {cut(', '.join(opened.scopes))}, expected one: give its tensors")
        return _copied(opened, served)


def _copied(base: Checkpoint, served: str | None) -> StateCopy:
    tensors = [tensor for scope in base.scopes.values() for tensor in scope.values()]
    dtypes = [served if served in CAST and tensor.dtype in CAST else tensor.dtype for tensor in tensors]
    sizes = [
        t.nbytes * _width(dtype) // _width(t.dtype) if dtype != t.dtype else t.nbytes for t, dtype in zip(tensors, dtypes, strict=True)
    ]
    starts = accumulate((-(-size // ALIGNMENT) * ALIGNMENT for size in sizes), initial=0)
    rows = zip(tensors, dtypes, starts, sizes, strict=False)
    layout = Layout({t.name: Place(t.name, dtype, t.shape, start, size) for t, dtype, start, size in rows}, dict(base.tied), served)
    made = StateCopy.new(layout)
    for tensor, dtype in zip(tensors, dtypes, strict=True):
        out = made.rows[tensor.name].flat
        assert isinstance(out, np.ndarray)
        if dtype == tensor.dtype:
            for start in _starts(tensor.nbytes):
                tensor.readinto(start, out[start : start + READ_AT_ONCE])
            continue
        if not tensor.nbytes:
            continue  # which torch cannot show as another dtype
        whole = np.empty(tensor.nbytes, np.uint8)
        tensor.readinto(0, whole)
        if "BF16" in (tensor.dtype, dtype):
            source = torch.from_numpy(whole).view(getattr(torch, DTYPE_NAMES[tensor.dtype][0] or ""))
            torch.from_numpy(out).view(getattr(torch, DTYPE_NAMES[dtype][0] or "")).copy_(source)
        else:
            new, old = (np.dtype(DTYPE_NAMES[name][1] or "") for name in (dtype, tensor.dtype))
            np.copyto(out.view(new), whole.view(old), casting="same_kind")
    return made


READ_AT_ONCE = 1 << 26
"""Bytes of a tensor that are copied at once."""


def _starts(size: int) -> Iterator[int]:
    return iter(range(0, size, READ_AT_ONCE))


def _width(dtype: str) -> int:
    return {"F64": 8, "F32": 4}.get(dtype, 2)

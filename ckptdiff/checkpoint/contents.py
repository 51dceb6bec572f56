"""What an open checkpoint holds: weight files, their tensors by scope (spec 3.1), and the files beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ckptdiff.checkpoint.weight_map import WeightMap
from ckptdiff.format.dtypes import DTYPES, Bytes
from ckptdiff.format.safetensors import Header, parse_header
from ckptdiff.hub.ids import HubId
from ckptdiff.io.places import Place
from ckptdiff.io.scratch import scratch
from ckptdiff.io.source import WeightSource
from ckptdiff.lazy import torch


class TensorKey(NamedTuple):
    """What tells a tensor of a checkpoint from all others."""

    scope: str
    name: str
    file: str = ""
    """Path of its file where the tensor does not count, as another file of its scope has one of that name that does (spec 3.1)."""


@dataclass(slots=True, unsafe_hash=True)
class Tensor:
    """One tensor of a checkpoint. It never changes, but is not frozen: made so it took 1.1 us, not 0.24."""

    scope: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    """Its dimensions, in elements."""
    nbytes: int
    """Size of its data in bytes."""
    source: WeightSource
    offset: int
    """Where its data begins in ``source``, in bytes."""
    uncounted_in: str = ""
    """Path of its file if it does not count (:class:`TensorKey`)."""
    key: TensorKey = field(init=False, repr=False, compare=False)
    """Its key in its checkpoint."""
    units: int = field(init=False, repr=False, compare=False)
    """Number of its units (spec section 4)."""

    def __post_init__(self) -> None:
        self.key = TensorKey(self.scope, self.name, self.uncounted_in)
        self.units = self.nbytes // DTYPES[self.dtype].carrier

    def __reduce__(self) -> tuple[Any, ...]:
        return Tensor, (self.scope, self.name, self.dtype, self.shape, self.nbytes, self.source, self.offset, self.uncounted_in)

    @property
    def counts(self) -> bool:
        """Whether it is the tensor of its name in its scope (spec 3.1)."""
        return not self.uncounted_in

    @property
    def memory(self) -> Bytes | torch.Tensor | None:
        """Its data without a copy, if it is in memory: numpy's on the host, torch's on another device. None for a tensor of a file."""
        return self.source.view(self.offset, self.nbytes)

    def readinto(self, start: int, out: Bytes) -> None:
        """Fill ``out`` with the tensor's bytes from ``start`` on."""
        self.source.readinto(self.offset + start, out)

    def read(self, start: int, stop: int, name: str = "read") -> Bytes:
        """Bytes ``start`` to ``stop``, or fewer where the tensor ends before, in the :func:`scratch` array called ``name``."""
        out = scratch(name, max(min(stop, self.nbytes) - start, 0), np.uint8)
        if len(out):  # a checkpoint may have a hundred thousand empty tensors, for which no file is opened
            self.readinto(start, out)
        return out

    def view(self, start: int, stop: int, name: str) -> Bytes:
        """As :meth:`read`, but the tensor's own memory if that is on the host: the bytes must not be written to."""
        data = self.memory
        return data[start:stop] if isinstance(data, np.ndarray) else self.read(start, stop, name)


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One safetensors file of a checkpoint."""

    path: str
    """Relative to the checkpoint, with ``/``."""
    scope: str
    file: WeightSource
    header: Header
    uncounted: set[str] = field(default_factory=set)
    """Names of those of its tensors that do not count, which the checkpoint finds out before it asks for any tensor."""
    sha256: str | None = None
    """SHA-256 of the file where that is known, as a patch states it; None: read the file to find out."""
    _tensors: list[Tensor] = field(init=False, repr=False, compare=False, default_factory=list)

    def __reduce__(self) -> tuple[Any, ...]:
        return _weight_file, (self.path, self.scope, self.file, self.header.raw, self.header.data_size, self.uncounted, self.sha256)

    @property
    def tensors(self) -> list[Tensor]:
        """The file's tensors in the order of their data."""
        if not self._tensors:
            start, uncounted = self.header.data_start, self.uncounted
            self._tensors.extend(
                Tensor(self.scope, t.name, t.dtype, t.shape, t.nbytes, self.file, start + t.begin, self.path if t.name in uncounted else "")
                for t in self.header.tensors
            )
        return self._tensors


def _weight_file(
    path: str, scope: str, file: WeightSource, raw: bytes, data_size: int, uncounted: set[str], sha256: str | None
) -> WeightFile:
    """A weight file in another process, which parses its header again: that takes less than to send what it says of many tensors."""
    return WeightFile(path, scope, file, parse_header(raw, data_size), uncounted, sha256)


@dataclass(slots=True)
class Checkpoint:
    """An open checkpoint, whose headers are read."""

    path: Place
    is_file: bool
    """Whether it is one safetensors file, not a folder."""
    weights: list[WeightFile]
    others: dict[str, Place]
    """Where each file without weights lies, by its path in the checkpoint."""
    left_out: tuple[str, ...] = ()
    """Paths of the files that do not belong to it, by default or because the caller said so."""
    followed: dict[str, Place] = field(default_factory=dict)
    """Where links lead that leave its folder and were followed, by the path of the link."""
    origin: HubId | None = None
    """The repo and commit that it is from."""
    in_memory: bool = False
    """Whether its weights are tensors in memory, not files."""
    is_dcp: bool = False
    """Whether it is a folder of torch.distributed.checkpoint, whose only weight file does not exist (:mod:`ckptdiff.checkpoint.dcp`)."""
    left_out_tensors: tuple[str, ...] = ()
    """Names of the entries of such a folder that are optimizer state, or no tensors."""
    tied: dict[str, str] = field(default_factory=dict)
    """Further names of tensors in memory, and the name that each tensor counts under."""
    weight_maps: Mapping[str, Sequence[WeightMap]] = field(default_factory=dict)
    """The weight maps of the indexes of each scope, by scope."""
    scopes: dict[str, dict[str, Tensor]] = field(init=False, default_factory=dict)
    """The tensors that count, by scope and name."""
    uncounted: dict[TensorKey, Tensor] = field(init=False, default_factory=dict)
    """The tensors that do not count, by key."""

    def __reduce__(self) -> tuple[Any, ...]:
        members = (self.path, self.is_file, self.weights, self.others, self.left_out, self.followed, self.origin)
        return Checkpoint, (*members, self.in_memory, self.is_dcp, self.left_out_tensors, self.tied, self.weight_maps)

    def __post_init__(self) -> None:
        self._mark_uncounted()
        for file in self.weights:
            tensors = self.scopes.setdefault(file.scope, {})
            for tensor in file.tensors:
                if tensor.counts:
                    tensors[tensor.name] = tensor
                else:
                    self.uncounted[tensor.key] = tensor

    def _mark_uncounted(self) -> None:
        """Decide which tensor counts of each name that several files of one scope hold (spec 3.1)."""
        first: dict[str, dict[str, WeightFile]] = {}
        doubled: dict[tuple[str, str], dict[str, WeightFile]] = {}
        for file in self.weights:
            known = first.setdefault(file.scope, {})
            for info in file.header.tensors:
                other = known.setdefault(info.name, file)
                if other is not file:
                    doubled.setdefault((file.scope, info.name), {other.path: other})[file.path] = file
        for (scope, name), files in doubled.items():
            named = (weight_map.get(name) for weight_map in self.weight_maps.get(scope, ()))
            chosen = next((path for path in named if path in files), min(files, key=str.encode))
            for path in files.keys() - {chosen}:
                files[path].uncounted.add(name)

    def tensor(self, key: TensorKey) -> Tensor:
        """The tensor of a key."""
        return self.uncounted[key] if key.file else self.scopes[key.scope][key.name]

    def scope(self, name: str) -> dict[str, Tensor] | None:
        """The tensors of a scope; a checkpoint with one scope that has tensors gives that one whatever it is called (spec 10, step 3)."""
        filled = [tensors for tensors in self.scopes.values() if tensors]
        return filled[0] if len(filled) == 1 else self.scopes.get(name)

    @property
    def kept(self) -> list[str]:
        """Paths of the files without weights that belong to it."""
        left_out = set(self.left_out)
        return [name for name in self.others if name not in left_out]

    @property
    def paths(self) -> list[Place]:
        """The checkpoint's own path and those of all its files."""
        return [self.path, *(file.file.path for file in self.weights), *self.others.values()]

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a weight file was written to since it was opened."""
        for file in self.weights:
            file.file.check_unchanged()

    def close(self) -> None:
        """Close all weight files."""
        for file in self.weights:
            file.file.close()
